"""Fira: GaLore plus the scaled residual of its projection."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg, moments
from sage_optax.core import subspace as subspace_lib


class ScaleByFiraState(NamedTuple):
  """State of `scale_by_fira`.

  Attributes:
    count: int32 scalar, number of updates so far.
    rng_key: uint32[2], the key of random projectors.
    mu: first moment of the projected gradient: the parameter's shape with the
      rank on the smaller side, float32 or wider.
    nu: second moment, the same shape.
    norm: [..., 1, 1], norm of the scaled residual, for the limiter.
    projector: the parameter's shape with the rank on the larger side.
  """

  count: jax.Array  # type: ignore[assignment]
  rng_key: jax.Array
  mu: optax.Updates
  nu: optax.Updates
  norm: optax.Updates
  projector: optax.Updates


def scale_by_fira(
  rank: int,
  update_proj_gap: int = 200,
  alpha: jax.typing.ArrayLike = 0.25,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-6,
  norm_growth_limit: jax.typing.ArrayLike | None = 1.01,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  exact_residual: bool = False,
  projector: subspace_lib.Projector = 'svd',
  key: int | jax.Array = 0,
) -> optax.GradientTransformation:
  r"""Adam in a subspace, with the residual scaled as Adam scales the subspace.

  With a projector P [rank, smaller side], renewed every `update_proj_gap`
  steps, and the gradient transposed if necessary to [smaller side, larger
  side],

  .. math::

    R_t &= P g_t, \quad m_t = \beta_1 m_{t-1} + (1 - \beta_1) R_t, \quad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) R_t^2 \\
    N_t &= m_t / (\sqrt{v_t} + \epsilon), \quad
      \phi_{t,j} = \|N_{t,:j}\| / (\|R_{t,:j}\| + 10^{-8}) \\
    u_t &= \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \left( \alpha P^T N_t +
      \mathrm{limited}((g_t - \alpha P^T R_t) \, \mathrm{diag}(\phi_t)) \right)

  There is one factor per index j of the larger side. The limiter lets the norm
  of a matrix's residual grow at most by the factor `norm_growth_limit` per
  step, except in the first step.

  The paper subtracts the whole projection from the gradient
  (`exact_residual=True`). The default follows the released code, which
  subtracts `alpha` times the projection, so part of the leading directions
  stays in the residual. As in that code, eps and the limiter are applied before
  the bias correction. After a zero residual, the code stores the norm 0, and
  the residual has hardly any effect from then on; this function keeps the
  previous norm.

  Learning rates:
    Published: 0.01 (its paper, Llama of 60M to 1B parameters on C4).

  Args:
    rank: rows of P, at most the smaller side; a static integer.
    update_proj_gap: steps between two projectors, a static integer.
    alpha: factor of the update in the subspace.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    norm_growth_limit: largest factor by which a residual's norm may grow in one
      step; None: no limiter.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    exact_residual: subtract the projection without `alpha`.
    projector: as in `scale_by_galore`.
    key: seed or key of the projectors; 'svd' does not use it.

  Returns:
    A `GradientTransformation` for matrices [..., fan_in, fan_out]; updates keep
    the dtype of the gradients. State per matrix: 2 * rank * larger side + rank
    * smaller side + 1.

  Raises:
    ValueError: `rank` or `update_proj_gap` is less than 1 or traced, or
      `projector` is unknown; from `init`, an array with fewer than 2 axes.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_fira(rank=1, exact_residual=True)
    >>> grads = jnp.array([[3.0, 3.0], [1.0, -1.0]])  # the first row leads
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.asarray(updates).round(2))  # alpha for it, 1/3 for the rest
    [[ 0.25  0.25]
     [ 0.33 -0.33]]

  References:
    Chen et al., Fira: Can We Achieve Full-rank Training of LLMs Under
    Low-rank Constraint?, arXiv 2410.01623, 2024.
  """
  when = subspace_lib.schedule(rank, update_proj_gap, projector)

  def init_fn(params):
    linalg.check_matrices(params, 'scale_by_fira')
    return ScaleByFiraState(
      count=jnp.zeros([], jnp.int32),
      rng_key=rounding.raw_key(key),
      mu=subspace_lib.init_moments(params, rank),
      nu=subspace_lib.init_moments(params, rank),
      norm=subspace_lib.init_norms(params),
      projector=subspace_lib.init_projectors(params, rank),
    )

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    count = optax.safe_increment(state.count)
    projectors = subspace_lib.renew(when, state, updates, placements)
    grads = jax.tree.map(linalg.as_stat, updates)
    numbers = (b1, b2, eps, alpha, norm_growth_limit)

    def uncorrected(numbers, grad, projector, mu, nu, old_norm):
      b1, b2, eps, alpha, limit = numbers
      low = subspace_lib.project(grad, projector)
      direction, mu, nu = moments.raw_adam(low, mu, nu, b1, b2, eps)
      axis = subspace_lib.rank_axis(grad.shape)
      phi = linalg.norm(direction, axis) / (linalg.norm(low, axis) + 1e-8)
      kept = subspace_lib.back(low, projector, grad.shape)
      residual = grad - (kept if exact_residual else alpha * kept)
      # If the gradient lies in the subspace, the residual is rounding error.
      # The limiter would need a thousand steps to grow from its tiny norm.
      left = linalg.norm(residual, (-2, -1))
      noise = 1e-6 * linalg.norm(grad, (-2, -1))
      residual = jnp.where(left > noise, residual, 0.0)
      residual, norm = linalg.limit_growth(residual * phi, old_norm, limit)
      subspace = subspace_lib.back(direction, projector, grad.shape)
      return alpha * subspace + residual, mu, nu, norm

    trees = grads, projectors, state.mu, state.nu, state.norm
    scaled, mu, nu, norm = moments.map_corrected(
      uncorrected, numbers, count, *trees
    )
    new_state = ScaleByFiraState(count, state.rng_key, mu, nu, norm, projectors)
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return boxes.opened(
    rounding.low_precision_state(tx, state_dtype, constant=('projector',))
  )
