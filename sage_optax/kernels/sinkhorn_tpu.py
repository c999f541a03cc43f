"""The two scales of SinkGD on TPUs, by Pallas; tested against `sinkhorn.plain`.

A matrix that fits in the chip's own memory (VMEM) is read from main memory
once; a larger one, or a shard of one, once per iteration. Only vectors are
written, so the compiler fuses the product with the rest of the step.

The kernels use the layout of matrices in memory: to reduce padding, the
compiler may have transposed them, or put layers between their axes. A view
[units, rows, lanes] or [rows, units, lanes] in this order costs nothing; any
other view is a copy.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sage_optax.core.sinkhorn_scales import Options, Scales
from sage_optax.kernels import sinkhorn_reads as _reads
from sage_optax.kernels import sinkhorn_tpu_pallas as _kernels
from sage_optax.kernels.sinkhorn_tpu_pallas import Chip, Plan
from sage_optax.kernels.sinkhorn_tpu_tiles import TILE

_LARGE_BLOCK = 4 * 2**20  # Larger blocks are not read faster.

# Possible orders of [units, fan_in, fan_out] in memory; among equals, the
# compiler chooses the first.
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1))


def plan(
  shape: Sequence[int],
  dtype: Any,
  chip: Chip = _kernels.Chip(),  # noqa: B008 (a constant)
  forms: Sequence[str] = ('resident', 'columns', 'rows'),
) -> Plan | None:
  """Chooses the form for arrays of `shape`.

  Args:
    shape: [..., fan_in, fan_out].
    dtype: dtype of the array.
    chip: the chip to plan for, from `chip_of`.
    forms: the forms to choose from, the best first.

  Returns:
    The plan; None if not even the smallest block fits, or the dtype is neither
    float32 nor bfloat16, so that only XLA's form works.
  """
  if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
    return None
  *_, m, n = shape
  # Reserves memory for spilled registers and for vectors of 8 sublanes in 2
  # buffers.
  room = chip.vmem - chip.vmem // 32 - 4 * 8 * 4 * (_up(m) + _up(n))
  for form in forms:
    if form == 'resident':
      order = _order(shape, dtype)
      whole = _bytes(m, n, dtype)
      if whole <= room:
        return Plan(form, order, 0, 2 if 2 * whole <= room else 1)
      continue
    order = _order(shape, dtype, interleaved=False)
    if order != _order(shape, jnp.float32):
      continue  # This would copy all layers; XLA's form needs no copy.
    divided, other = (n, m) if form == 'columns' else (m, n)
    least = _bytes(other, TILE, dtype)
    if 2 * least <= room:
      tiles = pl.cdiv(divided, TILE)
      most = max(min(room // 2, _LARGE_BLOCK) // least, 1)
      size = pl.cdiv(tiles, pl.cdiv(tiles, most)) * TILE
      return Plan(form, order, min(size, divided))
  return None


def forms(
  in_names: tuple[str, ...], out_names: tuple[str, ...]
) -> tuple[str, ...]:
  """The forms that `plan` may choose if these mesh axes shard the matrices."""
  if in_names and out_names:
    return ()
  if in_names:
    return ('rows',)
  return ('columns',) if out_names else ('resident', 'columns', 'rows')


def chip_of(x: jax.Array) -> Chip:
  """The chip that `x` is compiled for; a default one if it is not known.

  With ahead-of-time compilation, this is not the host's chip. Inside `jit` and
  `shard_map` it is found from the type of `x` or the context, else from the
  default device.
  """
  for mesh in (jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh()):
    with jax.sharding.use_abstract_mesh(mesh):
      try:
        info = pltpu.get_tpu_info()
      except ValueError:  # Not a TPU.
        continue
      return Chip(int(info.vmem_capacity_bytes), info.num_cores)
  return Chip()


def scales(
  x: jax.Array,
  options: Options,
  names: _reads.Names = ((), ()),
  how: Plan | None = None,
  *,
  interpret: Any = False,
) -> Scales:
  """The scales of `x * in_scale * out_scale`, normalized along both axes.

  Args:
    x: [..., fan_in, fan_out], float32 or bfloat16; inside `shard_map` (with
      check_vma=False) the local block.
    options: numbers may be traced.
    names: mesh axes that shard fan_in or fan_out, but not both.
    how: the plan; None: use `plan`.
    interpret: as in `pallas_call`.

  Returns:
    in_scale [..., fan_in, 1] and out_scale [..., 1, fan_out], float32.

  Raises:
    ValueError: both axes are sharded, or `plan` returns None.
  """
  if all(names):
    raise ValueError(
      f'fan_in is sharded by {names[0]} and fan_out by {names[1]}, but only '
      'one of them may be: use the plain form.'
    )
  how = how or _planned(x, forms(*names))
  *batch, m, n = x.shape
  norms = _reads.targets(x, options.unit_norm, names)
  if how.form == 'resident':
    r, c = _kernels.resident(x, options, norms, how, chip_of(x), interpret)
  else:
    read = functools.partial(
      _kernels.one_read, how=how, chip=chip_of(x), interpret=interpret
    )
    r, c = _reads.scales(x, options, norms, read, how.form, names)
  return r.reshape(*batch, m, 1), c.reshape(*batch, 1, n)


def hbm_bytes(
  shape: Sequence[int],
  dtype: Any,
  num_iters: int,
  chip: Chip = _kernels.Chip(),  # noqa: B008 (a constant)
) -> int:
  """Bytes that the kernels of `scales` read and write in main memory.

  Args:
    shape: [..., fan_in, fan_out].
    dtype: dtype of the array.
    num_iters: number of iterations.
    chip: the chip.
  """
  how = plan(shape, dtype, chip)
  if how is None:
    raise ValueError(f'no plan for {jnp.dtype(dtype)}{list(shape)}.')
  *batch, m, n = shape
  matrix = m * n * jnp.dtype(dtype).itemsize
  if how.form == 'resident':
    return math.prod(batch) * (matrix + 4 * (m + n))
  # A pass reads both scales, and writes one of them and the sums for the other.
  total = num_iters * (matrix + 8 * (m + n))
  if how.form == 'rows':
    total += matrix + 4 * n
  return math.prod(batch) * total


def _planned(x, forms):
  how = plan(x.shape, x.dtype, chip_of(x), forms)
  if how is None:
    raise ValueError(
      f'no block of {x.shape} fits the chip: use the plain form.'
    )
  return how


def _order(shape, dtype, interleaved=True):
  """The compiler's order of axes in memory, which needs the least padding."""
  merged = math.prod(shape[:-2]), *shape[-2:]
  # With 16-bit numbers, two units would share a row of a register; with more
  # than one axis of layers, any of them may be in between.
  interleaved &= len(shape) == 3 and jnp.dtype(dtype).itemsize == 4

  def padded(order):
    first, second, last = (merged[axis] for axis in order)
    return first * _up(second, min(8, pl.next_power_of_2(second))) * _up(last)

  return min(_ORDERS[: 4 if interleaved else 2], key=padded)


def _up(size, multiple=TILE):
  return pl.cdiv(size, multiple) * multiple


def _bytes(m, n, dtype):
  """Largest size of an array in VMEM, in either order."""
  size = jnp.dtype(dtype).itemsize
  return max(_up(m, 16) * _up(n), _up(m) * _up(n, 16)) * size
