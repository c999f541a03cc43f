"""SOAP: Adam in the eigenbases of Shampoo's two matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, lapack, linalg, moments, placement

_UNIT = (linalg.FAN_IN, linalg.FAN_OUT)


class ScaleBySoapState(NamedTuple):
  """State of `scale_by_soap`; a side that is not rotated has one zero each.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: first moment, in the shapes of the parameters, float32 or wider.
    nu: second moment of the rotated gradient, in the same shapes.
    gram_in: averages of GG^T, [..., fan_in, fan_in].
    gram_out: averages of G^TG, [..., fan_out, fan_out].
    basis_in: eigenvectors of `gram_in` in columns.
    basis_out: eigenvectors of `gram_out` in columns.
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates
  nu: optax.Updates
  gram_in: optax.Updates
  gram_out: optax.Updates
  basis_in: optax.Updates
  basis_out: optax.Updates


def scale_by_soap(
  b1: jax.typing.ArrayLike = 0.95,
  b2: jax.typing.ArrayLike = 0.95,
  eps: jax.typing.ArrayLike = 1e-8,
  update_proj_gap: int = 10,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  max_side: int = 10_000,
  one_sided: bool = False,
) -> optax.GradientTransformation:
  r"""Adam in the basis of Shampoo's eigenvectors.

  For :math:`G \in R^{m \times n}` (fan_in, fan_out), with orthogonal matrices
  :math:`Q_L, Q_R` from the previous step,

  .. math::

    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) G_t, \quad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) (Q_L^\top G_t Q_R)^2 \\
    U_t &= Q_L \frac{Q_L^\top m_t Q_R}{\sqrt{v_t} + \epsilon} Q_R^\top
      \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \\
    L_t &= \beta_2 L_{t-1} + (1 - \beta_2) G_t G_t^\top, \quad
      R_t = \beta_2 R_{t-1} + (1 - \beta_2) G_t^\top G_t

  The first step computes the eigenvectors of L and R, by decreasing eigenvalue,
  and does not change the parameters; t counts the steps after it. Every
  `update_proj_gap` steps, the columns of the bases, and the second moment with
  them, are sorted by the diagonals of :math:`Q_L^\top L Q_L` and
  :math:`Q_R^\top R Q_R`. The bases then become the orthogonal factors of
  :math:`L Q_L` and :math:`R Q_R`: one step of orthogonal iteration. The sorting
  is from the released code, which also skips the first step of vectors; here
  vectors have another method. Its options `merge_dims`, `precondition_1d`,
  `normalize_grads` and `shampoo_beta` are left out.

  If L or R is singular, as R is at first for n > m, part of its basis is
  arbitrary, and the update depends on it. `one_sided` avoids that. QR and
  eigenvectors are slow to compile for TPUs.

  Learning rates:
    Published: 3.16e-3 (its paper, models of 360M and 660M parameters, C4).

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment and of L and R.
    eps: added to the root of the second moment.
    update_proj_gap: steps between two bases, a static integer.
    state_dtype: dtype of the state: float32, or bfloat16 rounded
      stochastically. None: float32, or the parameters' dtype if wider.
    max_side: longest side that is rotated, a static integer.
    one_sided: rotate the smaller side only, fan_in if both are equal.

  Returns:
    A `GradientTransformation` for matrices [..., fan_in, fan_out]; updates keep
    the dtype of the gradients. State: 2mn + 2mm + 2nn numbers per matrix
    [m, n], with `one_sided` 2mn + 2ss + 2 for the smaller side s.

  Raises:
    ValueError: `update_proj_gap` or `max_side` is less than 1 or traced, or
      `state_dtype` is int8; from `init`, a leaf that is not a matrix.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_soap()
    >>> first = jnp.array([[3.0, 1.0], [1.0, 3.0]])  # bases (1, 1), (1, -1)
    >>> _, state = tx.update(first, tx.init(first))
    >>> grads = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # [[1.5, 0.5], [0.5, 1.5]]
    >>> updates, _ = tx.update(grads, state)  # signs there, [[1, 1], [1, 1]]
    >>> print(np.abs(np.asarray(updates)).round(3))
    [[2. 0.]
     [0. 0.]]

  References:
    Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, arXiv
    2409.11321, 2024.
  """
  linalg.check_positive('update_proj_gap', update_proj_gap)
  linalg.check_positive('max_side', max_side)
  rounding.refuse_int8(
    state_dtype, 'SOAP', 'its matrices would stay float32, and need more'
  )

  def rotated(shape):
    """Whether fan_in and fan_out are rotated."""
    fan_in, fan_out = shape[-2:]
    short = fan_in <= max_side, fan_out <= max_side
    if not one_sided:
      return short
    return short[0] and fan_in <= fan_out, short[1] and fan_out < fan_in

  def squares(param):
    """Zeros in the shapes of L and R."""
    return tuple(
      linalg.aligned_zeros(
        param,
        (*param.shape[:-2], *(2 * [size if used else 1])),
        linalg.stat_dtype(param),
      )
      for size, used in zip(param.shape[-2:], rotated(param.shape), strict=True)
    )

  def init_fn(params):
    linalg.check_matrices(params, 'scale_by_soap')
    # Separate arrays for each field, because the step may donate the state.
    mu, nu = moments.zeros(params), moments.zeros(params)
    grams, bases = (
      moments.unzip(jax.tree.map(squares, params), params, 2) for _ in range(2)
    )
    count = jnp.zeros([], jnp.int32)
    return ScaleBySoapState(count, mu, nu, *grams, *bases)

  def renew(place, side, count, *arrays):
    """A basis, renewed every `update_proj_gap` steps, and `nu` in it."""

    def kept(grad, gram, basis, nu):
      del grad, gram
      return basis, nu

    def iterated(grad, gram, basis, nu):
      sizes = placement.whole_matrices(_sizes, place, grad, gram, basis)
      order = jnp.argsort(sizes, axis=-1, descending=True)
      basis = jnp.take_along_axis(basis, order, -1)
      nu = jnp.take_along_axis(nu, order if side else order.mT, side - 2)
      found = placement.whole_matrices(_iterated, place, grad, gram, basis)
      return found, nu

    def first(grad, gram, basis, nu):
      return placement.whole_matrices(_first, place, grad, gram, basis), nu

    def choose(due, *arrays):
      return jax.lax.switch(due, (kept, iterated, first), *arrays)

    later = jnp.where(count % update_proj_gap == 0, 1, 0)
    due = jnp.where(count == 0, 2, later)
    return linalg.in_auto_axes(choose, arrays[2:])(due, *arrays)

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args

    def rotated_adam(numbers, grad, mu, nu, *bases):
      b1, b2, eps, count = numbers
      used = rotated(grad.shape)
      mu = moments.ema(grad, mu, b1)
      square = jnp.square(_rotate(grad, used, *bases))
      # The first step only finds the bases.
      nu = jnp.where(count > 0, moments.ema(square, nu, b2), nu)
      mu = jnp.where(count > 0, mu, 0.0)
      direction = _rotate(mu, used, *bases) / (jnp.sqrt(nu) + eps)
      full = _rotate(direction, used, *(basis.mT for basis in bases))
      return full, mu, nu

    def step(place, grad, *slots):
      mu, nu, *squares = slots
      grams, bases = squares[:2], squares[2:]
      function = linalg.in_auto_axes(rotated_adam, (grad, mu, nu))
      numbers = b1, b2, eps, state.count
      full, mu, nu = function(numbers, grad, mu, nu, *bases)
      steps = jnp.maximum(state.count, 1)
      full = full * moments.adam_correction(steps, b1, b2, full.dtype)
      grams, bases = list(grams), list(bases)
      for side in (side for side in (0, 1) if rotated(grad.shape)[side]):
        grams[side] = _averaged(grad.mT if side else grad, grams[side], b2)
        bases[side], nu = renew(
          place, side, state.count, grad, grams[side], bases[side], nu
        )
      return full, mu, nu, *grams, *bases

    grads = jax.tree.map(linalg.as_stat, updates)
    results = placement.tree_map(step, placements, grads, *state[1:])
    scaled, *slots = moments.unzip(results, grads, 7)
    count = optax.safe_increment(state.count)
    new_state = ScaleBySoapState(count, *slots)
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  bases = ('basis_in', 'basis_out')
  return boxes.opened(
    rounding.low_precision_state(tx, state_dtype, constant=bases)
  )


