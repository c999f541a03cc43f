"""SPAM: Adam that clips spikes and resets its moments periodically."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg, moments


class ScaleBySpamState(NamedTuple):
  """State of `scale_by_spam`.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: first moment, in the shapes of the parameters, float32 or wider.
    nu: second moment, likewise.
    rng_key: uint32[2], the key of the masks.
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates
  nu: optax.Updates
  rng_key: jax.Array


def scale_by_spam(
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-6,
  threshold: jax.typing.ArrayLike = 5000.0,
  reset_interval: int = 500,
  warmup_steps: int = 150,
  grace_steps: int = 20,
  density: jax.typing.ArrayLike = 1.0,
  key: int | jax.Array = 0,
  *,
  state_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
  r"""Adam that clips spikes and resets its moments periodically.

  With R the `reset_interval`, W the `warmup_steps`, c = t mod R (t starts at
  1), and m and v set to 0 before their use in steps with c = 0:

  .. math::

    g &\leftarrow \mathrm{sign}(g) \sqrt{\theta v_{t-1}}
      \text{ where } g^2 > \theta v_{t-1} > 0 \text{ and } c \ge
      \text{grace\_steps} \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g, \quad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) g^2 \\
    u_t &= f_t \frac{m_t}{\sqrt{v_t} + \epsilon}
      \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}, \quad
      f_t = 1 - \frac{0.99}{2} \left(1 + \cos \frac{\pi c}{W + 1}\right)
      \text{ if } t \ge R \text{ and } c < W \text{, else } 1

  As in the authors' released code, the clip uses v without bias correction, eps
  is added before the bias correction, and the count of the bias correction is
  never reset. Long after the start, the first step after a reset is therefore
  :math:`(1 - \beta_1) / \sqrt{1 - \beta_2}` (3.2) times Adam's; the warm-up's
  factor of 0.01 outweighs that. An entry that had no gradient yet (v = 0) is
  not clipped; the released code sets it to zero, so that embeddings of rare
  tokens do not move until the next reset.

  With `density` < 1, only a random part of the entries learns until the next
  reset, as in the paper's sparse momentum. The moments keep the parameters'
  shapes, so this saves no memory here. The mask is not stored: every step
  computes it from the key, with the same result until the next reset.

  Learning rates:
    We know of no published rates. Start with Adam's, because between spikes the
    update is Adam's.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    threshold: theta, the largest allowed ratio of a squared entry to its second
      moment.
    reset_interval: steps between resets of the moments, at least 1.
    warmup_steps: length of the warm-up after each reset.
    grace_steps: steps without clipping at the start and after each reset.
    density: share of the entries that learn between two resets, in (0, 1]. With
      the Python number 1, the program contains no masks; with an array (as
      under `optax.inject_hyperparams`), masks are computed in every step.
    key: seed or key of the masks.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider. Second moments of gradients below 1e-17 are
      zero in either: nothing is clipped.

  Returns:
    A `GradientTransformation`; updates keep the dtype of the gradients. State:
    2mn numbers per matrix [m, n], 2d per vector [d].

  Raises:
    ValueError: `reset_interval` is less than 1, or `density` not in (0, 1].

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_spam()
    >>> grads = jnp.ones(2)
    >>> state = tx.init(grads)
    >>> for grads in 30 * [grads] + [jnp.array([1.0, 1e4])]:
    ...   updates, state = tx.update(grads, state)
    >>> print(np.asarray(state.mu).round(2))  # 1e4 counts as 12
    [0.96 2.08]

  References:
    Huang et al., SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM
    Training, arXiv 2501.06842, 2025.
  """
  if not isinstance(reset_interval, jax.Array):  # it may be traced
    linalg.check_positive('reset_interval', reset_interval)
  dense = False
  if isinstance(density, (int, float)):  # an array may be traced
    if not 0 < density <= 1:
      raise ValueError(f'density must be above 0 and at most 1, got {density}.')
    dense = density == 1

  def init_fn(params):
    return ScaleBySpamState(
      jnp.zeros([], jnp.int32),
      moments.zeros(params),
      moments.zeros(params),
      rounding.raw_key(key),
    )

  def clip(grad, nu):
    limit = jnp.sqrt(threshold * nu)
    spike = (nu > 0) & (jnp.abs(grad) > limit)
    return jnp.where(spike, jnp.sign(grad) * limit, grad)

  def update_fn(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    since = count % reset_interval
    mu, nu = jax.tree.map(
      lambda x: jnp.where(since == 0, 0, x), (state.mu, state.nu)
    )
    grads = jax.tree.map(linalg.as_stat, updates)
    if not dense:
      resets = count // reset_interval
      grads = _masked(grads, state.rng_key, resets, density)
    grads = jax.tree.map(
      lambda g, v: jnp.where(since >= grace_steps, clip(g, v), g), grads, nu
    )
    cold = moments.cosine(since, warmup_steps, 0.99, 0.0)
    factor = jnp.where(count < reset_interval, 1.0, 1.0 - cold)

    def adam(grad, mu, nu):
      step, mu, nu = moments.raw_adam(grad, mu, nu, b1, b2, eps)
      correction = moments.adam_correction(count, b1, b2, mu.dtype)
      return step * (factor * correction), mu, nu

    results = jax.tree.map(adam, grads, mu, nu)
    scaled, mu, nu = moments.unzip(results, grads, 3)
    new_state = ScaleBySpamState(count, mu, nu, state.rng_key)
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformation(init_fn, update_fn)
  return boxes.opened(rounding.low_precision_state(tx, state_dtype))


def _masked(grads, raw_key, resets, density):
  """`grads`, zero outside of the mask that is used after `resets` resets."""
  key = rounding.typed_key(raw_key)
  key = jax.random.fold_in(key, resets)

  def keep(number, grad):
    drawn = jax.random.uniform(
      rounding.leaf_key(key, number),
      grad.shape,
      jnp.float32,
      out_sharding=linalg.explicit_sharding(grad),
    )
    return jnp.where(drawn < density, grad, 0)

  return jax.tree.map(keep, rounding.leaf_numbers(grads), grads)
