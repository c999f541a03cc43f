"""Infers roles and axes of leaves from the logical names of their axes."""

import itertools
from typing import NamedTuple

from sage_optax.leaves import metadata, names, presets
from sage_optax.leaves.metadata import (
  BATCH,
  EXPERTS,
  INNER,
  POSITION,
  VOCAB,
  WIDTH,
)


class Axes(NamedTuple):
  """The axes of a leaf by their meaning, counted from the start.

  Attributes:
    batch: axes of independent units.
    fan_in: axes of inputs; the vocabulary of an embedding; none for vectors.
    fan_out: axes of outputs; the features of an embedding.
  """

  batch: tuple[int, ...]
  fan_in: tuple[int, ...]
  fan_out: tuple[int, ...]

  def outputs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of the axes of fan_out, without axes of size 1."""
    return tuple(shape[a] for a in self.fan_out if shape[a] > 1)


# Roles that a user may give to a leaf whose axes are known by another one.
_SAME_AXES = {
  'embedding': ('embedding', 'matrix'),
  'head': ('head', 'matrix'),
  'matrix': ('embedding', 'head', 'matrix'),
  'vector': ('vector',),
}


class Reading(NamedTuple):
  """What one kind of evidence shows; None if it shows nothing."""

  role: str | None = None
  axes: Axes | None = None
  batch: tuple[int, ...] = ()

  def axes_of(self, role: str) -> Axes | None:
    """The axes, if they are those of a leaf of this role too."""
    return self.axes if role in _SAME_AXES.get(self.role or '', ()) else None


def read(
  path: str, shape: tuple[int, ...], axis_names: metadata.AxisNames
) -> Reading:
  """Returns role and axes of a leaf, from the names of its axes.

  Args:
    path: path of the leaf.
    shape: shape of the leaf.
    axis_names: names of its axes.

  Returns:
    What is certain; an empty `Reading` unless every axis has a name.
  """
  if len(axis_names.names) != len(shape) or not shape:
    return Reading()
  known = presets.find(path, shape, None)
  vector = known is not None and known.role == 'vector'
  kinds = _kinds(axis_names.names, vector)
  batch = tuple(i for i, kind in enumerate(kinds) if kind == BATCH)
  core = [i for i, kind in enumerate(kinds) if kind != BATCH]
  if not core or any(kinds[i] is None for i in core):
    return Reading(batch=batch)
  found = _table(path, kinds, core)
  if found is None and (len(core) == 1 or vector):
    found = 'vector', (), tuple(core)
  if found is None:
    sides = _sides(path, kinds, core, axis_names.ordered)
    found = ('matrix', *sides) if sides else None
  if found is None:
    return Reading(batch=batch)
  role, fan_in, fan_out = found
  return Reading(role, Axes(batch, fan_in, fan_out), batch)


def _kinds(given: tuple[str | None, ...], vector: bool) -> list[str | None]:
  """The kind of each axis; None for an unknown name."""
  kinds = [metadata.KINDS.get(name or '') for name in given]
  others = [i for i, kind in enumerate(kinds) if kind not in (BATCH, EXPERTS)]
  batch = len(others) > 1 or (others and vector)
  # A router maps to the experts.
  meant: str | None = BATCH if batch else INNER
  if any(kinds[i] is None for i in others):
    meant = None  # `expert` may be an axis of a mesh.
  return [meant if kind == EXPERTS else kind for kind in kinds]


def _table(path, kinds, core):
  """Embeddings and heads, which have an axis of the vocabulary."""
  for kind in (VOCAB, POSITION):
    places = [i for i in core if kinds[i] == kind]
    rest = tuple(i for i in core if kinds[i] != kind)
    if len(places) != 1 or not rest:
      continue
    (place,) = places
    if kind == VOCAB and (names.HEAD.search(path) or place > rest[-1]):
      return 'head', rest, (place,)
    if place < rest[0]:
      return 'embedding', (place,), rest
  return None


def _sides(path, kinds, core, ordered):
  """Axes of fan_in and fan_out of a matrix; None if they are not certain."""
  width = [i for i in core if kinds[i] == WIDTH]
  inner = tuple(i for i in core if kinds[i] == INNER)
  if len(width) == 1 and inner:
    stream = tuple(width)
    if names.OUT_OF_STREAM.search(path):
      return stream, inner
    if names.INTO_STREAM.search(path):
      return inner, stream
    if stream[0] not in (core[0], core[-1]):
      return None
    first, last = (stream, inner) if stream[0] == core[0] else (inner, stream)
  elif len(core) == 2:
    first, last = (core[0],), (core[1],)
  else:
    return None
  return (first, last) if ordered else None


def layout_axes(layout: str, shape: tuple[int, ...], batch: tuple[int, ...]):
  """Returns the axes of a leaf with this layout and these batch axes.

  Args:
    layout: as in `names`.
    shape: shape of the leaf.
    batch: the axes of stacks.

  Returns:
    The `Axes`; None if the layout does not fit the shape.
  """
  letters = layout.split()
  core = [i for i in range(len(shape)) if i not in batch]
  if len(core) != len(letters):
    return None
  pairs = list(zip(letters, core, strict=True))
  if any(letter == '1' and shape[i] != 1 for letter, i in pairs):
    return None
  places = {
    letter: tuple(i for _, i in group)
    for letter, group in itertools.groupby(
      sorted(pairs), key=lambda pair: pair[0]
    )
  }
  own = tuple(sorted((*batch, *places.get('b', ()), *places.get('1', ()))))
  return Axes(own, places.get('i', ()), places.get('o', ()))


def fits(
  layouts: tuple[str, ...], shape: tuple[int, ...], batch: tuple[int, ...]
) -> dict[str, Axes]:
  """The axes for each layout that fits; axes of size 1 may be batch axes."""
  ones = [a for a, size in enumerate(shape) if size == 1 and a not in batch]
  found: dict[str, Axes] = {}
  for some in (batch, (*batch, *ones)):
    for layout in () if found else layouts:
      axes = layout_axes(layout, shape, some)
      if axes is not None:
        found[layout] = axes
  return found


def guess(
  path: str,
  shape: tuple[int, ...],
  batch: tuple[int, ...],
  outputs: tuple[int, ...] = (),
) -> Axes:
  """The axes to suggest for a matrix of an unknown layout.

  Args:
    path: path of the leaf.
    shape: shape of the leaf.
    batch: the known axes of stacks.
    outputs: the sizes that a bias shows, if any.

  Returns:
    The `Axes`, with the outputs last if their sizes agree; else those of
    attention heads, a convolution, or a stack.
  """
  core = tuple(a for a in range(len(shape)) if a not in batch)
  sizes, last = [shape[a] for a in core], core[-1:]
  count = len(outputs)
  if 0 < count < len(core) and tuple(sizes[-count:]) == outputs:
    return Axes(batch, core[:-count], core[-count:])
  if 0 < count < len(core) and tuple(sizes[:count]) == outputs:
    return Axes(batch, core[count:], core[:count])
  # There are fewer heads and layers than features.
  attention = (
    len(core) == 3
    and not names.STACKS.search(path)
    and (
      (names.OUT_OF_STREAM.search(path) and sizes[0] > sizes[1])
      or (names.INTO_STREAM.search(path) and sizes[1] < sizes[2])
    )
  )
  convolution = len(core) == 4 and sizes[0] == sizes[1] < min(sizes[2:])
  fan_in = core[:-1] if attention or convolution else core[-2:-1]
  if attention and names.OUT_OF_STREAM.search(path):
    fan_in, last = core[:1], core[1:]
  named = (*fan_in, *last)
  rest = tuple(a for a in range(len(shape)) if a not in named)
  return Axes(rest, fan_in, last)
