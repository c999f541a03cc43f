"""Adafactor: a second moment that is the product of two vectors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg, moments


class ScaleByAdafactorState(NamedTuple):
  """State of `scale_by_adafactor`.

  Attributes:
    count: int32 scalar, number of updates so far.
    fan_in: mean squares over fan_out, [..., fan_in, 1]; of vectors, squares.
    fan_out: mean squares over fan_in, [..., 1, fan_out]; of vectors, one zero
      each.
    mu: momentum, in the shapes of the parameters; None if `momentum` is None.
  """

  count: jax.Array  # type: ignore[assignment]
  fan_in: optax.Updates
  fan_out: optax.Updates
  mu: optax.Updates | None


def scale_by_adafactor(
  momentum: float | None = None,
  decay_rate: float = 0.8,
  eps: jax.typing.ArrayLike = 1e-30,
  clipping_threshold: float | None = 1.0,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Divides by the root of a factored second moment, and clips the update.

  For :math:`G \in R^{m \times n}` (fan_in, fan_out) and
  :math:`\beta_t = 1 - t^{-0.8}`,

  .. math::

    r_t &= \beta_t r_{t-1} + (1 - \beta_t) \,
      \mathrm{mean}_{fan\_out}(G_t^2 + \epsilon), \quad
    c_t = \beta_t c_{t-1} + (1 - \beta_t) \,
      \mathrm{mean}_{fan\_in}(G_t^2 + \epsilon) \\
    V_t &= r_t c_t / \mathrm{mean}(r_t), \quad U_t = G_t / \sqrt{V_t} \\
    \hat U_t &= U_t / \max(1, \mathrm{rms}(U_t) / d)

  with d = `clipping_threshold`. Vectors keep their whole second moment. The
  relative step size of the paper, rms(parameter) times the learning rate, can
  be added with `optax.scale_by_param_block_rms`; the recipe does not use it.

  For a single matrix, `optax.scale_by_factored_rms` is the same without
  clipping. In a stack of layers, Optax factors over the two longest axes, and
  it does not factor matrices with a side below 128.

  Learning rates:
    Without the relative step size, we know of no published rates.

  Args:
    momentum: decay of the moving average of the clipped updates, without bias
      correction; None: no momentum.
    decay_rate: exponent of the decay, 0.8 above.
    eps: added to the squared gradients.
    clipping_threshold: largest root mean square of a unit's update; None: no
      limit.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (the momentum
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    core_ndim: number of trailing axes that form one unit: 2 for matrices, 1 for
      vectors; all axes before them are a batch. None: min(ndim, 2).

  Returns:
    A `GradientTransformation`; updates keep the dtype of the gradients. State:
    m + n numbers per matrix [m, n] and d + 1 per vector [d]; with momentum, mn
    and d more.

  Raises:
    ValueError: `core_ndim` does not fit, or int8 without a momentum.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_adafactor(clipping_threshold=None)
    >>> grads = jnp.array([[1.0, -2.0], [10.0, -20.0]])  # of rank one
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.asarray(updates).round(3))
    [[ 1. -1.]
     [ 1. -1.]]

  References:
    Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory
    Cost, arXiv 1804.04235, 2018.
  """
  linalg.check_static('core_ndim', core_ndim, (None, 1, 2))
  if momentum is None:
    reason = 'without a momentum its state is two vectors per matrix'
    rounding.refuse_int8(state_dtype, 'Adafactor', reason)

  def is_vector(x):
    return len(linalg.unit_axes(jnp.ndim(x), core_ndim)) < 2

  def squares(grad):
    """The two statistics of one gradient."""
    square = jnp.square(linalg.as_stat(grad)) + eps
    if is_vector(grad):
      rest = (*square.shape[:-1], 1) if square.ndim else ()
      return square, linalg.aligned_zeros(grad, rest, square.dtype)
    return _mean(square, linalg.FAN_OUT), _mean(square, linalg.FAN_IN)

  def direction(grad, fan_in, fan_out):
    x = linalg.as_stat(grad)
    if is_vector(grad):
      update = x / jnp.sqrt(fan_in)
    else:
      mean = _mean(fan_in, linalg.FAN_IN)
      # The product of r and c, or r / mean(r), would underflow to 0.
      rest = jnp.sqrt(mean) / jnp.sqrt(fan_out)
      update = x / jnp.sqrt(fan_in) * rest
    if clipping_threshold is None:
      return update
    size = linalg.rms(update, linalg.unit_axes(update.ndim, core_ndim))
    return update / jnp.maximum(size / clipping_threshold, 1.0)

  def init_fn(params):
    return ScaleByAdafactorState(
      jnp.zeros([], jnp.int32),
      moments.zeros_of(lambda p: squares(p)[0], params),
      moments.zeros_of(lambda p: squares(p)[1], params),
      None if momentum is None else moments.zeros(params),
    )

  def update_fn(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    now = moments.unzip(jax.tree.map(squares, updates), updates, 2)

    def average(new, old):
      decay = 1 - jnp.asarray(count, new.dtype) ** -decay_rate
      return moments.ema(new, old, decay)

    fan_in = jax.tree.map(average, now[0], state.fan_in)
    fan_out = jax.tree.map(average, now[1], state.fan_out)
    scaled, mu = jax.tree.map(direction, updates, fan_in, fan_out), None
    if momentum is not None:
      mu = jax.tree.map(
        lambda u, m: moments.ema(u, m, momentum), scaled, state.mu
      )
      scaled = mu
    new_state = ScaleByAdafactorState(count, fan_in, fan_out, mu)
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformation(init_fn, update_fn)
  return boxes.opened(rounding.low_precision_state(tx, state_dtype))


def _mean(x: jax.Array, axis: int) -> jax.Array:
  """Mean over `axis`, which is kept with size 1; 0 where it has no elements."""
  return jnp.sum(x, axis=axis, keepdims=True) / max(x.shape[axis], 1)
