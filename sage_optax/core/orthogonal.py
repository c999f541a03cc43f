"""Matrices with equal singular values, by products alone (Newton-Schulz)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sage_optax.core import linalg, placement

_UNIT = (linalg.FAN_IN, linalg.FAN_OUT)


# The quintic polynomials of the steps; the last one is repeated.
NS_COEFFS: dict[str, tuple[tuple[float, float, float], ...]] = {
  'standard': ((3.4445, -4.7750, 2.0315),),
  'dion': (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
  ),
  'polar_express': (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
  ),
}
# Polar Express evaluates its polynomials, except the last, at x / 1.01, so that
# rounding cannot push singular values out of their range.
_SAFETY = {'polar_express': 1.01}
PRECONDITIONINGS = ('frobenius', 'schatten', 'schatten8')


def newton_schulz(
  x: jax.Array,
  ns_steps: int,
  place: placement.Placement | None = None,
  *,
  ns_coeffs: str = 'standard',
  preconditioning: str = 'frobenius',
) -> jax.Array:
  """Moves the singular values of matrices towards 1 (Jordan et al. 2024).

  `ns_steps` times X = a X + b (XX^T)X + c (XX^T)^2 X, starting with x divided
  by a norm, and with the Gram matrix of the smaller side. It runs in bfloat16
  on accelerators, and in the dtype of `x` on CPU.

  Args:
    x: matrices [..., fan_in, fan_out], float32 or wider.
    ns_steps: number of iterations, at least 1.
    place: how the matrices are sharded, if known.
    ns_coeffs: key of `NS_COEFFS`.
    preconditioning: the norm of `x`: its Frobenius norm plus 1e-7, or the norm
      of order 4 ('schatten') or 8 ('schatten8') of its singular values, which
      is closer to the largest one.

  Returns:
    Matrices in the shape and dtype of `x`. After 5 iterations, singular values
    that were 0.002 to 1 times the norm are between 0.68 and 1.21 ('standard'),
    0.85 and 1.15 ('dion') or 0.87 and 1.13 ('polar_express').
  """
  wide = x.shape[-1] >= x.shape[-2]
  coefficients = _coefficients(ns_coeffs, ns_steps)

  def iterate(y):
    # In bfloat16, coefficients would be wrong by up to 0.4 %.
    table = jnp.asarray(coefficients, linalg.stat_dtype(y))

    def step(i, y):
      # Default precision: y is bfloat16, or float32 and wider on CPU.
      a, b, c = table[i]
      gram = y @ y.mT if wide else y.mT @ y
      poly = (b * gram + c * (gram @ gram)).astype(y.dtype)
      return (a * y + (poly @ y if wide else y @ poly)).astype(y.dtype)

    return jax.lax.fori_loop(0, ns_steps, step, y)

  def choose(y):
    if preconditioning != 'frobenius':
      y = _over_schatten_norm(y, wide, preconditioning)
    return jax.lax.platform_dependent(
      y,
      cpu=iterate,
      default=lambda y: iterate(y.astype(jnp.bfloat16)).astype(y.dtype),
    )

  if preconditioning == 'frobenius':
    unit = x / (linalg.norm(x, _UNIT) + 1e-7)
  else:
    unit = linalg.over_peak(x, _UNIT)
  return linalg.in_auto_axes(placement.on_whole(choose, place), unit)(unit)


def _coefficients(name, ns_steps):
  """One polynomial for each step."""
  rows = NS_COEFFS[name]
  safety = _SAFETY.get(name, 1.0)
  safe = [(a / safety, b / safety**3, c / safety**5) for a, b, c in rows[:-1]]
  return [*safe, *[rows[-1]] * ns_steps][:ns_steps]


def _over_schatten_norm(x, wide, order):
  """`x` divided by the norm of order 4 or 8 of its singular values."""
  gram = linalg.matmul(x, x.mT) if wide else linalg.matmul(x.mT, x)
  size = linalg.norm(gram, _UNIT) ** 0.5
  if order == 'schatten8':
    gram = gram / jnp.where(size > 0, size, 1.0) ** 2
    size = size * linalg.norm(linalg.matmul(gram, gram), _UNIT) ** 0.25
  return x / jnp.where(size > 0, size, 1.0)


def in_span(
  function: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  chosen: jax.Array,
  place: placement.Placement | None = None,
) -> jax.Array:
  """Newton-Schulz within the span of some columns (He et al. 2025).

  With U = x, transposed if necessary to have its smaller side first, and Q an
  orthonormal basis of the chosen columns of U, this is Q NS(Q^T U). The basis
  is the polar factor of the columns, where the authors use a QR; since NS
  commutes with rotations, only the span matters.

  Args:
    function: NS.
    x: matrices [..., fan_in, fan_out], float32 or wider.
    chosen: indices [..., 1, rank] of columns, fewer than the smaller side.
    place: how the matrices are sharded, if known.

  Returns:
    Matrices of this rank in the shape and dtype of `x`.
  """
  turned = _turned(x.shape)

  def work(x, chosen):
    wide = x.mT if turned else x
    columns = jnp.take_along_axis(wide, chosen, axis=-1)
    basis = polar(linalg.over_peak(columns, _UNIT))
    result = linalg.matmul(basis, function(linalg.matmul(basis.mT, wide)))
    return result.mT if turned else result

  return linalg.in_auto_axes(placement.on_whole(work, place), x)(x, chosen)


def draw_columns(
  key: jax.Array, shape: tuple[int, ...], rank: int
) -> jax.Array:
  """Samples for each matrix distinct column indices [..., 1, rank]."""
  *batch, fan_in, fan_out = shape
  count = fan_in if _turned(shape) else fan_out
  return jax.lax.top_k(jax.random.uniform(key, (*batch, 1, count)), rank)[1]


def _turned(shape):
  """Whether fan_out comes first in U; True if both sides are equal."""
  return shape[-1] <= shape[-2]


def polar(x: jax.Array) -> jax.Array:
  """The matrices with orthonormal columns nearest to `x`, using only products.

  The quintic iteration above raises small singular values, then a cubic one
  moves all of them to 1. A QR would do, but does not compile for TPUs in
  reasonable time.

  Args:
    x: tall matrices [..., a, b], a >= b, float32 or wider.

  Returns:
    Matrices in the shape and dtype of `x`, with the same span of columns.
    Singular values above 1e-5 norm2(x) become 1 up to rounding; those below end
    between 0 and 1.
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
  (A / norm2(A))^(-1/2). The choice of the side affects only the cost, because
  p(XX^T) X = X p(X^T X) for any polynomial p.

  Args:
    x: matrices [..., fan_in, fan_out], float32 or wider.
    ns_steps: number of iterations, at least 1. In directions that `x` lacks,
      rounding errors grow by 1.5 per iteration; from about 25 iterations on, it
      can diverge in float32.
    place: how the matrices are sharded, if known.

  Returns:
    Matrices in the shape and dtype of `x`, zero for zero matrices. Singular
    values end near 1, except that those below 1.5^-ns_steps sqrt(norm2(A)) have
    only grown by 1.5^ns_steps / sqrt(norm2(A)).
  """
  wide = x.shape[-1] >= x.shape[-2]
  matmul = linalg.matmul

  def iterate(x):
    gram = matmul(x, x.mT) if wide else matmul(x.mT, x)
    size = linalg.norm(gram, _UNIT)
    size = jnp.where(size > 0, size, 1.0)
    # In `shard_map`, the identity varies over devices as the matrices do.
    eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=x.dtype), gram.shape)
    eye = jnp.zeros_like(gram) + eye

    def step(_, carry):
      y, z = carry
      t = 1.5 * eye - 0.5 * matmul(z, y)
      return matmul(y, t), matmul(t, z)

    _, z = jax.lax.fori_loop(0, ns_steps, step, (gram / size, eye))
    return (matmul(z, x) if wide else matmul(x, z)) / jnp.sqrt(size)

  # The result does not depend on the scale of x, but squares of squares
  # underflow in float32 for entries below 1e-11.
  unit = linalg.over_peak(x, _UNIT)
  return linalg.in_auto_axes(placement.on_whole(iterate, place), unit)(unit)