def _rotate(x, used, basis_in, basis_out):
  """Q_L^T x Q_R, or one of the products if one side is rotated."""
  if used[0]:
    x = linalg.matmul(basis_in.mT, x)
  return linalg.matmul(x, basis_out) if used[1] else x


def _averaged(x, gram, decay):
  """The moving average of xx^T."""

  def average(decay, x, gram):
    return moments.ema(linalg.matmul(x, x.mT), gram, decay)

  return linalg.in_auto_axes(average, gram)(decay, x, gram)


# The gradient only shows `placement.whole_matrices` how matrices are sharded.


def _sizes(grad, gram, basis):
  """The diagonal of Q^T L Q, [..., 1, side]: eigenvalues, up to a factor."""
  del grad
  product = linalg.matmul(linalg.over_peak(gram, _UNIT), basis)
  return jnp.sum(basis * product, axis=linalg.FAN_IN, keepdims=True)


def _iterated(grad, gram, basis):
  """One step of orthogonal iteration."""
  del grad
  product = linalg.matmul(linalg.over_peak(gram, _UNIT), basis)
  return lapack.of_each(jnp.linalg.qr, product)[0]


def _first(grad, gram, basis):
  """The eigenvectors, by decreasing eigenvalue."""
  del grad, basis
  gram = linalg.over_peak(gram, _UNIT)
  return lapack.of_each(jnp.linalg.eigh, gram)[1][..., ::-1]
