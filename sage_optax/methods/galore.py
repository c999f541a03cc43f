"""GaLore: Adam in a subspace that follows the gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg, moments, subspace


class ScaleByGaloreState(NamedTuple):
  """State of `scale_by_galore`.

  Attributes:
    count: int32 scalar, number of updates so far.
    rng_key: uint32[2], the key of random projectors.
    mu: first moment of the projected gradient: the parameter's shape with the
      rank on the smaller side, float32 or wider.
    nu: second moment, the same shape.
    projector: the parameter's shape with the rank on the larger side.
  """

  count: jax.Array  # type: ignore[assignment]
  rng_key: jax.Array
  mu: optax.Updates
  nu: optax.Updates
  projector: optax.Updates


def scale_by_galore(
  rank: int,
  update_proj_gap: int = 200,
  scale: jax.typing.ArrayLike = 0.25,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-6,
  state_dtype: jax.typing.DTypeLike | None = None,
  *,
  projector: subspace.Projector = 'svd',
  key: int | jax.Array = 0,
) -> optax.GradientTransformation:
  r"""Adam on gradients projected to their leading singular vectors.

  With a projector P [rank, smaller side], renewed every `update_proj_gap`
  steps, and the gradient transposed if necessary to [smaller side, larger
  side],

  .. math::

    R_t &= P g_t, \quad m_t = \beta_1 m_{t-1} + (1 - \beta_1) R_t, \quad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) R_t^2 \\
    u_t &= \mathrm{scale} \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \,
      P^T \frac{m_t}{\sqrt{v_t} + \epsilon}

  The moments are kept when P changes. As in the released code, eps is added
  before the bias correction, and the singular vectors are computed in float32.

  `optax.contrib.galore` projects the larger side and uses Adam for leaves with
  three axes; here all axes before the last two are a batch of matrices. On TPUs
  and for sharded matrices, use projector='subspace', because an SVD is slow to
  compile there and is computed unsharded.

  Learning rates:
    Published: 0.01 (its paper, Llama of 60M to 1B parameters on C4).

  Args:
    rank: rows of P, at most the smaller side; a static integer.
    update_proj_gap: steps between two projectors, a static integer.
    scale: factor of the update.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    projector: 'svd', the leading singular vectors of the gradient; 'subspace',
      nearly the same, by orthogonal iteration from the previous projector;
      'gaussian', entries N(0, 1/rank); or a callable (key, matrix[fan_in,
      fan_out], count) -> P[rank, smaller side]. With optax.inject_hyperparams,
      name `projector` in static_args if it is a callable.
    key: seed or key of the projectors; 'svd' does not use it.

  Returns:
    A `GradientTransformation` for matrices [..., fan_in, fan_out]; updates keep
    the dtype of the gradients. State per matrix: 2 * rank * larger side + rank
    * smaller side.

  Raises:
    ValueError: `rank` or `update_proj_gap` is less than 1 or traced, or
      `projector` is unknown; from `init`, an array with fewer than 2 axes.

  Example:
    >>> import jax.numpy as jnp, sage_optax
    >>> tx = sage_optax.scale_by_galore(rank=1)
    >>> grads = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(jnp.diag(updates).round(2))  # the leading direction only
    [0.25 0.   0.  ]

  References:
    Zhao et al., GaLore: Memory-Efficient LLM Training by Gradient Low-Rank
    Projection, arXiv 2403.03507, 2024.
  """
  when = subspace.schedule(rank, update_proj_gap, projector)

  def init_fn(params):
    linalg.check_matrices(params, 'scale_by_galore')
    return ScaleByGaloreState(
      count=jnp.zeros([], jnp.int32),
      rng_key=rounding.raw_key(key),
      mu=subspace.init_moments(params, rank),
      nu=subspace.init_moments(params, rank),
      projector=subspace.init_projectors(params, rank),
    )

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    count = optax.safe_increment(state.count)
    projectors = subspace.renew(when, state, updates, placements)
    grads = jax.tree.map(linalg.as_stat, updates)

    def low_rank_adam(numbers, grad, projector, mu, nu):
      *numbers, scale = numbers
      low = subspace.project(grad, projector)
      direction, mu, nu = moments.raw_adam(low, mu, nu, *numbers)
      return scale * subspace.back(direction, projector, grad.shape), mu, nu

    trees = grads, projectors, state.mu, state.nu
    scaled, mu, nu = moments.map_corrected(
      low_rank_adam, (b1, b2, eps, scale), count, *trees
    )
    new_state = ScaleByGaloreState(count, state.rng_key, mu, nu, projectors)
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return boxes.opened(
    rounding.low_precision_state(tx, state_dtype, constant=('projector',))
  )
