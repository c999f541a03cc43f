"""Stable-SPAM: Adam on gradients clipped and rescaled by their history."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg
from sage_optax.core import moments as moments_lib

_LARGEST = 1e38  # of a squared norm


class ScaleByStableSpamState(NamedTuple):
  """State of `scale_by_stable_spam`.

  Attributes:
    count: int32 scalar, number of updates so far.
    adam_count: int32 scalar, updates since the last reset of the moments.
    mu: first moment, in the shapes of the parameters, float32 or wider.
    nu: second moment, likewise.
    max_mean: EMA of the largest absolute gradient: one number per unit, with
      the parameter's number of axes.
    norm_mean: EMA of the gradient's norm, likewise.
    norm_square: EMA of the squared norm, likewise.
  """

  count: jax.Array  # type: ignore[assignment]
  adam_count: jax.Array
  mu: optax.Updates
  nu: optax.Updates
  max_mean: optax.Updates
  norm_mean: optax.Updates
  norm_square: optax.Updates


def scale_by_stable_spam(
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  gamma1: jax.typing.ArrayLike = 0.7,
  gamma2: jax.typing.ArrayLike = 0.9,
  gamma3: jax.typing.ArrayLike = 0.999,
  reset_interval: int | None = 1000,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  total_steps: int | None = None,
  min_scale: jax.typing.ArrayLike = 0.5,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Clips spikes, normalizes the gradient by its history, then runs Adam.

  Per unit (a matrix or a vector), where hats are bias corrections by t:

  .. math::

    T_t &= \gamma_3 T_{t-1} + (1 - \gamma_3) \max |g_t|, \quad
      g \leftarrow \hat T_t \, g / \max |g_t|
      \text{ in entries with } |g| > \hat T_t \\
    \mu_t &= \gamma_1 \mu_{t-1} + (1 - \gamma_1) \|g\|_2, \quad
      \nu_t = \gamma_2 \nu_{t-1} + (1 - \gamma_2) \|g\|_2^2 \\
    g &\leftarrow \frac{g}{\|g\|_2}
      \frac{\hat \mu_t}{\sqrt{\hat \nu_t} + \epsilon}, \quad
      u_t = \mathrm{Adam}(g)

  When t is a multiple of `reset_interval` (t starts at 1), Adam's moments are
  set to zero and its count starts again, before they are used. A gradient with
  norm zero is not rescaled; the moments decay.

  This is the paper's form. In the authors' released code, the step of a reset
  still uses the old moments, with the bias correction of a first step, and the
  count of the three averages also starts again, so that their thresholds jump.
  Without resets, both forms are equal.

  Learning rates:
    Published: 8e-4 for a Llama of 130M parameters on C4.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to both roots.
    gamma1: decay of the mean norm.
    gamma2: decay of the mean squared norm.
    gamma3: decay of the mean largest entry.
    reset_interval: steps between resets of Adam's moments, at least 1; None: no
      resets.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    total_steps: multiply b1 and gamma1 by a cosine schedule from 1 to
      `min_scale` over this many steps; None: leave them unchanged. This is in
      the released code only.
    min_scale: final value of that schedule.
    core_ndim: number of trailing axes that form one unit: 2 for matrices, 1 for
      vectors; all axes before them are a batch. None: min(ndim, 2).

  Returns:
    A `GradientTransformation`; updates keep the dtype of the gradients. State:
    2mn + 3 numbers per matrix [m, n], 2d + 3 per vector [d].

  Raises:
    ValueError: `reset_interval` or `total_steps` is less than 1, or
      `core_ndim` does not fit.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_stable_spam()
    >>> grads, spike = jnp.array([0.1, 1.0]), jnp.array([0.1, 1e4])
    >>> state = tx.init(grads)
    >>> for g in [grads, grads, grads, spike, grads]:
    ...   updates, state = tx.update(g, state)
    >>> print(np.asarray(updates).round(1))  # Adam's would be [1.  0.5]
    [0.8 0.9]

  References:
    Huang et al., Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit
    Adam, arXiv 2502.17055, 2025.
  """
  for name, value in (
    ('reset_interval', reset_interval),
    ('total_steps', total_steps),
  ):
    if value is not None and not isinstance(value, jax.Array):
      linalg.check_positive(name, value)
  linalg.check_static('core_ndim', core_ndim, (None, 1, 2))

  largest = functools.partial(_largest, core_ndim=core_ndim)

  def init_fn(params):
    counts = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
    moments = moments_lib.zeros(params), moments_lib.zeros(params)
    means = (moments_lib.zeros_of(largest, params) for _ in range(3))
    return ScaleByStableSpamState(*counts, *moments, *means)

  def update_fn(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    scale: jax.typing.ArrayLike = 1.0
    if total_steps is not None:
      scale = moments_lib.cosine(count, total_steps, 1.0, min_scale)
    grads = jax.tree.map(linalg.as_stat, updates)
    max_now = jax.tree.map(largest, grads)
    max_mean = _emas(max_now, state.max_mean, gamma3)
    limit = _unbiased(max_mean, gamma3, count)
    grads = jax.tree.map(_clip, grads, max_now, limit)

    norm_of = functools.partial(_norm, core_ndim=core_ndim)
    norm = jax.tree.map(
      norm_of, grads, jax.tree.map(jnp.minimum, max_now, limit)
    )
    norm_mean = _emas(norm, state.norm_mean, gamma1 * scale)
    # An infinite average would never decay.
    square = jax.tree.map(lambda x: jnp.minimum(jnp.square(x), _LARGEST), norm)
    norm_square = _emas(square, state.norm_square, gamma2)
    grads = jax.tree.map(
      functools.partial(_rescale, eps=eps),
      grads,
      norm,
      _unbiased(norm_mean, gamma1 * scale, count),
      _unbiased(norm_square, gamma2, count),
    )

    old = state.adam_count, state.mu, state.nu
    if reset_interval is not None:
      reset = count % reset_interval == 0
      old = jax.tree.map(lambda x: jnp.where(reset, 0, x), old)
    adam_count = optax.safe_increment(old[0])
    mu = _emas(grads, old[1], b1 * scale)
    nu = _emas(jax.tree.map(jnp.square, grads), old[2], b2)

    scaled = jax.tree.map(
      lambda m, v: m / (jnp.sqrt(v) + eps),
      _unbiased(mu, b1 * scale, adam_count),
      _unbiased(nu, b2, adam_count),
    )
    scaled = optax.tree.cast_like(scaled, updates)
    return scaled, ScaleByStableSpamState(
      count, adam_count, mu, nu, max_mean, norm_mean, norm_square
    )

  tx = optax.GradientTransformation(init_fn, update_fn)
  return boxes.opened(rounding.low_precision_state(tx, state_dtype))


def _largest(grad, core_ndim):
  grad = jnp.abs(linalg.as_stat(grad))
  axes = linalg.unit_axes(grad.ndim, core_ndim)
  return jnp.max(grad, axis=axes, keepdims=True, initial=0.0)


def _norm(grad, largest, core_ndim):
  """The norm, computed from entries over the largest, so that it is finite."""
  unit = grad / jnp.where(largest > 0, largest, 1)
  return largest * linalg.norm(unit, linalg.unit_axes(grad.ndim, core_ndim))


def _clip(grad, largest, limit):
  clipped = grad / jnp.where(largest > 0, largest, 1) * limit
  return jnp.where(jnp.abs(grad) > limit, clipped, grad)


def _rescale(grad, norm, mean, square, eps):
  scaled = grad / jnp.where(norm > 0, norm, 1)
  return jnp.where(norm > 0, scaled * (mean / (jnp.sqrt(square) + eps)), grad)


def _emas(new, old, decay):
  return jax.tree.map(lambda x, m: moments_lib.ema(x, m, decay), new, old)


def _unbiased(averages, decay, count):
  return jax.tree.map(lambda x: moments_lib.unbiased(x, decay, count), averages)
