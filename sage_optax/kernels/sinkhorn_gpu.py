"""The two scales of SinkGD on NVIDIA GPUs, by Pallas (Triton).

In each iteration, a block of whole slices is read twice: for its own norms and,
once these are known, for the sums of the other axis. The block is so small that
the second read should hit a cache, so that main memory is read once per
iteration; XLA's form reads it twice. This is an estimate: the kernels have been
compiled for GPUs and interpreted, but not run on one. They are tested against
`core.sinkhorn.plain`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from sage_optax.core.sinkhorn_scales import Options, Scales
from sage_optax.kernels import sinkhorn_reads as _reads

# An H100 has 132 processors with 256 KiB of cache each, and 50 MiB together.
# According to ptxas, these tiles take 54 to 64 registers per thread: with 1024
# threads, a processor runs one block at a time.
_BLOCK_BYTES = 2**18
_SECTOR = 32  # bytes per memory access
# Slices per block. Each block's partial sums are written and read once.
_LEAST, _MOST = 8, 64
_TILE = 16384  # numbers of a block in registers at a time
_WARPS = 32  # of 32 threads


class Plan(NamedTuple):
  """How a unit [fan_in, fan_out] is divided.

  Attributes:
    form: 'columns', blocks [fan_in, size], or 'rows', blocks [size, fan_out].
    size: A power of two.
  """

  form: str
  size: int


def supports(device: Any) -> bool:
  """Whether this is an NVIDIA GPU that Triton supports (Ampere or newer).

  False for a device whose `compute_capability` is missing or not a number, as
  for AMD. For ahead-of-time compilation, NVIDIA's name is enough.
  """
  known = getattr(device, 'compute_capability', None)
  if known is None:
    return 'NVIDIA' in getattr(device, 'device_kind', '')
  try:
    return float(known) >= 8.0
  except (TypeError, ValueError):
    return False


def forms(
  in_names: tuple[str, ...], out_names: tuple[str, ...]
) -> tuple[str, ...]:
  """The forms that `plan` may choose if these mesh axes shard the matrices."""
  if in_names:
    return () if out_names else ('rows',)
  return ('columns',) if out_names else ('columns', 'rows')


def plan(
  shape: Sequence[int], dtype: Any, forms: Sequence[str] = ('columns', 'rows')
) -> Plan | None:
  """Chooses the form for arrays of `shape`.

  Args:
    shape: [..., fan_in, fan_out].
    dtype: Of the array.
    forms: Those to choose from.

  Returns:
    The plan with the least memory traffic; None if slices are too long for a
    cache, the dtype is not float32, bfloat16 or float16, or the array is too
    large for Triton's indices.
  """
  dtype = jnp.dtype(dtype)
  if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
    return None
  if math.prod(shape) >= 2**31:
    return None
  plans = []
  for form in forms:
    columns = form == 'columns'
    length = shape[-2 if columns else -1]
    size = min(_BLOCK_BYTES // (length * dtype.itemsize), _MOST)
    if size >= (_SECTOR // dtype.itemsize if columns else _LEAST):
      plans.append(Plan(form, 1 << size.bit_length() - 1))
  return min(
    plans, key=lambda how: hbm_bytes(shape, dtype, 5, how), default=None
  )


def scales(
  x: jax.Array,
  options: Options,
  names: _reads.Names,
  how: Plan,
  *,
  interpret: Any = False,
) -> Scales:
  """The scales of `x * in_scale * out_scale`, normalized along both axes.

  Args:
    x: [..., fan_in, fan_out]; inside `shard_map` (with check_vma=False) the
      local block.
    options: numbers may be traced.
    names: mesh axes that shard fan_in (form 'rows' only) or fan_out (form
      'columns' only).
    how: the result of `plan`.
    interpret: as in `pallas_call`.

  Returns:
    in_scale [..., fan_in, 1] and out_scale [..., 1, fan_out], float32.
  """
  *batch, m, n = x.shape
  norms = _reads.targets(x, options.unit_norm, names)
  read = functools.partial(_one_read, how=how, interpret=interpret)
  x = x.reshape(-1, m, n)
  r, c = _reads.scales(x, options, norms, read, how.form, names)
  return r.reshape(*batch, m, 1), c.reshape(*batch, 1, n)


def hbm_bytes(
  shape: Sequence[int], dtype: Any, num_iters: int, how: Plan
) -> int:
  """Bytes that `scales` reads and writes in main memory, if caches suffice.

  Args:
    shape: [..., fan_in, fan_out].
    dtype: dtype of the array.
    num_iters: number of iterations.
    how: the result of `plan`.
  """
  *batch, m, n = shape
  matrix = m * n * jnp.dtype(dtype).itemsize
  divided, length = (m, n) if how.form == 'rows' else (n, m)
  # Partial sums of the blocks are written, and read to add them up.
  partial = 8 * pl.cdiv(divided, how.size) * length
  total = num_iters * (matrix + partial + 8 * (m + n))
  if how.form == 'rows':
    total += matrix + 4 * n
  return math.prod(batch) * total


def _one_read(x, scales, scalars, *, how, interpret):
  """Updates one scale, and computes the sums of squares for the other.

  Args:
    x: [units, m, n].
    scales: of fan_in, [units, 1, m], and of fan_out, [units, 1, n].
    scalars: the result of `_reads.scalars`.
    how: the plan.
    interpret: as in `pallas_call`.

  Returns:
    The new scale, and the sums of squares for the other, computed with it.
  """
  rows = how.form == 'rows'
  ours, other = scales if rows else scales[::-1]
  units, m, n = x.shape
  divided, length = (m, n) if rows else (n, m)
  blocks, size = pl.cdiv(divided, how.size), how.size
  chunk = _TILE // size

  def kernel(x, old, other, scalars, new, sums):
    unit, block = pl.program_id(0), pl.program_id(1)
    ours = pl.ds(block * size, size)
    in_ours = block * size + jnp.arange(size) < divided

    def chunk_of(k):
      return pl.ds(k * chunk, chunk), k * chunk + jnp.arange(chunk) < length

    def vector(ref, at, mask):
      return triton.load(ref.at[unit, at], mask=mask, other=0.0)

    def squares(k, scale):
      at, mask = chunk_of(k)
      across = vector(other, at, mask)
      if rows:
        index, mask = (ours, at), in_ours[:, None] & mask[None, :]
        scale, across = scale[:, None], across[None, :]
      else:
        index, mask = (at, ours), mask[:, None] & in_ours[None, :]
        scale, across = scale[None, :], across[:, None]
      tile = triton.load(x.at[unit, *index], mask=mask, other=0.0)
      return jnp.square(tile.astype(jnp.float32) * scale * across)

    def add(k, total):
      return total + jnp.sum(squares(k, before), axis=1 if rows else 0)

    def emit(k, _):
      at, mask = chunk_of(k)
      part = jnp.sum(squares(k, after), axis=0 if rows else 1)
      triton.store(sums.at[unit, block, at], part, mask=mask)

    before = vector(old, ours, in_ours)
    chunks = pl.cdiv(length, chunk)
    own = jax.lax.fori_loop(0, chunks, add, jnp.zeros(size, jnp.float32))
    after = _reads.rescale(before, own, *(scalars[i] for i in range(3)))
    triton.store(new.at[unit, ours], after, mask=in_ours)
    jax.lax.fori_loop(0, chunks, emit, None)

  whole = pl.BlockSpec()
  new, sums = pl.pallas_call(
    kernel,
    grid=(units, blocks),
    in_specs=[whole] * 4,
    out_specs=[whole] * 2,
    out_shape=[
      jax.ShapeDtypeStruct((units, divided), jnp.float32),
      jax.ShapeDtypeStruct((units, blocks, length), jnp.float32),
    ],
    compiler_params=triton.CompilerParams(num_warps=_WARPS),
    interpret=interpret,
    name=f'sinkhorn_{how.form}',
  )(x, ours[:, 0], other[:, 0], scalars)
  return new[:, None], jnp.sum(sums, axis=1, keepdims=True)
