"""The two scales of SinkGD: the start of the iterations, and one step.

Squares of float32 numbers below 1e-19 are zero, so all forms work on

    X = whole * a_i * z_ij * b_j,    z_ij = x_ij / (p_i * q_j),

where p is the sum of |x| over fan_out and q that of |x| / p over fan_in. The
entries of every slice of z have ordinary size, whatever the size of x. The
scales a and b, which start as p / max(p) and q, multiply norms, not the numbers
to be squared. Slices whose entries are below 1e-38 of the largest sum p count
as zero.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Scales = tuple[jax.Array, jax.Array]


class Options(NamedTuple):
  """Arguments of `scale_by_sinkgd`, which describes them."""

  num_iters: Any
  eps: jax.typing.ArrayLike
  unit_norm: bool = False
  kernels: str | None = None


class Start(NamedTuple):
  """The start of the iterations, per unit.

  Attributes:
    a, b: see the module's docstring; b after its first normalization.
    over_p, over_q: reciprocals of p and q; 1 for slices of zeros.
    whole: the factor by which eps makes b smaller in the first normalization,
      before the matrix has ordinary size.
  """

  a: jax.Array
  b: jax.Array
  over_p: jax.Array
  over_q: jax.Array
  whole: jax.Array


def start(p, q, peak, norms, options, shape) -> Start:
  """Computes the start from the first norms over fan_in.

  Args:
    p, q: see the module's docstring; 0 for zero slices.
    peak: the largest of p.
    norms: the norms of z a over fan_in, in the shape of q.
    options: as in `sinkhorn.normalize`.
    shape: shape of the units.
  """
  p, q, peak = nonzero(p), nonzero(q), nonzero(peak)
  eps = options.eps / peak
  whole = 1 / jnp.maximum(eps, 1.0)
  target, _ = targets(shape, options.unit_norm)
  b = rescale(q, q * norms * whole, target, eps * whole)
  return Start(p / peak, b, 1 / p, 1 / q, whole)


def nonzero(x):
  """`x`, 1 where it is 0."""
  return jnp.where(x == 0, 1.0, x)


def over(x):
  """The reciprocal of `x`, 1 where it is 0."""
  return 1 / nonzero(x)


def finish(start, a, b) -> Scales:
  """The scales of x."""
  return start.whole * a * start.over_p, b * start.over_q


def targets(shape, unit_norm: bool) -> tuple[float, float]:
  """The norms of slices over fan_in and over fan_out after normalization."""
  fan_in, fan_out = shape[-2:]
  return (1.0, 1.0) if unit_norm else (fan_in**0.5, fan_out**0.5)


def rescale(scale, size, target, eps):
  """The scale that gives slices of norm `size` the norm `target`."""
  # A zero slice keeps its scale. Otherwise, the scale would grow by 1/eps in
  # each iteration and overflow, and 0 * inf is not 0.
  return jnp.where(size == 0, scale, scale * (target / (size + eps)))
