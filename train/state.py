"""The state of a run: shapes, shardings, creation and checksums."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import sage_optax
from models import llama
from train.mesh import named

_BLOCK = 2**16  # Elements that stay in a CPU's cache.


class TrainState(NamedTuple):
  """Input and output of a step; also the tree of its shapes or specs.

  Attributes:
    step: int32 scalar, the number of steps taken.
    params: The parameters, nested dicts.
    opt_state: The optimizer's state.
  """

  step: Any
  params: Any
  opt_state: Any


def abstract_params(config: llama.LlamaConfig) -> Any:
  """Returns the ShapeDtypeStructs of the parameters."""
  return jax.eval_shape(lambda: llama.init(jax.random.key(0), config))


def abstract_state(
  config: llama.LlamaConfig, tx: optax.GradientTransformation
) -> TrainState:
  """Returns the ShapeDtypeStructs of a state; nothing is allocated."""
  return jax.eval_shape(lambda: _init(0, config, tx))


def state_specs(
  tx: optax.GradientTransformation, params: Any, param_specs: Any, mesh: Mesh
) -> TrainState:
  """Returns a TrainState of PartitionSpecs."""
  opt_specs = sage_optax.sharding.state_specs(
    tx, params, param_specs, mesh.shape
  )
  return TrainState(P(), param_specs, opt_specs)


def state_shardings(
  tx: optax.GradientTransformation, params: Any, param_specs: Any, mesh: Mesh
) -> TrainState:
  """Returns a TrainState of NamedShardings."""
  return named(state_specs(tx, params, param_specs, mesh), mesh)


def init_state(
  seed: int,
  config: llama.LlamaConfig,
  tx: optax.GradientTransformation,
  shardings: TrainState,
) -> TrainState:
  """Creates the state before step 0, sharded."""
  return jit_init(config, tx, shardings)(seed)


def state_of(
  params: Any, tx: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
  """Creates the state before step 0 from given parameters.

  Args:
    params: Arrays sharded like `shardings.params`; they are donated.
    tx: The optimizer.
    shardings: Shardings of the state.
  """

  def make(params):
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

  return jax.jit(make, out_shardings=shardings, donate_argnums=0)(params)


def jit_init(
  config: llama.LlamaConfig,
  tx: optax.GradientTransformation,
  shardings: TrainState,
) -> Any:
  """Returns the jitted function seed -> state that init_state calls."""
  return jax.jit(lambda s: _init(s, config, tx), out_shardings=shardings)


def _init(
  seed: int | jax.Array,
  config: llama.LlamaConfig,
  tx: optax.GradientTransformation,
) -> TrainState:
  params = llama.init(jax.random.key(seed), config)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def checksums(state: Any) -> dict[str, int]:
  """Returns a checksum of the bits of each leaf.

  The checksum is the sum, modulo 2**32, over the elements i of a bijective mix
  of the bits of element i and a hash of i. So it does not depend on how the
  leaf is sharded. A change of one element always changes it; any other change
  leaves it the same with probability 2**-32.

  Args:
    state: A tree of arrays.

  Returns:
    A dict from a leaf's path, such as 'params/embed', to its checksum.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves
  ]
  shardings = tuple(getattr(x, 'sharding', None) for _, x in leaves)
  sums = _jit_checksums(shardings)([x for _, x in leaves])
  return dict(zip(names, np.asarray(sums).tolist(), strict=True))


@functools.cache
def _jit_checksums(shardings: tuple[Any, ...]) -> Any:
  if not all(isinstance(s, NamedSharding) for s in shardings):
    return jax.jit(lambda xs: jnp.stack([_checksum(x, P()) for x in xs]))
  specs = [s.spec for s in shardings]

  def local(xs):
    return jnp.stack([_checksum(x, s) for x, s in zip(xs, specs, strict=True)])

  # Per shard, because the loop below would gather a sharded array.
  return jax.jit(
    jax.shard_map(
      local,
      mesh=shardings[0].mesh,
      in_specs=(specs,),
      out_specs=P(),
      check_vma=False,
    )
  )


def _checksum(x: jax.Array, spec: P) -> jax.Array:
  """Returns the sum over all shards; called with one, in `shard_map`."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  if x.dtype.itemsize == 8:  # The bitcast adds an axis.
    x = lax.bitcast_convert_type(x, bits)
  x = x.reshape(x.shape or (1,))
  places = _places(x.shape, spec)
  rows, width = math.prod(x.shape[:-1]), x.shape[-1]
  x = x.reshape(rows, width)

  def mix(first, size):
    part = lax.bitcast_convert_type(
      lax.dynamic_slice_in_dim(x, first, size), bits
    ).astype(jnp.uint32)
    place = lax.dynamic_slice_in_dim(places[0], first, size)
    part = part ^ (place[:, None] + places[1][None, :])
    # The last steps of MurmurHash3.
    part = (part ^ (part >> 16)) * np.uint32(0x85EBCA6B)
    part = (part ^ (part >> 13)) * np.uint32(0xC2B2AE35)
    return part ^ (part >> 16)

  # In blocks: XLA on CPU would write the mix of the whole array to memory.
  size = min(max(1, _BLOCK // width), rows)
  blocks = rows // size
  total = lax.fori_loop(
    0,
    blocks,
    lambda i, total: total + mix(i * size, size),
    jnp.zeros((size, width), jnp.uint32),
  ).sum(dtype=jnp.uint32)
  if rest := rows - blocks * size:
    total += mix(blocks * size, rest).sum(dtype=jnp.uint32)
  axes = tuple(name for entry in spec for name in _names(entry))
  return lax.psum(total, axes) if axes else total


def _names(entry: Any) -> tuple[str, ...]:
  """The mesh axes of one entry of a PartitionSpec."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _places(shape: tuple[int, ...], spec: P) -> tuple[jax.Array, jax.Array]:
  """Returns hashes of the positions in the whole array, by row and column."""
  entries = [*spec, *[None] * (len(shape) - len(spec))]
  stride = 0x9E3779B1
  axes: list[jax.Array] = []
  for size, entry in reversed(list(zip(shape, entries, strict=True))):
    place = lax.iota(jnp.uint32, size)
    if names := _names(entry):
      shard = lax.axis_index(names).astype(jnp.uint32)
      place = place + shard * np.uint32(size)
    axes.insert(0, place * np.uint32(stride))
    stride = stride * 0x2C1B3C6D % 2**32
  rows = jnp.zeros((1,), jnp.uint32)
  for place in axes[:-1]:
    rows = (rows[:, None] + place[None, :]).reshape(-1)
  return rows, axes[-1]
