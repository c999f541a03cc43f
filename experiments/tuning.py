"""The tuning protocol: determines the next trials of an arm.

It is a pure function of the losses so far, so the runner can be stopped at any
time, and several machines agree.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from experiments.trial import Point, point_of

RATES = ('embedding_rate', 'matrix_rate')
Rates: TypeAlias = tuple[tuple[str, ...], ...]  # those that move together
WEIGHT_DECAYS = (0.0, 0.1, 0.3, 1.0)
# After this many points, no search starts another round or moves a rate.
LONGEST = 40


class Missing(Exception):
  """The search needs losses before it can continue."""

  def __init__(self, points: Sequence[Point]):
    super().__init__(f'{len(points)} trials are missing')
    self.points = points


@dataclasses.dataclass(frozen=True)
class Tuned:
  """The result of a search.

  Attributes:
    options: The best point.
    visited: The points tried, in order.
    interior: Whether both neighbors of each rate were tried and are worse.
  """

  options: dict[str, float]
  visited: list[Point]
  interior: bool


def search(
  start: Mapping[str, float],
  lists: Mapping[str, Sequence[float]],
  loss_of: Callable[[Point], float | None],
  budget: int,
  others: Sequence[Mapping[str, float]] = (),
  one_rate: bool = False,
) -> Tuned:
  """Coordinate descent over the rates and other options until none moves.

  The rates move by factors of 2, the others along their lists.

  Args:
    start: The point where the search starts.
    lists: Values of each other option that moves, in order.
    loss_of: Losses so far; None for points without one.
    budget: The smallest number of points to visit. A search that ends earlier
      also tries the diagonal neighbors of its best point, then half steps.
    others: Points that are tried at last, such as the best ones of arms that
      differ little.
    one_rate: Whether the rates are equal and move together.

  Raises:
    Missing: If the search needs a loss for which `loss_of` returns None.
  """
  visited: dict[Point, float] = {}
  rates: Rates = (RATES,) if one_rate else tuple((name,) for name in RATES)

  def best(candidates: Sequence[Point]) -> Point:
    found = {point: loss_of(point) for point in candidates}
    missing = [point for point, loss in found.items() if loss is None]
    if missing:
      raise Missing(missing)
    for point, loss in found.items():
      visited[point] = math.inf if loss is None else loss
    return min(candidates, key=visited.__getitem__)

  def settle(point: Point) -> Point:
    """Searches along one option after another until none moves."""
    while True:
      before = point = _descend(point, rates, best, visited)
      for name, values in lists.items():
        point = _climb(point, name, values, best)
      if point == before or len(visited) >= LONGEST:
        return point

  point = settle(point_of(start))
  for more in _extras(point, rates):
    if len(visited) >= budget:
      break
    best([more])
  for other in others:
    best([point_of(other)])
  # If an extra point is the best, its own neighbors must be tried.
  point = settle(min(visited, key=visited.__getitem__))
  interior = all(
    visited.get(_scaled(point, names, factor), -math.inf) >= visited[point]
    for names in rates
    for factor in (0.5, 2.0)
  )
  return Tuned(dict(point), list(visited), interior)


def _descend(point, rates, best, visited):
  """Moves along each rate until all neighbors are worse."""
  while len(visited) < LONGEST:
    before = point
    for names in rates:
      while len(visited) < LONGEST:
        around = [_scaled(point, names, f) for f in (0.5, 1.0, 2.0)]
        moved = best(around)
        if moved == point:
          break
        point = moved
    if point == before:
      break
  return point


def _climb(point, name, values, best):
  """Moves along a list of values until both neighbors are worse."""
  while values:
    at = values.index(dict(point)[name])
    around = (
      values[at],
      *values[max(at - 1, 0) : at],
      *values[at + 1 : at + 2],
    )
    moved = best([_with(point, name, value) for value in around])
    if moved == point:
      break
    point = moved
  return point


def _extras(point, rates):
  """Points near the best one that the descent did not need."""
  if len(rates) > 1:
    for a, b in itertools.product((0.5, 2.0), repeat=2):
      yield _scaled(_scaled(point, rates[0], a), rates[1], b)
  for names, factor in itertools.product(rates, (2**-0.5, 2**0.5)):
    yield _scaled(point, names, factor)
  for names, factor in itertools.product(rates, (0.25, 4.0)):
    yield _scaled(point, names, factor)


def _with(point: Point, name: str, value: float) -> Point:
  return point_of({**dict(point), name: value})


def _scaled(point: Point, names: Sequence[str], factor: float) -> Point:
  options = dict(point)
  return point_of({**options, **{x: options[x] * factor for x in names}})
