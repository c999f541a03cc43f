"""Where `sharding.with_mesh` tells the matrix methods how to use the devices.

Methods know no mesh. Around an update, `with_mesh` says which mesh there is and
how each parameter is sharded on it; the work that wants whole matrices asks
here. Without it, `one_device` goes by the process, and the rest does nothing.
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

from sage_optax.core import linalg


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


def rescope(views: Any) -> contextlib.AbstractContextManager[None]:
  """Makes known where leaves lie that are seen in another layout.

  Args:
    views: tree of `layout` views by leaf, or None where it is seen as it is.
  """
  placements = dict(_placements.get())
  for path, view in jax.tree.leaves_with_path(views):
    key = jax.tree_util.keystr(path)
    if known := placements.get(key):
      placements[key] = Placement(
        known.mesh, view.merged_spec(known.spec), view.merged(known.shape)
      )
  return scope(placements)


@contextlib.contextmanager
def leaf(path: tuple[Any, ...]) -> Iterator[None]:
  """Says which leaf the work within is for."""
  token = _leaf.set(jax.tree_util.keystr(path))
  try:
    yield
  finally:
    _leaf.reset(token)


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """As `jax.tree.map`; within `function` its leaf's placement is known."""

  def with_leaf(path, *leaves):
    with leaf(path):
      return function(*leaves)

  return jax.tree_util.tree_map_with_path(with_leaf, tree, *rest)


def placement(x: Any) -> Placement | None:
  """Where the array of this leaf lies, if that is known."""
  found = _placements.get().get(_leaf.get() or '')
  return found if found is not None and found.shape == x.shape else None


def sharded_as(like: jax.Array, x: jax.Array) -> jax.Array:
  """`x`, its axes sharded as those of `like` that have their size, if known."""
  known = placement(like)
  if known is None or in_shard_map():
    return x
  spec = linalg.aligned_spec(known.spec, known.shape, x.shape)
  sharding = jax.sharding.NamedSharding(known.mesh, spec)
  return jax.lax.with_sharding_constraint(x, sharding)


def one_device(x: Any) -> bool:
  """Whether compiled work on `x` is for one device, as far as can be known."""
  if not isinstance(x, jax.core.Tracer) or in_shard_map():
    return False  # Loops over blocks would be compiled anew in each call.
  if linalg.explicit_sharding(x) is not None:
    return False
  mesh = jax.typeof(x).sharding.mesh
  if not mesh.empty and mesh.size > 1:
    return False
  for known in _placements.get().values():
    return known.mesh.size == 1
  return jax.device_count() == 1


def in_shard_map() -> bool:
  """Whether the work is for shards already, so that a mesh is no use."""
  mesh = jax.sharding.get_abstract_mesh()
  return jax.sharding.AxisType.Manual in (mesh.axis_types or ())


def platform() -> str | None:
  """'cpu', 'gpu' or 'tpu': what the mesh consists of, or what there is.

  None: not known. Without a mesh the program may be for other devices, ahead of
  time: then this must not decide alone.
  """
  for known in _placements.get().values():
    if isinstance(known.mesh, jax.sharding.AbstractMesh):
      return None
    return known.mesh.devices.flat[0].platform
  return jax.devices()[0].platform


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
  first = arrays[0]
  known = placement(first)
  if known is None or first.ndim < 3:
    return function(*arrays)
  mesh, spec, _ = known
  layers = first.shape[0]
  moved = _axes_for_layers(mesh, spec, first.ndim, layers)
  if not moved:
    return function(*arrays)
  parts = math.prod(mesh.shape[name] for name in moved)
  arrays = tuple(_padded(x, parts) for x in arrays)
  out = jax.eval_shape(function, *arrays)
  sides = [_sides(moved, spec, first.shape, x.shape) for x in (*arrays, out)]
  # In this order the axes that do not shard the result vary fastest.
  moved = tuple(sorted(moved, key=lambda name: name not in sum(sides[-1], ())))
  for names in sides:  # So each array's own axes come before the others'.
    kept = sum(names, ())
    assert set(kept) == set(moved[: len(kept)]), (moved, sides)
  sizes = {name: mesh.shape[name] for name in moved}

  def local(*blocks):
    whole = (
      _to_layers(x, sizes, s) for x, s in zip(blocks, sides[:-1], strict=True)
    )
    return _from_layers(function(*whole), sizes, sides[-1])

  specs = [jax.P(*(None,) * (first.ndim - 2), *s) for s in sides]
  result = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=tuple(specs[:-1]),
    out_specs=specs[-1],
    axis_names=set(moved),
    check_vma=False,
  )(*arrays)
  return result[:layers]


