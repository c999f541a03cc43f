"""Where `sharding.with_mesh` tells the matrix methods how to use the devices.

Methods know no mesh. Around an update, `with_mesh` says which mesh there is and
how each parameter is sharded on it; the work that wants whole matrices asks
here. Without it, the functions here do nothing.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Placement(NamedTuple):
  """A parameter's shape, and its spec on a mesh."""

  mesh: jax.sharding.Mesh
  spec: jax.P
  shape: tuple[int, ...]


_placements: contextvars.ContextVar[dict[str, Placement]]
_placements = contextvars.ContextVar('placements', default={})  # noqa: B039
_leaf: contextvars.ContextVar[str | None]
_leaf = contextvars.ContextVar('leaf', default=None)


@contextlib.contextmanager
def scope(placements: dict[str, Placement]) -> Iterator[None]:
  """Makes placements known, by `jax.tree_util.keystr` of the leaf's path."""
  token = _placements.set(placements)
  try:
    yield
  finally:
    _placements.reset(token)


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """As `jax.tree.map`; within `function` its leaf's placement is known."""

  def with_leaf(path, *leaves):
    token = _leaf.set(jax.tree_util.keystr(path))
    try:
      return function(*leaves)
    finally:
      _leaf.reset(token)

  return jax.tree_util.tree_map_with_path(with_leaf, tree, *rest)


def whole_matrices(
  function: Callable[..., jax.Array], *arrays: jax.Array
) -> jax.Array:
  """Calls `function` on stacked matrices that each lie whole on one device.

  The mesh axes that shard the matrices shard the layer axis for as long: one
  all-to-all in and one out, where products of sharded matrices would gather
  them each time. A layer axis that the devices do not divide is padded; one
  that is much shorter than their number takes only some of the mesh axes.

  Args:
    function: takes and returns arrays [layers, ..., a, b], layer by layer.
    arrays: its arguments; the first has the shape of the parameter.

  Returns:
    What `function` returns.
  """
  placement = _placements.get().get(_leaf.get() or '')
  first = arrays[0]
  if placement is None or first.ndim < 3 or first.shape != placement.shape:
    return function(*arrays)
  mesh, spec, _ = placement
  layers = first.shape[0]
  moved = _axes_for_layers(mesh, spec, first.ndim, layers)
  if not moved:
    return function(*arrays)
  sizes = {name: mesh.shape[name] for name in moved}
  parts = math.prod(sizes.values())
  sides = [
    [name for name in names if name in moved]
    for names in _matrix_names(spec, first.ndim)
  ]

  def local(x, *others):
    return _to_matrices(function(_to_layers(x, sizes, sides), *others))

  def _to_matrices(x):
    return _from_layers(x, sizes, sides) if alike else x

  arrays = tuple(_padded(x, parts) for x in arrays)
  alike = jax.eval_shape(function, *arrays).shape == arrays[0].shape
  by_matrix = jax.P(*(None,) * (first.ndim - 2), *(tuple(s) for s in sides))
  by_layer = jax.P(moved)
  result = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(by_matrix, *(by_layer,) * (len(arrays) - 1)),
    out_specs=by_matrix if alike else by_layer,
    axis_names=set(moved),
    check_vma=False,
  )(*arrays)
  return result[:layers]


def on_whole(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`function`, called through `whole_matrices`."""
  return functools.partial(whole_matrices, function)


def _to_layers(x, sizes, sides):
  """From a block of all matrices to whole matrices of a block of layers."""
  names, parts = tuple(sizes), math.prod(sizes.values())
  layers, *batch, a, b = x.shape
  x = x.reshape(parts, layers // parts, *batch, a, b)
  x = jax.lax.all_to_all(x, names, 0, 0, tiled=True)
  # Which device a block came from is where it lies in the matrix.
  x = x.reshape(*sizes.values(), layers // parts, *batch, a, b)
  k = len(names)
  order = _order(names, sides, k, x.ndim)
  x = x.transpose(order)
  a, b = (
    size * math.prod(sizes[name] for name in side)
    for size, side in zip((a, b), sides, strict=True)
  )
  return x.reshape(layers // parts, *batch, a, b)


def _from_layers(x, sizes, sides):
  """The inverse of `_to_layers`."""
  names, parts = tuple(sizes), math.prod(sizes.values())
  layers, *batch, a, b = x.shape
  split = []
  for size, side in zip((a, b), sides, strict=True):
    blocks = [sizes[name] for name in side]
    split += [*blocks, size // math.prod(blocks)]
  x = x.reshape(layers, *batch, *split)
  order = _order(names, sides, len(names), x.ndim)
  x = x.transpose([order.index(i) for i in range(x.ndim)])
  *_, a, b = x.shape
  x = x.reshape(parts, layers, *batch, a, b)
  x = jax.lax.all_to_all(x, names, 0, 0, tiled=True)
  return x.reshape(parts * layers, *batch, a, b)


def _order(names, sides, k, ndim):
  """Axes [*names, layers, *batch, a, b] as [layers, *batch, *, a, *, b]."""
  first, second = ([names.index(name) for name in side] for side in sides)
  return [*range(k, ndim - 2), *first, ndim - 2, *second, ndim - 1]


def _padded(x, parts):
  return jnp.pad(x, [(0, -x.shape[0] % parts)] + [(0, 0)] * (x.ndim - 1))


def _axes_for_layers(mesh, spec, ndim, layers: int) -> tuple[str, ...]:
  """The mesh axes of the matrices that the layer axis can take."""
  if spec and _names(spec[0]):
    return ()  # The layers are shared out already.
  names = [name for side in _matrix_names(spec, ndim) for name in side]
  choices = itertools.chain.from_iterable(
    itertools.combinations(names, k) for k in range(len(names) + 1)
  )

  def parts(chosen):
    return math.prod(mesh.shape[name] for name in chosen)

  # Half of the devices may idle: whole matrices are worth that.
  chosen = max((c for c in choices if parts(c) < 2 * layers), key=parts)
  return chosen if parts(chosen) > 1 else ()


def _matrix_names(spec, ndim) -> list[tuple[str, ...]]:
  """The mesh axes that shard the last two axes."""
  entries = (*spec, *(None,) * (ndim - len(spec)))
  return [_names(entry) for entry in entries[-2:]]


def _names(entry: Any) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else tuple(entry or ())
