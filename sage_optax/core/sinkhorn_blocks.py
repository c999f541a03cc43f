"""Sinkhorn normalization in one CPU's cache, with products for sums."""

import jax
import jax.numpy as jnp

from sage_optax.core import blocks, linalg
from sage_optax.core import sinkhorn_scales as scales_lib
from sage_optax.core.sinkhorn_scales import Options, Scales

# A matrix of squares up to this size stays in a CPU's cache for all iterations.
_RESIDENT_BYTES = 2**24


def scales(x: jax.Array, options: Options) -> Scales:
  """As `sinkhorn.plain`, unit by unit."""
  *batch, m, n = x.shape
  stacked = blocks.units(x)
  fits = 4 * m * n <= _RESIDENT_BYTES
  find = _of_squares if fits else _of_blocks

  def unit(i):
    return find(stacked, i, options)

  in_scale, out_scale = jax.lax.map(unit, jnp.arange(stacked.shape[0]))
  return in_scale.reshape(*batch, m, 1), out_scale.reshape(*batch, 1, n)


def _of_squares(x, unit, options):
  """The matrix is read once; the squares of z stay in the cache."""
  in_norm, out_norm = scales_lib.targets(x.shape, options.unit_norm)
  _, m, n = x.shape
  size = jnp.abs(blocks.rows_of(x, unit, 0, m))
  p = size @ jnp.ones(n, size.dtype)
  q = scales_lib.over(p) @ size
  peak = jnp.max(p)
  squares = jnp.square(
    size * scales_lib.over(p)[:, None] * scales_lib.over(q)[None]
  )
  norms = jnp.sqrt(jnp.square(p * scales_lib.over(peak)) @ squares)
  start = scales_lib.start(p, q, peak, norms, options, x.shape)

  def of_rows(a, b):
    size = start.whole * a * jnp.sqrt(squares @ jnp.square(b))
    return scales_lib.rescale(a, size, out_norm, options.eps)

  def iterate(_, scales):
    a, b = scales
    size = start.whole * b * jnp.sqrt(jnp.square(a) @ squares)
    b = scales_lib.rescale(b, size, in_norm, options.eps)
    return of_rows(a, b), b

  first = of_rows(start.a, start.b), start.b
  return scales_lib.finish(
    start, *jax.lax.fori_loop(1, options.num_iters, iterate, first)
  )


def _of_blocks(x, unit, options):
  """The matrix is read once per iteration, and once before.

  A block of rows gets its scales, and is then added to the columns' sums of
  squares for the next iteration.
  """
  in_norm, out_norm = scales_lib.targets(x.shape, options.unit_norm)
  _, m, n = x.shape
  zeros = jnp.zeros(n, linalg.stat_dtype(x))

  def begin(first, block, carry):
    """p, q and the sums of squares of z a, from the blocks so far."""
    p, q, peak, sums = carry
    size = jnp.abs(block)
    own = size @ jnp.ones(n, size.dtype)
    q_now = q + scales_lib.over(own) @ size
    peak_now = jnp.maximum(peak, jnp.max(own))
    z = size * scales_lib.over(own)[:, None] * scales_lib.over(q_now)[None]
    sums *= jnp.square(
      q * scales_lib.over(q_now) * (peak * scales_lib.over(peak_now))
    )
    sums += jnp.square(own * scales_lib.over(peak_now)) @ jnp.square(z)
    p = jax.lax.dynamic_update_slice_in_dim(p, own, first, 0)
    return p, q_now, peak_now, sums

  nothing = jnp.zeros(m, zeros.dtype), zeros, jnp.zeros_like(zeros[0]), zeros
  p, q, peak, sums = blocks.fold(begin, nothing, x, unit)
  start = scales_lib.start(p, q, peak, jnp.sqrt(sums), options, x.shape)

  def visit(b):
    def step(first, block, carry):
      a, sums = carry
      own, over_p = (
        jax.lax.dynamic_slice_in_dim(v, first, block.shape[0])
        for v in (a, start.over_p)
      )
      squares = jnp.square(block * over_p[:, None] * start.over_q[None])
      size = start.whole * own * jnp.sqrt(squares @ jnp.square(b))
      own = scales_lib.rescale(own, size, out_norm, options.eps)
      a = jax.lax.dynamic_update_slice_in_dim(a, own, first, 0)
      return a, sums + jnp.square(own) @ squares

    return step

  def iterate(_, carry):
    a, b, sums = carry
    size = start.whole * b * jnp.sqrt(sums)
    b = scales_lib.rescale(b, size, in_norm, options.eps)
    a, sums = blocks.fold(visit(b), (a, zeros), x, unit)
    return a, b, sums

  a, sums = blocks.fold(visit(start.b), (start.a, zeros), x, unit)
  a, b, _ = jax.lax.fori_loop(1, options.num_iters, iterate, (a, start.b, sums))
  return scales_lib.finish(start, a, b)