def on_whole(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`function`, called through `whole_matrices`."""
  return functools.partial(whole_matrices, function)


def _to_layers(x, sizes, sides):
  """From a block of all matrices to whole matrices of a block of layers."""
  names = tuple(name for name in sizes if name in sum(sides, ()))
  blocks = [sizes[name] for name in names]
  parts = math.prod(blocks)
  layers, *batch, a, b = x.shape
  x = x.reshape(parts, layers // parts, *batch, a, b)
  if names:
    x = jax.lax.all_to_all(x, names, 0, 0, tiled=True)
  # Which device a block came from is where it lies in the matrix.
  x = x.reshape(*blocks, layers // parts, *batch, a, b)
  x = x.transpose(_order(names, sides, x.ndim))
  a, b = (
    size * math.prod(sizes[name] for name in side)
    for size, side in zip((a, b), sides, strict=True)
  )
  x = x.reshape(layers // parts, *batch, a, b)
  for name in sizes:
    if name not in names:  # The same on all devices: each takes its layers.
      size = x.shape[0] // sizes[name]
      start = jax.lax.axis_index(name) * size
      x = jax.lax.dynamic_slice_in_dim(x, start, size)
  return x


def _from_layers(x, sizes, sides):
  """The inverse of `_to_layers`."""
  names = tuple(name for name in sizes if name in sum(sides, ()))
  rest = tuple(name for name in sizes if name not in names)
  if rest:
    x = jax.lax.all_gather(x, rest, axis=0, tiled=True)
  layers, *batch, a, b = x.shape
  split = []
  for size, side in zip((a, b), sides, strict=True):
    blocks = [sizes[name] for name in side]
    split += [*blocks, size // math.prod(blocks)]
  x = x.reshape(layers, *batch, *split)
  order = _order(names, sides, x.ndim)
  x = x.transpose([order.index(i) for i in range(x.ndim)])
  parts = math.prod(sizes[name] for name in names)
  *_, a, b = x.shape
  x = x.reshape(parts, layers, *batch, a, b)
  if names:
    x = jax.lax.all_to_all(x, names, 0, 0, tiled=True)
  return x.reshape(parts * layers, *batch, a, b)


def _order(names, sides, ndim):
  """Axes [*names, layers, *batch, a, b] as [layers, *batch, *, a, *, b]."""
  first, second = ([names.index(name) for name in side] for side in sides)
  batch = range(len(names), ndim - 2)
  return [*batch, *first, ndim - 2, *second, ndim - 1]


def _sides(moved, spec, shape, other):
  """Those of `moved` that shard the last two axes of an array.

  Args:
    moved: names of mesh axes.
    spec: of the parameter.
    shape: the parameter's.
    other: the array's shape; an axis of another size is not sharded.
  """
  return tuple(
    tuple(n for n in names if n in moved) if a == b else ()
    for names, a, b in zip(
      matrix_names(spec, len(shape)), shape[-2:], other[-2:], strict=True
    )
  )


def _padded(x, parts):
  return jnp.pad(x, [(0, -x.shape[0] % parts)] + [(0, 0)] * (x.ndim - 1))


def _axes_for_layers(mesh, spec, ndim, layers: int) -> tuple[str, ...]:
  """The mesh axes of the matrices that the layer axis can take."""
  if spec and linalg.mesh_axes(spec[0]):
    return ()  # The layers are shared out already.
  names = [name for side in matrix_names(spec, ndim) for name in side]
  choices = itertools.chain.from_iterable(
    itertools.combinations(names, k) for k in range(len(names) + 1)
  )

  def parts(chosen):
    return math.prod(mesh.shape[name] for name in chosen)

  # Half of the devices may idle: whole matrices are worth that.
  fitting = (c for c in choices if parts(c) < 2 * layers)
  chosen = max(fitting, key=parts, default=())
  return chosen if parts(chosen) > 1 else ()


def matrix_names(spec, ndim) -> list[tuple[str, ...]]:
  """The mesh axes that shard the last two axes."""
  entries = (*spec, *(None,) * (ndim - len(spec)))
  return [linalg.mesh_axes(entry) for entry in entries[-2:]]
