"""SAGE: Lion's sign update times a damper of at most 1."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import blocks, boxes, linalg, moments, placement


class ScaleBySageState(NamedTuple):
  """State of `scale_by_sage`.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: momentum, in the shapes of the parameters, float32 or wider.
    abs_mean: EMA of the mean absolute gradient: the parameter's shape with size
      1 on the averaged axis (matrices), or the parameter's shape (vectors).
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates
  abs_mean: optax.Updates


def scale_by_sage(
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.99,
  eps: jax.typing.ArrayLike = 1e-8,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  mu_dtype: jax.typing.DTypeLike | None = None,
  axis: int = -2,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Scales the sign of the momentum by a per-feature damper in [0, 1].

  With s the mean of \|g\| over `axis` (for vectors, \|g\| itself) and rms the
  root mean square of this statistic over one unit,

  .. math::

    S_t &= \beta_2 S_{t-1} + (1 - \beta_2) s_t, \quad
      \hat S_t = S_t / (1 - \beta_2^t) \\
    H_t &= \min(\mathrm{rms}(\hat S_t) / (\hat S_t + \epsilon),
      \mathrm{rms}(s_t) / (s_t + \epsilon), 1) \\
    u_t &= \mathrm{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t) \, H_t \\
    m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

  A feature with larger gradients than the others is damped: by the first term
  as long as its average is larger, by the second term immediately. Scaling the
  gradients does not change the update as long as s is far above eps. If s is
  near eps, the damper is smaller (half, if s = eps): use a smaller eps for
  embeddings whose mean absolute gradients are near 1e-8. A zero gradient gives
  a zero update.

  This is the paper's form. The authors' released code updates the momentum
  before it takes the sign, and two of its three classes omit the second term.
  Compiled for CPUs, signs may differ where the sign's argument is within
  rounding of zero.

  Learning rates:
    Published: 2e-3 for the hybrid (270M to 1.3B, The Pile), with a factor of 10
    on matrices of unit norm. The authors tuned none of their rates. From our
    study at width 64, embedding and matrices: `sage_hybrid` 8e-3 and 4e-3,
    `sage_muon` 8e-3 and 1.6e-2, both with b2 0.95, which is much better there
    than 0.99.

  Args:
    b1: weight of the old momentum in the update.
    b2: decay of the momentum and of the statistic.
    eps: added to the statistics in the denominators.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    mu_dtype: as `state_dtype`, for the momentum only; Optax's name.
    axis: the axis of matrices to average over, a static integer. -2, the
      vocabulary of an embedding [vocab, feature], damps features; -1 is meant
      for dense kernels [fan_in, fan_out] and heads [feature, vocab].
    core_ndim: number of trailing axes that form one unit: 2 for matrices, 1 for
      vectors; all axes before them are a batch. None: min(ndim, 2).

  Returns:
    A `GradientTransformation`; updates are in [-1, 1], in the dtype of the
    gradients. State: mn + n numbers per matrix [m, n] (axis -2) or mn + m (axis
    -1), 2d per vector [d].

  Raises:
    ValueError: `axis` is neither -2 nor -1 or is traced, or `core_ndim` does
      not fit.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_sage()
    >>> grads = jnp.array([[3.0, -1.0], [-3.0, 1.0]])  # one loud feature
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.asarray(updates).round(3))
    [[ 0.745 -1.   ]
     [-0.745  1.   ]]

  References:
    Lee and Kim, SAGE, Findings of ACL 2026, arXiv 2604.07663.
  """
  linalg.check_static('axis', axis, (linalg.FAN_IN, linalg.FAN_OUT))
  axis = operator.index(axis)
  linalg.check_static('core_ndim', core_ndim, (None, 1, 2))

  def statistic(place, grad):
    if len(linalg.unit_axes(jnp.ndim(grad), core_ndim)) < 2:
      return jnp.abs(linalg.as_stat(grad))
    return blocks.mean(jnp.abs, grad, axis, place)

  def damper(now, average):
    axes = linalg.unit_axes(now.ndim, core_ndim)

    def loudness(stat):
      return linalg.safe_rms(stat, axes) / (stat + eps)

    return jnp.minimum(jnp.minimum(loudness(average), loudness(now)), 1.0)

  def init_fn(params):
    abs_mean = moments.zeros_of(functools.partial(statistic, None), params)
    count = jnp.zeros([], jnp.int32)
    return ScaleBySageState(count, moments.zeros(params), abs_mean)

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    count = optax.safe_increment(state.count)
    grads = jax.tree.map(linalg.as_stat, updates)
    now = placement.tree_map(statistic, placements, updates)
    abs_mean = jax.tree.map(
      lambda s, old: moments.ema(s, old, b2), now, state.abs_mean
    )

    def step(grad, mu, now, abs_mean):
      sign, mu = moments.sign_step(grad, mu, b1, b2)
      return sign * damper(now, moments.unbiased(abs_mean, b2, count)), mu

    steps = jax.tree.map(step, grads, state.mu, now, abs_mean)
    scaled, mu = moments.unzip(steps, grads, 2)
    new_state = ScaleBySageState(count, mu, abs_mean)
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  slot = 'mu' if state_dtype is None else None
  dtype = rounding.one_dtype(state_dtype, mu_dtype)
  return boxes.opened(rounding.low_precision_state(tx, dtype, slot=slot))
