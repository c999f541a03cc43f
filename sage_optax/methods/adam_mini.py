"""Adam with one second moment per slice: Adam-mini, Coupled Adam."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import blocks, boxes, linalg, moments, placement


class ScaleByAdamMiniState(NamedTuple):
  """State of `scale_by_adam_mini`.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: first moment, in the shapes of the parameters, float32 or wider;
      None if `b1` is None.
    nu: second moment; in matrices, `axis` has size 1.
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates | None
  nu: optax.Updates


def scale_by_adam_mini(
  b1: float | None = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  axis: int = -2,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Adam whose second moment is averaged over one axis of each matrix.

  .. math::

    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) \, \mathrm{mean}(g_t^2) \\
    u_t &= \frac{m_t / (1 - \beta_1^t)}
      {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

  with the mean over `axis`, so that a slice along it has a single step size.

  On an embedding [vocab, feature], axis -2 is Coupled Adam: all tokens share
  the second moment of a feature. The gradients of a softmax, whose sum over the
  vocabulary is zero, then move the mean embedding no more than with SGD. Axis
  -1 is Adam-mini: each token has one second moment.

  On a dense kernel [fan_in, fan_out] or a head [feature, vocab], axis -2 is
  Adam-mini: each fan-out unit has one second moment. The exception is queries
  and keys, where Adam-mini has one per attention head; the shape does not show
  where heads begin.

  SAGE stores as many numbers, but averages |g| instead of g^2.

  Learning rates:
    Published: Adam's rates, for both methods.

  Args:
    b1: decay of the first moment; None: no first moment; the gradient itself is
      divided.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    axis: the axis of matrices to average over, -2 or -1, a static integer.
    core_ndim: number of trailing axes that form one unit: 2 for matrices; 1 for
      vectors, whose elements each have a second moment; all axes before them
      are a batch. None: min(ndim, 2).

  Returns:
    A `GradientTransformation`; updates keep the dtype of the gradients. State:
    mn + n numbers per matrix [m, n] (axis -2) or mn + m (axis -1), 2d per
    vector [d]; without a first moment: n (axis -2), m (axis -1), d (vector).

  Raises:
    ValueError: `axis` is neither -2 nor -1 or is traced, or `core_ndim` does
      not fit.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_adam_mini()
    >>> grads = jnp.array([[3.0, -0.1], [4.0, 0.1]])
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.asarray(updates).round(3))
    [[ 0.849 -1.   ]
     [ 1.131  1.   ]]

  References:
    Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More, arXiv
    2406.16793, 2024.

    Stollenwerk and Stollenwerk, Better Embeddings with Coupled Adam, arXiv
    2502.08441, 2025.
  """
  linalg.check_static('axis', axis, (linalg.FAN_IN, linalg.FAN_OUT))
  axis = operator.index(axis)
  linalg.check_static('core_ndim', core_ndim, (None, 1, 2))

  def mean_square(place, grad):
    if len(linalg.unit_axes(jnp.ndim(grad), core_ndim)) < 2:
      return jnp.square(linalg.as_stat(grad))
    return blocks.mean(jnp.square, grad, axis, place)

  def init_fn(params):
    nu = moments.zeros_of(functools.partial(mean_square, None), params)
    mu = None if b1 is None else moments.zeros(params)
    return ScaleByAdamMiniState(jnp.zeros([], jnp.int32), mu, nu)

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    count = optax.safe_increment(state.count)
    nu = placement.tree_map(
      lambda place, g, v: moments.ema(mean_square(place, g), v, b2),
      placements,
      updates,
      state.nu,
    )
    mu, first = None, jax.tree.map(linalg.as_stat, updates)
    if b1 is not None:
      mu = jax.tree.map(lambda g, m: moments.ema(g, m, b1), first, state.mu)
      first = jax.tree.map(lambda m: moments.unbiased(m, b1, count), mu)
    scaled = jax.tree.map(
      lambda m, v: m / (jnp.sqrt(moments.unbiased(v, b2, count)) + eps),
      first,
      nu,
    )
    new_state = ScaleByAdamMiniState(count, mu, nu)
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return boxes.opened(rounding.low_precision_state(tx, state_dtype))
