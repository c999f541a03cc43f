"""The two scales of SinkGD: where the iterations start, and one step of them.

Squares of float32 numbers below 1e-19 are zero, so all forms work on

    X = whole * a_i * z_ij * b_j,    z_ij = x_ij / (p_i * q_j),

where p are the sums of |x| over fan_out and q those of |x| / p over fan_in.
Every slice of z has entries of ordinary size, whatever those of x are; a and b,
which start as p / max(p) and q, multiply norms, not the numbers to be squared.
Slices whose entries are below 1e-38 of the largest sum p count as zero.
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
  """What the iterations start from, by unit.

  Attributes:
    a, b: of the module's docstring; b after its first normalisation.
    over_p, over_q: reciprocals of p and q; 1 for slices of zeros.
    whole: a number by which the first normalisation, whose eps is not one of
      matrices of ordinary size, would have made all of b small.
  """

  a: jax.Array
  b: jax.Array
  over_p: jax.Array
  over_q: jax.Array
  whole: jax.Array


def start(p, q, peak, norms, options, shape) -> Start:
  """The start, once the first norms over fan_in are known.

  Args:
    p, q: of the module's docstring, where zero slices have 0.
    peak: the largest of p.
    norms: over fan_in of z a, in the shape of q.
    options: of `normalize`.
    shape: of the units.
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
  """The norms that slices over fan_in and over fan_out are given."""
  fan_in, fan_out = shape[-2:]
  return (1.0, 1.0) if unit_norm else (fan_in**0.5, fan_out**0.5)


def rescale(scale, size, target, eps):
  """The scale that brings slices of this size to the target."""
  # A zero slice keeps its scale: growing by 1/eps in each iteration it would
  # overflow, and 0 * inf is not 0.
  return jnp.where(size == 0, scale, scale * (target / (size + eps)))
