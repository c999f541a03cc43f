"""How mesh axes shard the axes of parameters and activations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from models import layers, llama
from train.config import Config, check_mesh, mesh_shape
from train.errors import UserError

AXES = ('data', 'fsdp', 'tensor')

# The axes of a parameter. 'fsdp' splits every matrix along the model's width;
# it is gathered for use. 'tensor' splits what a layer computes.
PARAMETER_AXES: dict[str, str | None] = {
  'layers': None,  # the scan walks along it
  'embed': 'fsdp',  # the residual stream's width
  'heads': 'tensor',  # query heads x head size
  'kv_heads': 'tensor',  # key and value heads x head size
  'mlp': 'tensor',  # the hidden units of the feed-forward block
  'vocab': 'tensor',  # rows of the embedding, columns of the head
}

# The axes of an activation. The batch is split over 'fsdp' too, so that the
# width is whole.
ACTIVATION_AXES: dict[str, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'sequence': None,
  'embed': None,
  # The result of the lookup is split over 'fsdp' like the embedding. Without
  # this step, XLA would replicate it before splitting the batch.
  'lookup_batch': 'data',
  'lookup_embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'vocab': 'tensor',
}


@dataclasses.dataclass(frozen=True)
class Replicated:
  """An axis of a parameter that the mesh does not divide."""

  path: str
  axis: str
  size: int
  mesh_axis: str
  mesh_size: int

  def __str__(self) -> str:
    return (
      f'{self.path}: {self.axis} of size {self.size} is not divisible by '
      f'{self.mesh_axis}={self.mesh_size}'
    )


def resolve_platform(name: str) -> str:
  """Returns 'cpu', 'gpu' or 'tpu' for `config.train.platform`.

  Only main and plan call this; all other modules receive the platform.
  """
  found = jax.default_backend()
  if name not in ('auto', found):
    raise UserError(
      f'config.train.platform is {name!r}, and JAX runs on {found!r}: '
      f'install JAX for {name}, or set it to auto'
    )
  return found


def make_mesh(config: Config, devices: Sequence[jax.Device]) -> Mesh:
  """Returns the mesh of a configuration over the devices.

  Raises:
    UserError: if the axes do not multiply to the number of devices, or do not
      divide a batch.
  """
  shape = mesh_shape(config, len(devices))
  check_mesh(config, shape)
  return Mesh(
    np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3
  )


def axis_units(config: llama.LlamaConfig) -> dict[str, int]:
  """Returns the number of heads, for axes that split between heads only."""
  heads = config.num_heads
  return {'heads': heads, 'kv_heads': config.num_kv_heads or heads}


def param_specs(
  logical_axes: Any,
  shapes: Any,
  mesh: Mesh,
  *,
  strict: bool = False,
  units: Mapping[str, int] | None = None,
) -> tuple[Any, tuple[Replicated, ...]]:
  """Returns a PartitionSpec per parameter, by PARAMETER_AXES.

  Args:
    logical_axes: A tree whose leaves are tuples of axis names.
    shapes: A tree of arrays or ShapeDtypeStructs.
    mesh: The mesh.
    strict: Whether an axis that the mesh does not divide is an error.
    units: The number of units along a logical axis, if it is not the size.

  Returns:
    The tree of specs, and the axes replicated because the mesh does not
    divide them.
  """
  replicated: list[Replicated] = []

  def spec_of(path, leaf, names):
    entries: list[str | None] = []
    for name, size in zip(names, leaf.shape, strict=True):
      axis = PARAMETER_AXES[name]
      count = (units or {}).get(name, size)
      if axis and count % mesh.shape[axis]:
        where = jax.tree_util.keystr(path, simple=True, separator='/')
        args = (where, name, count, axis, mesh.shape[axis])
        replicated.append(Replicated(*args))
        axis = None
      entries.append(axis)
    return P(*entries)

  specs = jax.tree_util.tree_map_with_path(spec_of, shapes, logical_axes)
  if strict and replicated:
    raise UserError(
      f'{replicated[0]} ({len(replicated)} such axes): change config.mesh, or '
      'set config.mesh.strict=false to replicate them'
    )
  return specs, tuple(replicated)


def wanted_specs(logical_axes: Any) -> Any:
  """Returns a PartitionSpec per parameter for a mesh that divides all axes."""
  return jax.tree.map(
    lambda names: P(*(PARAMETER_AXES[name] for name in names)),
    logical_axes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def named(specs: Any, mesh: Mesh) -> Any:
  """Turns a tree of PartitionSpecs into one of NamedShardings."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, P),
  )


