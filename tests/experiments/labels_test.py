"""Names in pictures cover neither each other nor marks."""

import itertools

import numpy as np

from experiments.evidence import labels

_BOUNDS = (0.0, 0.0, 450.0, 300.0)


def test_names_cover_nothing():
  rng = np.random.default_rng(0)
  # Columns of marks, as of optimizers with equal states.
  columns = rng.choice([5.0, 150.0, 200.0, 300.0, 400.0], 40)
  heights = rng.uniform(5, 295, 40)
  points = [(x, y, 50.0) for x, y in zip(columns, heights, strict=True)]
  marks = [(x - 3, y - 10, x + 3, y + 10) for x, y, _ in points]
  found = labels.places(points, marks, _BOUNDS)
  boxes = [
    labels.box_of(point, *place)
    for point, place in zip(points, found, strict=True)
  ]
  assert not any(
    labels.overlap(a, b)
    for a, b in [
      *itertools.combinations(boxes, 2),
      *itertools.product(boxes, marks),
    ]
  )
  for left, bottom, right, top in boxes:
    assert min(left, bottom) >= 0
    assert right <= 450
    assert top <= 300


def test_a_name_is_at_the_free_place_nearest_to_its_point():
  points = [(100.0, 100.0, 50.0), (100.0, 104.0, 50.0), (440.0, 200.0, 50.0)]
  right, above, left = labels.places(points, [], _BOUNDS)
  assert right == (1, 0.0)
  # The left side is free at the same height.
  assert above == (-1, 0.0)
  assert left == (-1, 0.0)
  assert labels.places(points[:2], [], _BOUNDS, sides=(1,)) == [
    (1, 0.0),
    (1, 9.0),
  ]


def test_boxes_with_a_common_edge_do_not_overlap():
  assert labels.overlap((0, 0, 2, 2), (1, 1, 3, 3))
  assert not labels.overlap((0, 0, 2, 2), (2, 0, 3, 2))
