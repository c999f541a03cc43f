"""Sinkhorn normalization by kernels that read a matrix once per iteration.

A kernel processes whole slices along one axis: it computes their scale and, for
the other axis, the sums of squares of the rescaled slices.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sage_optax.core.sinkhorn_scales import Options, Scales

# (x, (r, c), scalars) -> the new scale, and sums of squares for the other one.
Read = Callable[[jax.Array, Scales, jax.Array], tuple[jax.Array, jax.Array]]

# The mesh axes that shard fan_in, and those that shard fan_out.
Names = tuple[tuple[str, ...], tuple[str, ...]]


def targets(x: jax.Array, unit_norm: bool, names: Names) -> tuple[float, float]:
  """The target norms of slices over fan_in and fan_out; `x` may be a shard."""
  *_, m, n = x.shape
  return (
    1.0 if unit_norm else math.sqrt(m * lax.axis_size(names[0])),
    1.0 if unit_norm else math.sqrt(n * lax.axis_size(names[1])),
  )


def scales(
  x: jax.Array,
  options: Options,
  norms: tuple[float, float],
  read: Read,
  form: str,
  names: Names,
) -> Scales:
  """Reads `x` once per iteration; for blocks of rows, once more before.

  Args:
    x: [..., m, n].
    options: numbers may be traced.
    norms: the result of `targets`.
    read: the kernel; its scalars are the last three arguments of `rescale`.
    form: 'columns' if it processes slices over fan_in, 'rows' if over fan_out.
    names: mesh axes that shard the other axis of the matrices.

  Returns:
    r [units, 1, m] and c [units, 1, n].
  """
  columns, others = form == 'columns', names[0] or names[1]
  units = math.prod(x.shape[:-2])
  r, c = (jnp.ones((units, 1, size), jnp.float32) for size in x.shape[-2:])

  def iterate(k, carry):
    r, c, sums = carry
    ours, theirs = (scalars(options.eps, norm, k) for norm in norms)
    if columns:
      c, sums = read(x, (r, c), ours)
      return rescale(r, lax.psum(sums, others), *theirs), c, sums
    c = rescale(c, lax.psum(sums, others), *ours)
    r, sums = read(x, (r, c), theirs)
    return r, c, sums

  sums = jnp.zeros_like(r)
  if not columns:
    sums = jnp.sum(jnp.square(x.astype(jnp.float32)), -2).reshape(c.shape)
  return lax.fori_loop(0, options.num_iters, iterate, (r, c, sums))[:2]


def scalars(eps: Any, target: Any, iteration: Any) -> jax.Array:
  """The last three arguments of `rescale`."""
  three = eps, target, floor(eps, iteration)
  return jnp.stack([jnp.asarray(v, jnp.float32) for v in three])


def floor(eps: Any, iteration: Any) -> jax.Array:
  """The norm above which a scale changes, in an iteration from 0.

  In the first one, also slices whose squares are all zero are divided by eps,
  unless eps is so small that this may overflow.
  """
  return jnp.where((iteration == 0) & (eps > 1e-30), -1.0, 0.0)


def rescale(scale, squares, eps, target, floor):
  """The scale that gives slices the target norm.

  Args:
    scale: scale of the slices.
    squares: sums of squares of the scaled slices, in the shape of `scale`.
    eps: added to the norms.
    target: target of the norms.
    floor: slices whose norm is not above it keep their scale.
  """
  # A zero slice keeps its scale. Otherwise, the scale would grow by 1/eps in
  # each iteration and overflow, and 0 * inf is not 0.
  norm = jnp.sqrt(squares)
  return jnp.where(norm <= floor, scale, scale * (target / (norm + eps)))