def batch_spec() -> P:
  """Returns the spec of tokens[batch, sequence]."""
  return P(ACTIVATION_AXES['batch'], ACTIVATION_AXES['sequence'])


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of tokens[batch, sequence]."""
  return NamedSharding(mesh, batch_spec())


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
  """Returns the rows of a batch that this process's devices hold.

  If 'tensor' spans several processes, they hold the same rows.
  """
  sharding = batch_sharding(mesh)
  indices = sharding.addressable_devices_indices_map((batch_size, 1))
  rows: set[int] = set()
  for index in indices.values():
    assert index is not None
    rows.update(range(*index[0].indices(batch_size)))
  return sorted(rows)


def put_batch(
  batch: np.ndarray,
  mesh: Mesh,
  rows: Sequence[int] | None = None,
  batch_size: int | None = None,
) -> jax.Array:
  """Places a batch.

  Args:
    batch: Tokens [rows, S + 1].
    mesh: The mesh.
    rows: Indices of these rows in the whole batch, at least `local_rows`; None
      if `batch` is the whole batch.
    batch_size: Number of rows of the whole batch; None if `batch` is the whole
      batch.

  Returns:
    The whole batch, tokens[batch_size, S + 1].
  """
  shape = (len(batch) if batch_size is None else batch_size, *batch.shape[1:])
  at = np.arange(shape[0]) if rows is None else np.asarray(rows)

  def part(index):
    wanted = np.arange(shape[0])[index[0]]
    return batch[np.searchsorted(at, wanted)][:, index[1]]

  return jax.make_array_from_callback(shape, batch_sharding(mesh), part)


def constrain(mesh: Mesh) -> Callable[[jax.Array, tuple], jax.Array]:
  """Returns the model's hook that shards an activation by its axis names.

  Axes that the mesh does not divide, and those named None, are not sharded.
  """

  def constrain_fn(x, axes):
    spec = _activation_spec(mesh, axes, x.shape)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  return constrain_fn


def _activation_spec(mesh: Mesh, axes: tuple, shape: tuple[int, ...]) -> P:
  """Returns the spec of an activation; axes that do not divide are None."""
  entries = []
  for name, size in zip(axes, shape, strict=True):
    entry = ACTIVATION_AXES[name] if name else None
    names = (entry,) if isinstance(entry, str) else entry or ()
    parts = int(np.prod([mesh.shape[axis] for axis in names]))
    entries.append(None if size % parts else entry)
  return P(*entries)


def attend_per_shard(mesh: Mesh, attend: layers.Attend) -> layers.Attend:
  """Returns an attention that runs on each device for its rows and heads.

  Kernels need this, because the compiler cannot partition them.

  Args:
    mesh: The mesh.
    attend: (q[B, L, H, D], k[B, L, K, D], v[B, L, K, D]) -> [B, L, H, D].

  Returns:
    The same function for arrays on the mesh.
  """

  def attend_fn(q, k, v):
    spec, key_spec = (
      _activation_spec(mesh, ('batch', 'sequence', heads, None), x.shape)
      for heads, x in (('heads', q), ('kv_heads', k))
    )
    if key_spec != spec:
      # The mesh does not divide the key heads: repeat them per query head.
      k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    return jax.shard_map(
      attend,
      mesh=mesh,
      in_specs=(spec,) * 3,
      out_specs=spec,
      check_vma=False,  # Kernels do not declare the axes they vary over.
    )(q, k, v)

  return attend_fn
