"""SGD-SaI: momentum with one step size per layer, set once at the start."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg, moments


class ScaleBySgdSaiState(NamedTuple):
  """State of `scale_by_sgd_sai`.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: momentum, in the shapes of the parameters, float32 or wider.
    gsnr: signal-to-noise ratio of the first non-zero gradient: one number per
      unit, with the parameter's number of axes; 0 before that gradient.
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates
  gsnr: optax.Updates


def scale_by_sgd_sai(
  momentum: jax.typing.ArrayLike = 0.9,
  eps: jax.typing.ArrayLike = 1e-8,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  normalize_by_max: bool = False,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Momentum times a signal-to-noise ratio, fixed at the first gradient.

  Per unit (a matrix or a vector) of k elements, with t = 1 its first gradient
  that is not zero:

  .. math::

    \mathrm{gsnr} &= \frac{\|g_1\|_2}{\mathrm{std}(g_1) + \epsilon}, \quad
      \mathrm{std}(g)^2 = \frac{1}{k - 1} \sum_i (g_i - \bar g)^2 \\
    m_1 &= g_1, \quad m_t = \beta m_{t-1} + (1 - \beta) g_t, \quad
      u_t = \mathrm{gsnr} \; m_t

  This is the form of the authors' released code, with one exception: that code
  computes the ratio even if the first gradient is zero, which freezes the
  parameter. The paper has m_0 = 0, and divides gsnr by its maximum over units.
  For a unit of one element, whose standard deviation is undefined (the released
  code gives NaN), gsnr is 1.

  The ratio lies between sqrt(k - 1), if the entries have mean zero, and
  :math:`\|g_1\|_2 / \epsilon`, if they are all equal. A first gradient whose
  deviation is far below eps makes all later steps small: use a smaller eps if
  gradients are near 1e-8.

  Learning rates:
    For language models, we know of no published rates. The update of a unit has
    norm lr * gsnr * norm2(m), so it depends on the size of the gradients.

  Args:
    momentum: decay of the momentum.
    eps: added to the standard deviation.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    normalize_by_max: divide gsnr by its maximum over all units that this
      transformation sees (in a recipe, the units of one role), as in the paper.
    core_ndim: number of trailing axes that form one unit: 2 for matrices, 1 for
      vectors; all axes before them are a batch. None: min(ndim, 2).

  Returns:
    A `GradientTransformation`; updates keep the dtype of the gradients. State:
    mn + 1 numbers per matrix [m, n], d + 1 per vector [d].

  Raises:
    ValueError: `core_ndim` does not fit.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_sgd_sai()
    >>> grads = {'even': jnp.array([3.0, 1.0]), 'odd': jnp.array([3.0, -1.0])}
    >>> updates, state = tx.update(grads, tx.init(grads))
    >>> for name, gsnr in state.gsnr.items():  # even entries: less noise
    ...   print(name, np.asarray(gsnr).round(2))
    even [2.24]
    odd [1.12]

  References:
    Xu et al., No More Adam: Learning Rate Scaling at Initialization is All You
    Need, arXiv 2412.11768, 2024.
  """
  linalg.check_static('core_ndim', core_ndim, (None, 1, 2))

  def ratio(grad):
    grad = linalg.as_stat(grad)
    axes = linalg.unit_axes(grad.ndim, core_ndim)
    norm = linalg.safe_norm(grad, axes)
    size = math.prod(grad.shape[axis] for axis in axes)
    if size < 2:
      return jnp.where(norm > 0, jnp.ones_like(norm), 0)
    mean = jnp.mean(grad, axis=axes, keepdims=True)
    deviation = linalg.safe_norm(grad - mean, axes) / (size - 1) ** 0.5
    return norm / (deviation + eps)

  def init_fn(params):
    gsnr = moments.zeros_of(ratio, params)
    count = jnp.zeros([], jnp.int32)
    return ScaleBySgdSaiState(count, moments.zeros(params), gsnr)

  def update_fn(updates, state, params=None):
    del params
    grads = jax.tree.map(linalg.as_stat, updates)

    def move(grad, mu, gsnr):
      started = moments.ema(grad, mu, momentum)
      return jnp.where(gsnr > 0, started, grad.astype(mu.dtype))

    mu = jax.tree.map(move, grads, state.mu, state.gsnr)
    gsnr = _fill(state.gsnr, lambda: jax.tree.map(ratio, grads))
    factor = _over_maximum(gsnr) if normalize_by_max else gsnr
    scaled = jax.tree.map(jnp.multiply, factor, mu)
    count = optax.safe_increment(state.count)
    return optax.tree.cast_like(scaled, updates), ScaleBySgdSaiState(
      count, mu, gsnr
    )

  tx = optax.GradientTransformation(init_fn, update_fn)
  return boxes.opened(
    rounding.low_precision_state(tx, state_dtype, constant=('gsnr',))
  )


def _fill(old, measure):
  """Replaces ratios that are not positive by those that `measure` returns.

  It runs only if there are any: it takes several passes over the gradients.
  NaN, from a first gradient that is not finite, is measured again, too.
  """

  def filled():
    return jax.tree.map(
      lambda x, new: jnp.where(x > 0, x, new.astype(x.dtype)), old, measure()
    )

  unknown = [jnp.any(~(x > 0)) for x in jax.tree.leaves(old)]
  missing = functools.reduce(jnp.logical_or, unknown, jnp.zeros([], bool))
  return jax.lax.cond(missing, filled, lambda: old)


def _over_maximum(gsnr):
  """Divides all ratios by the largest; zeros if all are zero."""
  largest = jnp.zeros([])
  for leaf in jax.tree.leaves(gsnr):
    largest = jnp.maximum(largest, jnp.max(leaf, initial=0.0))
  largest = jnp.where(largest > 0, largest, 1)
  return jax.tree.map(lambda x: x / largest.astype(x.dtype), gsnr)
