"""APOLLO: SGD with a factor per channel from Adam in a random subspace."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg, moments, subspace


class ScaleByApolloState(NamedTuple):
  """State of `scale_by_apollo`.

  Attributes:
    count: int32 scalar, number of updates so far.
    rng_key: uint32[2], the key of the projectors.
    mu: first moment of the projected gradient: the parameter's shape with the
      rank on the smaller side, float32 or wider.
    nu: second moment, the same shape.
    norm: [..., 1, 1], norm of the scaled gradient, for the limiter.
    projector: the parameter's shape with the rank on the larger side; None for
      'gaussian', whose projectors are generated from `rng_key` in each step.
  """

  count: jax.Array  # type: ignore[assignment]
  rng_key: jax.Array
  mu: optax.Updates
  nu: optax.Updates
  norm: optax.Updates
  projector: optax.Updates | None


def scale_by_apollo(
  rank: int,
  update_proj_gap: int = 200,
  scale: jax.typing.ArrayLike = 1.0,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-6,
  norm_growth_limit: jax.typing.ArrayLike | None = 1.01,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  per_unit: bool = True,
  scale_front: bool = False,
  projector: subspace.Projector = 'gaussian',
  key: int | jax.Array = 0,
) -> optax.GradientTransformation:
  r"""Scales each channel of a gradient by a factor from Adam in a subspace.

  With a projector P [rank, smaller side], renewed every `update_proj_gap`
  steps, and the gradient transposed if necessary to [smaller side, larger
  side],

  .. math::

    R_t &= P g_t, \quad m_t = \beta_1 m_{t-1} + (1 - \beta_1) R_t, \quad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) R_t^2 \\
    N_t &= m_t / (\sqrt{v_t} + \epsilon), \quad
      s_{t,j} = \|N_{t,:j}\| / (\|R_{t,:j}\| + 10^{-8}) \\
    u_t &= \sqrt{\mathrm{scale}} \, \frac{\sqrt{1 - \beta_2^t}}
      {1 - \beta_1^t} \, \mathrm{limited}(g_t \, \mathrm{diag}(s_t))

  There is one factor s per index j of the larger side, or one per matrix
  (`per_unit=False`). The limiter lets the norm of a matrix grow at most by the
  factor `norm_growth_limit` per step, except in the first step. Moments are
  kept when P changes.

  Details that the paper leaves open follow the released code: the root of
  `scale`, and eps and the limiter before the bias correction. There is one
  difference: after a zero gradient, the released code stores the norm 0, and
  the matrix hardly moves from then on; this function keeps the previous norm.

  Learning rates:
    Published: 0.01 (its paper, Llama of 60M to 1B parameters on C4), also for
    APOLLO-Mini; SAGE's script uses 1e-4 (The Pile).

  Args:
    rank: rows of P, at most the smaller side; a static integer.
    update_proj_gap: steps between two projectors, a static integer.
    scale: the update is multiplied by its square root. APOLLO-Mini uses 128
      with rank 1.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    norm_growth_limit: largest factor by which a matrix's norm may grow in one
      step; None: no limiter.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    per_unit: one factor per index of the larger side; False: per matrix.
    scale_front: apply `scale` before the limiter, an option of the released
      code.
    projector: 'gaussian', entries N(0, 1/rank); 'svd', the leading singular
      vectors of the gradient; 'subspace', nearly the same, by orthogonal
      iteration; or a callable (key, matrix[fan_in, fan_out], count) -> P[rank,
      smaller side]. With optax.inject_hyperparams, name `projector` in
      static_args if it is a callable.
    key: seed or key of the projectors.

  Returns:
    A `GradientTransformation` for matrices [..., fan_in, fan_out]; updates keep
    the dtype of the gradients. State per matrix: 2 * rank * larger side + 1,
    plus rank * smaller side unless P is 'gaussian'.

  Raises:
    ValueError: `rank` or `update_proj_gap` is less than 1 or traced, or
      `projector` is unknown; from `init`, an array with fewer than 2 axes.

  Example:
    >>> import jax, jax.numpy as jnp, sage_optax
    >>> params = jnp.zeros((1024, 4096))
    >>> tx = sage_optax.scale_by_apollo(rank=1, per_unit=False, scale=128.0)
    >>> print(sage_optax.memory.state_bytes(tx, params))  # AdamW: 33554432
    32784

  References:
    Zhu et al., APOLLO: SGD-like Memory, AdamW-level Performance,
    arXiv 2412.05270, 2024.
  """
  when = subspace.schedule(rank, update_proj_gap, projector)

  def init_fn(params):
    linalg.check_matrices(params, 'scale_by_apollo')
    return ScaleByApolloState(
      count=jnp.zeros([], jnp.int32),
      rng_key=rounding.raw_key(key),
      mu=subspace.init_moments(params, rank),
      nu=subspace.init_moments(params, rank),
      norm=subspace.init_norms(params),
      projector=None
      if projector == 'gaussian'
      else subspace.init_projectors(params, rank),
    )

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    count = optax.safe_increment(state.count)
    projectors = subspace.renew(when, state, updates, placements)
    grads = jax.tree.map(linalg.as_stat, updates)
    numbers = (b1, b2, eps, norm_growth_limit, jnp.sqrt(scale))

    def limited(numbers, grad, projector, mu, nu, old_norm):
      b1, b2, eps, limit, factor = numbers
      low = subspace.project(grad, projector)
      direction, mu, nu = moments.raw_adam(low, mu, nu, b1, b2, eps)
      axes = subspace.rank_axis(grad.shape) if per_unit else (-2, -1)
      scaled = grad * (
        linalg.norm(direction, axes) / (linalg.norm(low, axes) + 1e-8)
      )
      before, after = (factor, 1.0) if scale_front else (1.0, factor)
      scaled, norm = linalg.limit_growth(scaled * before, old_norm, limit)
      return scaled * after, mu, nu, norm

    trees = grads, projectors, state.mu, state.nu, state.norm
    scaled, mu, nu, norm = moments.map_corrected(
      limited, numbers, count, *trees
    )
    new_state = ScaleByApolloState(
      count,
      state.rng_key,
      mu,
      nu,
      norm,
      None if state.projector is None else projectors,
    )
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return boxes.opened(
    rounding.low_precision_state(tx, state_dtype, constant=('projector',))
  )
