"""Pallas kernels for TPUs that compute the scales of SinkGD."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sage_optax.core.sinkhorn_scales import Options, Scales
from sage_optax.kernels.sinkhorn_reads import floor, rescale
from sage_optax.kernels.sinkhorn_tpu_tiles import add_squares


class Chip(NamedTuple):
  """A device: bytes of VMEM per core, and cores.

  v5p and tpu7x have 64 MiB, v5e and v6e have 128 MiB, v4 has 16 MiB.
  """

  vmem: int = 64 * 2**20
  cores: int = 1


class Plan(NamedTuple):
  """How units [fan_in, fan_out] are processed.

  Attributes:
    form: 'resident' (read once), 'columns' (blocks [fan_in, size], read once
      per iteration) or 'rows' (blocks [size, fan_out], read once more).
    order: order of the axes [units, fan_in, fan_out] in memory.
    size: size of a block along the divided axis; 0 if no axis is divided.
    buffers: number of blocks in VMEM; with 2, the next block is read ahead.
  """

  form: str
  order: tuple[int, int, int] = (0, 1, 2)
  size: int = 0
  buffers: int = 2

  @property
  def turned(self) -> bool:
    """Whether fan_out comes before fan_in in memory."""
    return self.order.index(1) > self.order.index(2)


def resident(
  x: jax.Array,
  options: Options,
  targets: tuple[float, float],
  how: Plan,
  chip: Chip,
  interpret: Any,
) -> Scales:
  """Reads `x` once; all iterations run in VMEM.

  Args:
    x: [..., m, n], processed unit by unit.
    options: numbers may be traced.
    targets: the target norms of slices over fan_in and over fan_out.
    how: a plan of form 'resident'.
    chip: the chip.
    interpret: as in `pallas_call`.

  Returns:
    The scales of fan_in [units, 1, m] and of fan_out [units, 1, n].
  """
  x = _view(x, how.order)
  stacked, rows_axis = how.order.index(0), 1 - how.order.index(0)
  units, rows, lanes = x.shape[stacked], x.shape[rows_axis], x.shape[2]
  # If a device has two cores, each processes half of the units.
  groups = math.gcd(units, chip.cores)

  def kernel(iters, scalars, x_ref, up, flat, up_sums, flat_sums, blocks, done):
    start, step = pl.program_id(0) * (units // groups), pl.program_id(1)

    def copy(step):
      at = (start + step,) if stacked == 0 else (slice(None), start + step)
      slot = lax.rem(step, how.buffers)
      return pltpu.make_async_copy(x_ref.at[at], blocks.at[slot], done.at[slot])

    fetch(copy, step)
    block = blocks.at[lax.rem(step, how.buffers)]
    up[...], flat[...] = jnp.ones_like(up), jnp.ones_like(flat)

    def normalize(axis, target, k):
      scale, sums = ((flat, flat_sums), (up, up_sums))[axis]
      sums[...] = jnp.zeros_like(sums)
      add_squares(block, up, flat, sums, axis, (rows, lanes))
      eps = scalars[0]
      scale[...] = rescale(scale[...], sums[...], eps, target, floor(eps, k))

    def iterate(k, _):
      normalize(int(how.turned), targets[0], k)  # over fan_in
      normalize(1 - how.turned, targets[1], k)  # over fan_out

    lax.fori_loop(0, iters[0], iterate, None)

  def fetch(copy, step):
    if how.buffers == 1:
      copy(step).start()
    else:
      pl.when(step == 0)(lambda: copy(step).start())
      pl.when(step + 1 < units // groups)(lambda: copy(step + 1).start())
    copy(step).wait()

  scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
  found = pl.pallas_call(
    kernel,
    grid=(groups, units // groups),
    in_specs=[scalar, scalar, pl.BlockSpec(memory_space=pl.ANY)],
    out_specs=[
      pl.BlockSpec(
        (None, 1, size), lambda g, i: (g * (units // groups) + i, 0, 0)
      )
      for size in (rows, lanes)
    ],
    out_shape=[_vectors(units, size) for size in (rows, lanes)],
    scratch_shapes=[
      *(pltpu.VMEM((1, size), jnp.float32) for size in (rows, lanes)),
      pltpu.VMEM((how.buffers, rows, lanes), x.dtype),
      pltpu.SemaphoreType.DMA((how.buffers,)),
    ],
    compiler_params=_params(chip, ('parallel', 'arbitrary')),
    interpret=interpret,
    name='sinkhorn_resident',
  )(
    jnp.asarray(options.num_iters, jnp.int32).reshape(1),
    jnp.asarray(options.eps, jnp.float32).reshape(1),
    x,
  )
  return found[::-1] if how.turned else found


def one_read(
  x: jax.Array,
  scales: Scales,
  scalars: jax.Array,
  *,
  how: Plan,
  chip: Chip,
  interpret: Any,
) -> tuple[jax.Array, jax.Array]:
  """Updates one scale, and computes the sums of squares for the other.

  Args:
    x: [..., m, n], processed unit by unit.
    scales: r of fan_in, [units, 1, m], and c of fan_out, [units, 1, n].
    scalars: the last three arguments of `rescale`.
    how: a plan of form 'columns', which updates c, or 'rows', which updates r.
    chip: the chip.
    interpret: as in `pallas_call`.

  Returns:
    The new scale, and the sums of squares for the other, computed with it.
  """
  x = _view(x, how.order)
  up_and_flat = scales[::-1] if how.turned else scales
  split = int((how.form == 'columns') != how.turned)  # of rows and lanes
  units, *shape = x.shape
  blocks = pl.cdiv(shape[split], how.size)
  last = shape[split] - (blocks - 1) * how.size

  def kernel(scalars, x_ref, up, flat, new, sums, own):
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _():
      sums[...] = jnp.zeros_like(sums)

    def work(size):
      extent = [shape[0], size] if split else [size, shape[1]]
      own[...] = jnp.zeros_like(own)
      add_squares(x_ref, up, flat, own, 1 - split, extent)
      old = flat if split else up
      new[...] = rescale(old[...], own[...], *(scalars[i] for i in range(3)))
      pair = (up, new) if split else (new, flat)
      add_squares(x_ref, *pair, sums, split, extent)

    # The part of the last block beyond the edge is never read.
    if last < how.size:
      pl.when(block == blocks - 1)(lambda: work(last))
    pl.when(block < blocks - (last < how.size))(lambda: work(how.size))

  along = pl.BlockSpec((None, 1, how.size), lambda b, i: (b, 0, i))
  across = pl.BlockSpec((None, 1, shape[1 - split]), lambda b, i: (b, 0, 0))
  matrix = (
    pl.BlockSpec((None, shape[0], how.size), lambda b, i: (b, 0, i))
    if split
    else pl.BlockSpec((None, how.size, shape[1]), lambda b, i: (b, i, 0))
  )
  return pl.pallas_call(
    kernel,
    grid=(units, blocks),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      matrix,
      *((across, along) if split else (along, across)),
    ],
    out_specs=[along, across],
    out_shape=[_vectors(units, shape[axis]) for axis in (split, 1 - split)],
    scratch_shapes=[pltpu.VMEM((1, how.size), jnp.float32)],
    compiler_params=_params(chip, ('parallel', 'arbitrary')),
    interpret=interpret,
    name=f'sinkhorn_{how.form}',
  )(scalars, x, *up_and_flat)


def _vectors(units, size):
  return jax.ShapeDtypeStruct((units, 1, size), jnp.float32)


def _params(chip, semantics):
  return pltpu.CompilerParams(
    dimension_semantics=semantics, vmem_limit_bytes=chip.vmem
  )


def _view(x, order):
  return x.reshape(-1, *x.shape[-2:]).transpose(order)
