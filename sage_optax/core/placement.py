"""How parameters are sharded; `sharding.with_mesh` passes it to the methods.

Methods know no mesh. `with_mesh` passes an extra argument `placements` to their
`update`: the mesh, and how each parameter is sharded on it. Without it, every
method uses the form that XLA can shard on any devices.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sage_optax.core import linalg


class Placement(NamedTuple):
  """A parameter's shape, and its spec on a mesh."""

  mesh: jax.sharding.Mesh
  spec: jax.P
  shape: tuple[int, ...]


# Keys are `jax.tree_util.keystr` of the leaf's path: under `optax.partition`, a
# method sees only a part of the tree, with the paths of the whole tree.
Placements = Mapping[str, Placement]


def as_matrices(placements: Placements | None, views: Any) -> Placements | None:
  """The placements of leaves viewed in another layout.

  Args:
    placements: placements of the leaves in their own layout.
    views: tree with the view of each leaf, or None for unchanged leaves.
  """
  if placements is None:
    return None
  seen = dict(placements)
  for path, view in jax.tree.leaves_with_path(views):
    key = jax.tree_util.keystr(path)
    if known := placements.get(key):
      seen[key] = Placement(
        known.mesh, view.merged_spec(known.spec), view.merged(known.shape)
      )
  return seen


def tree_map(
  function: Callable[..., Any],
  placements: Placements | None,
  tree: Any,
  *rest: Any,
) -> Any:
  """As `jax.tree.map`, with `function(placement or None, leaf, ...)`."""

  def with_place(path, leaf, *leaves):
    place = (placements or {}).get(jax.tree_util.keystr(path))
    if place is not None and place.shape != jnp.shape(leaf):
      place = None
    return function(place, leaf, *leaves)

  return jax.tree_util.tree_map_with_path(with_place, tree, *rest)


def sharded_as(place: Placement | None, x: jax.Array) -> jax.Array:
  """Shards the axes of `x` like axes of the parameter with the same size."""
  if place is None or in_shard_map():
    return x
  spec = linalg.aligned_spec(place.spec, place.shape, x.shape)
  sharding = jax.sharding.NamedSharding(place.mesh, spec)
  return jax.lax.with_sharding_constraint(x, sharding)


def on_one_device(place: Placement | None, x: Any) -> bool:
  """Whether `x` is known to be compiled for one device."""
  if place is None or place.mesh.size > 1:
    return False
  # Outside `jit`, loops over blocks would be compiled again in each call.
  return isinstance(x, jax.core.Tracer) and not in_shard_map()


def in_shard_map() -> bool:
  """Whether the current code is traced inside `shard_map`."""
  mesh = jax.sharding.get_abstract_mesh()
  return jax.sharding.AxisType.Manual in (mesh.axis_types or ())


def whole_matrices(
  function: Callable[..., jax.Array],
  place: Placement | None,
  *arrays: jax.Array,
) -> jax.Array:
  """Calls `function` on stacked matrices, each of which is whole on one device.

  During the call, the mesh axes that shard the matrices shard the layer axis
  instead. This takes one all-to-all before and one after, whereas products of
  sharded matrices would gather them each time. A layer axis that the devices do
  not divide is padded; one that is much shorter than their number uses only
  some of the mesh axes.

  Args:
    function: maps arrays [layers, ..., a, b] to such arrays, independently for
      each layer.
    place: how the parameter is sharded; None: call `function` directly.
    arrays: arguments of `function`; the first has the shape of the parameter.

  Returns:
    The result of `function`.
  """
  first = arrays[0]
  if place is None or first.ndim < 3 or in_shard_map():
    return function(*arrays)
  mesh, spec, _ = place
  layers = first.shape[0]
  moved = _axes_for_layers(mesh, spec, first.ndim, layers)
  if not moved:
    return function(*arrays)
  parts = math.prod(mesh.shape[name] for name in moved)
  arrays = tuple(_padded(x, parts) for x in arrays)
  out = jax.eval_shape(function, *arrays)
  sides = [_sides(moved, spec, first.shape, x.shape) for x in (*arrays, out)]
  # In this order, axes that do not shard the result vary fastest.
  moved = tuple(sorted(moved, key=lambda name: name not in sum(sides[-1], ())))
  for names in sides:  # Each array's own axes come before the others.
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


def on_whole(
  function: Callable[..., jax.Array], place: Placement | None
) -> Callable[..., jax.Array]:
  """`function`, called through `whole_matrices`."""
  return functools.partial(whole_matrices, function, place)


def _to_layers(x, sizes, sides):
  """Turns a block of all matrices into whole matrices of some layers."""
  names = tuple(name for name in sizes if name in sum(sides, ()))
  blocks = [sizes[name] for name in names]
  parts = math.prod(blocks)
  layers, *batch, a, b = x.shape
  x = x.reshape(parts, layers // parts, *batch, a, b)
  if names:
    x = jax.lax.all_to_all(x, names, 0, 0, tiled=True)
  # The device that a block came from determines its position in the matrix.
  x = x.reshape(*blocks, layers // parts, *batch, a, b)
  x = x.transpose(_order(names, sides, x.ndim))
  a, b = (
    size * math.prod(sizes[name] for name in side)
    for size, side in zip((a, b), sides, strict=True)
  )
  x = x.reshape(layers // parts, *batch, a, b)
  for name in sizes:
    if name not in names:  # The same on all devices: each keeps its layers.
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
  """The axes of `moved` that shard the last two axes of an array.

  Args:
    moved: names of mesh axes.
    spec: the parameter's spec.
    shape: the parameter's shape.
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
  """The mesh axes of the matrices that can shard the layer axis."""
  if spec and linalg.mesh_axes(spec[0]):
    return ()  # The layers are already sharded.
  names = [name for side in matrix_names(spec, ndim) for name in side]
  choices = itertools.chain.from_iterable(
    itertools.combinations(names, k) for k in range(len(names) + 1)
  )

  def parts(chosen):
    return math.prod(mesh.shape[name] for name in chosen)

  # Half of the devices may be idle: whole matrices are worth that.
  fitting = (c for c in choices if parts(c) < 2 * layers)
  chosen = max(fitting, key=parts, default=())
  return chosen if parts(chosen) > 1 else ()


def matrix_names(spec, ndim) -> list[tuple[str, ...]]:
  """The mesh axes that shard the last two axes."""
  entries = (*spec, *(None,) * (ndim - len(spec)))
  return [linalg.mesh_axes(entry) for entry in entries[-2:]]
