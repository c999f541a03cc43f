"""Proofs of stacks and of outputs from the shapes of neighboring leaves.

The norm scale of one layer has one axis. If it has two, one of them counts the
layers, and all leaves of the subtree have an axis of that size at that place. A
bias has the sizes of the outputs of the matrix beside it.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sage_optax.leaves import names as names_lib
from sage_optax.leaves.axis_names import Axes

# (place, size) of an axis that may count layers.
_Axis = tuple[int, int]

_Shapes = Mapping[str, tuple[int, ...]]
# From a path to the axes of stacks of the leaf, and the evidence.
_BatchOf = Callable[[str], tuple[tuple[int, ...], str]]

AMBIGUOUS = -1
# A first axis that is not longer may be the width of a convolution.
_WIDEST = 9


class Proofs:
  """Finds the axis of a stack that a leaf belongs to.

  Args:
    shapes: path -> shape of all leaves.
    known: path -> the row of `names` that matches the leaf.
    scan_axis: the only possible place of the axis; None: 0 or 1.
  """

  def __init__(
    self,
    shapes: _Shapes,
    known: Mapping[str, names_lib.Known | None],
    scan_axis: int | None,
  ):
    self._shapes, self._known = shapes, known
    self._places = (0, 1) if scan_axis is None else (scan_axis,)
    self._candidates: dict[str, set[_Axis] | None] = {}
    self._members: dict[str, list[str]] = {}
    for path in shapes:
      for folder in _folders(path):
        self._members.setdefault(folder, []).append(path)

  def axis(self, path: str) -> int | None:
    """The place of the axis of layers; None or AMBIGUOUS if not proved."""
    proved: set[_Axis] = set()
    where = ''
    for folder in _folders(path):
      found = self._of_folder(folder)
      if found is None:
        continue
      if not found:
        break
      proved, where = found, folder
    if not proved or not self._has_matrix(where):
      return None
    if len(proved) == 1:
      return next(iter(proved))[0]
    # If both places fit: layers are in front, and fewer than features.
    by_place = dict(proved)
    if len(by_place) == 2 and by_place[0] < by_place[1]:
      return 0
    return AMBIGUOUS

  def _has_matrix(self, folder: str) -> bool:
    """Whether a folder has a matrix whose other axes are not those of heads.

    If all may be kernels of attention, a norm [heads, head_dim] proves nothing.
    """
    return any(
      len(self._shapes[path]) >= 3 and not self._may_have_heads(path)
      for path in self._members[folder]
    )

  def _may_have_heads(self, path: str) -> bool:
    known = self._known[path]
    layouts = () if known is None else known.layouts
    axes = len(self._shapes[path])
    return any(len(layout.split()) == axes for layout in layouts)

  def _of_folder(self, folder: str) -> set[_Axis] | None:
    """Axes that may count layers in a whole folder; None if unknown."""
    if folder not in self._candidates:
      members = self._members[folder]
      candidates = self._by_norms(members)
      if candidates is None:
        candidates = self._by_biases(members)
      if candidates is None:
        candidates = self._by_kernels(members)
      if candidates is not None:
        candidates = {
          axis
          for axis in candidates
          if axis[0] in self._places and self._fits(axis, members)
        }
      self._candidates[folder] = candidates
    return self._candidates[folder]

  def _fits(self, axis: _Axis, members: list[str]) -> bool:
    place, size = axis
    shapes = (self._shapes[path] for path in members)
    return all(len(s) > place and s[place] == size for s in shapes)

  def _by_norms(self, members: list[str]) -> set[_Axis] | None:
    scales = [
      self._shapes[path]
      for path in members
      if names_lib.NORM.search(path)
      and (known := self._known[path]) is not None
      and known.role == 'vector'
    ]
    if not scales:
      return None
    if any(len(shape) != 2 for shape in scales):
      return set()
    return {axis for shape in scales for axis in enumerate(shape)}

  def _by_biases(self, members: list[str]) -> set[_Axis] | None:
    found = set()
    for path in members:
      shape = self._shapes[path]
      bias = self._shapes.get(names_lib.bias_of(path))
      if bias is None or len(shape) < 3 or len(bias) < 2:
        continue
      if path.endswith('weight'):  # Equinox has biases [out, 1, 1].
        continue
      stacked = {
        (place, shape[place])
        for place in self._places
        if place < min(len(shape), len(bias))
        and shape[place] == bias[place]
        and _without(shape, place)[1 - len(bias) :] == _without(bias, place)
      }
      single = shape[-len(bias) :] == bias  # [in, out, out]
      if single and not stacked:
        return set()
      if not single:
        found |= stacked
    return found or None

  def _by_kernels(self, members: list[str]) -> set[_Axis] | None:
    shapes = [self._shapes[path] for path in members]
    if any(len(shape) != 3 for shape in shapes):
      return None
    for path in members:
      known = self._known[path]
      if known is None or any(len(x.split()) == 3 for x in known.layouts):
        return None
      if not names_lib.STACKS.search(path):  # It may be a convolution.
        return None
    if min(shapes[0]) <= _WIDEST and not all(
      names_lib.EXPERTS.search(path) for path in members
    ):
      return None
    found = {
      axis
      for place in (0, 1)
      if self._fits(axis := (place, shapes[0][place]), members)
    }
    rest = {axis: {_without(s, axis[0]) for s in shapes} for axis in found}
    # One maps from what another maps to.
    return {
      axis
      for axis in found
      if any(a != b and (b, a) in rest[axis] for a, b in rest[axis])
    } or None


class Beside(NamedTuple):
  """A leaf whose shape shows the outputs of the matrix beside it.

  Attributes:
    name: its name.
    shape: its shape.
    sizes: sizes above 1 of the matrix's axes of fan_out.
  """

  name: str
  shape: tuple[int, ...]
  sizes: tuple[int, ...]


def outputs_beside(
  path: str, shapes: _Shapes, batch_of: _BatchOf
) -> Beside | None:
  """Returns the leaf that shows the outputs of a matrix, or None.

  Args:
    path: path of the matrix.
    shapes: path -> shape of all leaves.
    batch_of: path -> axes of stacks of the leaf.
  """
  for other, beside in (
    ('bias', names_lib.bias_of(path)),
    ('linear', names_lib.linear_of(path)),
  ):
    if beside not in shapes:
      continue
    core = _core(beside, shapes, batch_of)
    if other == 'linear':  # It maps from the outputs of the gates.
      core = core[:1]
    return Beside(other, shapes[beside], tuple(n for n in core if n > 1))
  return None


def _core(path: str, shapes: _Shapes, batch_of: _BatchOf) -> tuple[int, ...]:
  """The sizes of the axes that are not of stacks."""
  batch, _ = batch_of(path)
  return tuple(n for a, n in enumerate(shapes[path]) if a not in batch)


def like_table(
  path: str, shape: tuple[int, ...], batch: tuple[int, ...]
) -> bool:
  """Whether a matrix is long and its name is not that of a projection."""
  if len(shape) != 2 or batch:
    return False
  long = shape[0] > max(8 * shape[1], 1000)
  return long and not names_lib.PROJECTION.search(path)


def heads_doubt(
  path: str, axes: Axes, shapes: _Shapes, batch_of: _BatchOf
) -> str:
  """Why the axes of a leaf of Flax's attention are unclear, or ''."""
  kernel = names_lib.kernel_of(path)
  if kernel in shapes and len(axes.fan_out) > 1:
    heads = _core(path, shapes, batch_of)
    if _core(kernel, shapes, batch_of)[-len(heads) :] != heads:
      return f'the kernel beside it is {shapes[kernel]}'
  sides = len(axes.fan_in), len(axes.fan_out)
  if sum(sides) != 3 or 0 in sides:
    return ''
  inputs, outputs = (
    math.prod(shapes[path][a] for a in side) for side in axes[1:]
  )
  # Heads divide the width, or a few times the width.
  wide = (outputs if sides == (1, 2) else inputs) > 16 * min(inputs, outputs)
  attends = names_lib.HEADS.search(path) is not None
  if attends and wide and outputs_beside(path, shapes, batch_of) is None:
    return 'it is too wide for heads: an axis may count layers'
  query, out = names_lib.query_and_out(path)
  if query not in shapes or out not in shapes:
    return ''
  kernels = shapes[query], shapes[out]
  if len(kernels[0]) != len(kernels[1]):
    return ''
  wanted = tuple(
    n for i, n in enumerate(kernels[1][:-1]) if i not in axes.batch
  )
  if wanted == kernels[0][-2:]:
    return ''
  other = 'query' if path == out else 'out'
  beside = kernels[0] if path == out else kernels[1]
  return f'the kernel of {other} beside it is {beside}'


def _folders(path: str) -> list[str]:
  """The folders of a path, the innermost first; '' is the root."""
  parts = path.split('/')[:-1]
  return ['/'.join(parts[:i]) for i in range(len(parts), -1, -1)]


def _without(shape: tuple[int, ...], place: int) -> tuple[int, ...]:
  return shape[:place] + shape[place + 1 :]
