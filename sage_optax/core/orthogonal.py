"""Matrices with equal singular values, by products alone (Newton-Schulz)."""

import jax
import jax.numpy as jnp

from sage_optax.core import linalg, placement

_UNIT = (linalg.FAN_IN, linalg.FAN_OUT)


def newton_schulz(
  x: jax.Array, ns_steps: int, place: placement.Placement | None = None
) -> jax.Array:
  """Moves the singular values of matrices towards 1 (Jordan et al. 2024).

  `ns_steps` times X = 3.4445 X - 4.7750 (XX^T)X + 2.0315 (XX^T)^2 X, from
  X = x / (norm2(x) + 1e-7), with the Gram matrix of the smaller side. In
  bfloat16 on accelerators, in the type of `x` on CPU.

  Args:
    x: matrices [..., fan_in, fan_out], float32 or wider.
    ns_steps: number of iterations, at least 1.
    place: where the matrices lie, if that is known.

  Returns:
    Matrices in the shape and dtype of `x`. After 5 iterations singular values
    that were 0.002 to 1 of norm2(x) lie within 0.68 and 1.21; those below have
    grown by 3.4445 each time.
  """
  wide = x.shape[-1] >= x.shape[-2]

  def step(_, y):
    # Precision needs no word: bfloat16, or float32 and wider on CPU.
    gram = y @ y.mT if wide else y.mT @ y
    poly = -4.7750 * gram + 2.0315 * (gram @ gram)
    return 3.4445 * y + (poly @ y if wide else y @ poly)

  def iterate(y):
    return jax.lax.fori_loop(0, ns_steps, step, y)

  def choose(y):
    return jax.lax.platform_dependent(
      y,
      cpu=iterate,
      default=lambda y: iterate(y.astype(jnp.bfloat16)).astype(y.dtype),
    )

  unit = x / (linalg.norm(x, _UNIT) + 1e-7)
  return linalg.in_auto_axes(placement.on_whole(choose, place), unit)(unit)


def polar(x: jax.Array) -> jax.Array:
  """The matrices with orthonormal columns nearest to `x`, by products alone.

  The quintic iteration above lifts small singular values, a cubic one brings
  all to 1. A QR would do, but does not compile for TPUs in reasonable time.

  Args:
    x: tall matrices [..., a, b], a >= b, float32 or wider.

  Returns:
    Matrices in the shape and dtype of `x`: its columns' span, and singular
    values 1 to rounding where those of `x` are above 1e-5 norm2(x); those
    below end between 0 and 1.
  """
  matmul = linalg.matmul

  def lift(_, y):
    gram = matmul(y.mT, y)
    return 3.4445 * y + matmul(y, -4.7750 * gram + 2.0315 * matmul(gram, gram))

  def settle(_, y):
    return 1.5 * y - 0.5 * matmul(y, matmul(y.mT, y))

  size = linalg.norm(x, _UNIT)
  y = x / jnp.where(size > 0, size, 1.0)
  y = jax.lax.fori_loop(0, 10, lift, y)
  return jax.lax.fori_loop(0, 6, settle, y)


def whiten(
  x: jax.Array, ns_steps: int, place: placement.Placement | None = None
) -> jax.Array:
  """(XX^T)^(-1/2) X by the coupled iteration, in full precision (SWAN).

  With A = XX^T of the smaller side, Y = A / norm2(A) and Z = I, `ns_steps`
  times T = (3I - ZY) / 2, Y = YT, Z = TZ; then Z tends to
  (A / norm2(A))^(-1/2). Which side A is of changes the cost only, for any
  polynomial p has p(XX^T) X = X p(X^T X).

  Args:
    x: matrices [..., fan_in, fan_out], float32 or wider.
    ns_steps: number of iterations, at least 1. Rounding in directions that `x`
      lacks grows by 1.5 each time; in float32 it can diverge from about 25.
    place: where the matrices lie, if that is known.

  Returns:
    Matrices in the shape and dtype of `x`, zero where `x` is; singular values
    end near 1, those below 1.5^-ns_steps sqrt(norm2(A)) have grown by
    1.5^ns_steps / sqrt(norm2(A)) only.
  """
  wide = x.shape[-1] >= x.shape[-2]
  matmul = linalg.matmul

  def iterate(x):
    gram = matmul(x, x.mT) if wide else matmul(x.mT, x)
    size = linalg.norm(gram, _UNIT)
    size = jnp.where(size > 0, size, 1.0)
    eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=x.dtype), gram.shape)

    def step(_, carry):
      y, z = carry
      t = 1.5 * eye - 0.5 * matmul(z, y)
      return matmul(y, t), matmul(t, z)

    _, z = jax.lax.fori_loop(0, ns_steps, step, (gram / size, eye))
    return (matmul(z, x) if wide else matmul(x, z)) / jnp.sqrt(size)

  # The result does not depend on the scale of x, but squares of squares
  # underflow in float32 where entries are below 1e-11.
  peak = jnp.max(jnp.abs(x), axis=_UNIT, keepdims=True, initial=0.0)
  unit = x / jnp.where(peak > 0, peak, 1.0)
  return linalg.in_auto_axes(placement.on_whole(iterate, place), unit)(unit)
