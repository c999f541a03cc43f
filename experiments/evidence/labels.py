"""Names beside the points of a picture, where they cover nothing."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]  # left, bottom, right, top

# In typographic points: height and distance of a name, mean width of a letter,
# half the size of a mark.
_HEIGHT, _GAP, _LETTER, _MARK = 9.0, 9.0, 4.1, 3.0
_SHIFTS = (0.0, *(s * k * _HEIGHT / 2 for k in range(1, 60) for s in (1, -1)))


def write(
  axes: Any,
  points: Sequence[tuple[float, float, str]],
  bars: Sequence[tuple[float, float, float]],
  right_only: bool = False,
) -> None:
  """Writes names beside points.

  Args:
    axes: The axes, whose limits are final.
    points: (x, y, name).
    bars: Lines (x, lower y, upper y) that the names do not cover.
    right_only: Whether all names are to the right, and may leave the axes.
  """
  scale = 72 / axes.figure.dpi

  def at(x: float, y: float) -> tuple[float, float]:
    x, y = axes.transData.transform((x, y)).tolist()
    return x * scale, y * scale

  left, bottom, right, top = axes.get_window_extent().extents.tolist()
  bounds = left * scale, bottom * scale, right * scale, top * scale
  if right_only:
    bounds = (*bounds[:2], math.inf, bounds[3])
  marks = []
  for x, lower, upper in bars:
    (middle, low), (_, high) = at(x, lower), at(x, upper)
    marks.append((middle - _MARK, low - _MARK, middle + _MARK, high + _MARK))
  found = places(
    [(*at(x, y), _LETTER * len(name)) for x, y, name in points],
    marks,
    bounds,
    sides=(1,) if right_only else (1, -1),
  )
  for (x, y, name), (side, shift) in zip(points, found, strict=True):
    axes.annotate(
      name,
      (x, y),
      (_GAP * side, shift),
      textcoords='offset points',
      fontsize=7,
      va='center',
      ha='left' if side > 0 else 'right',
      arrowprops={'arrowstyle': '-', 'linewidth': 0.4, 'color': '0.5'},
      bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5},
    )


def places(
  points: Sequence[tuple[float, float, float]],
  marks: Sequence[Box],
  bounds: Box,
  sides: Sequence[int] = (1, -1),
) -> list[tuple[int, float]]:
  """Places where names cover neither each other nor marks.

  From left to right, each name takes the free place nearest to its point. All
  lengths are in typographic points.

  Args:
    points: (x, y, width of the name).
    marks: Boxes that are taken.
    bounds: The box that the names stay in.
    sides: Sides of a point, the preferred one first; 1 is to the right.

  Returns:
    For each point the side of its name, and how much higher than the point the
    name is. Without a free place, the name is at the first side, at 0.
  """
  taken = list(marks)
  result = [(sides[0], 0.0)] * len(points)
  for index in sorted(range(len(points)), key=lambda i: points[i][:2]):
    for shift, side in itertools.product(_SHIFTS, sides):
      box = box_of(points[index], side, shift)
      if _inside(box, bounds) and not any(overlap(box, t) for t in taken):
        result[index] = side, shift
        taken.append(box)
        break
  return result


def box_of(point: tuple[float, float, float], side: int, shift: float) -> Box:
  """The box of a name beside a point (x, y, width of the name)."""
  x, y, width = point
  near, far = x + side * _GAP, x + side * (_GAP + width)
  bottom = y + shift - _HEIGHT / 2
  return min(near, far), bottom, max(near, far), bottom + _HEIGHT


def overlap(a: Box, b: Box) -> bool:
  """Whether two boxes have more than an edge in common."""
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(box: Box, bounds: Box) -> bool:
  return (
    box[0] >= bounds[0]
    and box[1] >= bounds[1]
    and box[2] <= bounds[2]
    and box[3] <= bounds[3]
  )
