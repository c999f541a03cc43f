"""Adam: Optax's, with its statistics in float32 or wider."""

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg, moments


def scale_by_adam(
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  state_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
  r"""`optax.scale_by_adam` with float32 moments, also for bfloat16 parameters.

  .. math::

    m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
    u_t &= \frac{m_t / (1 - \beta_1^t)}
      {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

  Optax keeps the moments in the parameters' dtype. A bfloat16 second moment
  with b2 = 0.999 stops changing, because each step changes it by less than its
  resolution.

  Learning rates:
    Published: 1e-4 in SAGE's suite (270M and 1.3B, The Pile), untuned; 1e-3 is
    customary at 60M parameters, 5e-4 at 1B and above. From our study at width
    64, embedding and matrices: `adamw` 6.4e-2 and 8e-3; one rate for both is
    much worse.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.

  Returns:
    A `GradientTransformation` with an `optax.ScaleByAdamState`; updates keep
    the dtype of the gradients. State: 2mn numbers per matrix [m, n], 2d per
    vector [d].

  Example:
    >>> import jax.numpy as jnp, sage_optax
    >>> tx = sage_optax.scale_by_adam()
    >>> state = tx.init(jnp.ones(3, jnp.bfloat16))
    >>> print(state.nu.dtype)
    float32

  References:
    Kingma and Ba, Adam, arXiv 1412.6980, 2014.
  """
  linalg.check_precise('b1', b1)
  linalg.check_precise('b2', b2)
  adam = optax.scale_by_adam(b1, b2, eps)

  def init_fn(params):
    return adam.init(moments.zeros(params))

  def update_fn(updates, state, params=None):
    del params
    grads = jax.tree.map(
      lambda g, m: jnp.asarray(g, m.dtype), updates, state.mu
    )
    scaled, state = adam.update(grads, state)
    return optax.tree.cast_like(scaled, updates), state

  tx = optax.GradientTransformation(init_fn, update_fn)
  return boxes.opened(rounding.low_precision_state(tx, state_dtype))
