"""SCALE: gradients normalized per fan-out unit, with optional momentum."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import blocks, boxes, linalg, moments, placement


class ScaleByColumnNormState(NamedTuple):
  """State of `scale_by_column_norm` with momentum.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: momentum, in the shapes of the parameters, float32 or wider.
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates


def scale_by_column_norm(
  momentum: float | None = None,
  eps: jax.typing.ArrayLike = 1e-8,
  *,
  unit_norm: bool = False,
  state_dtype: jax.typing.DTypeLike | None = None,
  axis: int = -2,
  nesterov: bool = False,
  center: bool = False,
  shape_factor: bool = False,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Divides each slice along one axis of a matrix by its rms.

  For :math:`G \in R^{m \times n}` (fan_in, fan_out; in embeddings vocabulary,
  feature), with :math:`M = G` or, with momentum :math:`\beta`,
  :math:`M_t = \beta M_{t-1} + (1 - \beta) G_t`,

  .. math::

    U_{\cdot j} = M_{\cdot j} / \max(\mathrm{rms}(M_{\cdot j}), \epsilon)

  So every unit of a dense kernel moves by the same amount, and so does every
  feature of an embedding. SCALE (recipe `scale`) uses momentum only on the
  head, where gradients vary most, and Adam on vectors.

  The paper divides by the L2 norm (`unit_norm=True`). Its released code, for
  which the learning rates were published, divides by the rms, which makes
  updates larger by :math:`\sqrt m`. The default follows the code. Both start
  the momentum at zero and do not correct its bias, which has no effect after
  the division.

  With `axis=-1`, slices run along the other axis: every token of an embedding,
  frequent or rare, moves by the same amount.

  Symmetry-compatible updates (recipe `symmetric`) use momentum 0.95 and
  `unit_norm=True`, with `axis=-1` on embeddings and `axis=-2` on heads and on
  routers [feature, expert]. Adding one number to all logits changes no
  probability, so `center=True` subtracts the mean over vocabulary or experts,
  before the division and after it. Their code adds eps to the norm; here eps is
  the smallest norm to divide by.

  RMNP (recipe `rmnp`) uses momentum 0.95, `nesterov`, `unit_norm` and
  `shape_factor` on hidden matrices.

  Learning rates:
    Published: 1e-3 up to 350M parameters, 2e-4 at 1B (C4), for the rms form.
    Symmetry-compatible, embedding and head: 0.5 and 5e-3 (Qwen3 0.6B, OLMoE),
    2.5e-3 and 2.5e-3 (Gemma3 1B); routers 7.5e-4. RMNP: 5e-3 and 1e-3.

  Args:
    momentum: decay of the momentum; None: no momentum, no state.
    eps: smallest rms (or norm) to divide by. Zero slices stay zero.
    unit_norm: divide by the L2 norm, as the paper's equation does.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    axis: the axis of matrices that slices run along, a static integer: -2,
      fan_in (the vocabulary of an embedding [vocab, feature]), or -1, fan_out
      (the features of a token).
    nesterov: use Nesterov momentum.
    center: subtract from matrices the mean over the other axis, before and
      after the division.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)).
    core_ndim: number of trailing axes that form one unit: 2 for matrices; 1 for
      vectors, which are divided by a single rms; all axes before them are a
      batch. None: min(ndim, 2).

  Returns:
    A `GradientTransformation`; the slices of updates have rms (or norm) 1, in
    the dtype of the gradients. State: none; with momentum, mn numbers per
    matrix [m, n], d per vector [d].

  Raises:
    ValueError: `axis` is neither -2 nor -1 or is traced, `core_ndim` does not
      fit, or `nesterov` without `momentum`.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_column_norm()
    >>> grads = jnp.array([[3.0, -0.01], [4.0, 0.01]])  # one loud unit
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.asarray(updates).round(3))
    [[ 0.849 -1.   ]
     [ 1.131  1.   ]]

  References:
    Glentis et al., Memory-Efficient LLM Pretraining via Minimalist Optimizer
    Design, arXiv 2506.16659, 2025.

    Lau and Su, symmetry-compatible updates, arXiv 2605.18106, 2026 (`center`).

    RMNP, arXiv 2603.20527, 2026 (`shape_factor`).
  """
  linalg.check_static('axis', axis, (linalg.FAN_IN, linalg.FAN_OUT))
  axis = operator.index(axis)
  linalg.check_static('core_ndim', core_ndim, (None, 1, 2))
  if nesterov and momentum is None:
    raise ValueError('nesterov=True needs a momentum, got None.')

  def divided(place, x, along):
    """`x` divided by the rms or norm of its slices, in float32 or wider."""
    if jnp.ndim(x):
      mean_square = blocks.mean(jnp.square, x, along, place)
      if unit_norm:
        mean_square = mean_square * x.shape[along]
    else:
      mean_square = jnp.square(linalg.as_stat(x))
    return linalg.as_stat(x) / jnp.maximum(jnp.sqrt(mean_square), eps)

  def normalize(place, x):
    if len(linalg.unit_axes(jnp.ndim(x), core_ndim)) < 2:
      return divided(place, x, linalg.FAN_OUT)
    if not center:
      update = divided(place, x, axis)
    else:
      update = _centered(divided(place, _centered(x, axis), axis), axis)
    fan_in, fan_out = x.shape[-2:]
    factor = max(1.0, fan_out / max(fan_in, 1)) ** 0.5 if shape_factor else 1.0
    return update * factor

  def memoryless_update_fn(
    updates, state, params=None, *, placements=None, **extra_args
  ):
    del params, extra_args
    scaled = placement.tree_map(normalize, placements, updates)
    return optax.tree.cast_like(scaled, updates), state

  def init_fn(params):
    mu = moments.zeros(params)
    return ScaleByColumnNormState(jnp.zeros([], jnp.int32), mu)

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    grads = jax.tree.map(linalg.as_stat, updates)
    average = functools.partial(moments.ema, decay=momentum)
    mu = jax.tree.map(average, grads, state.mu)
    count = optax.safe_increment(state.count)
    mixed = jax.tree.map(average, grads, mu) if nesterov else mu
    scaled = placement.tree_map(normalize, placements, mixed)
    new_state = ScaleByColumnNormState(count, mu)
    return optax.tree.cast_like(scaled, updates), new_state

  rounding.check_dtype(state_dtype)
  if momentum is None:
    return boxes.opened(
      optax.GradientTransformationExtraArgs(
        optax.init_empty_state, memoryless_update_fn
      )
    )
  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return boxes.opened(rounding.low_precision_state(tx, state_dtype))


def _centered(x: jax.Array, axis: int) -> jax.Array:
  """`x` minus its mean over the matrix axis that is not `axis`."""
  x = linalg.as_stat(x)
  other = linalg.FAN_OUT if axis == linalg.FAN_IN else linalg.FAN_IN
  return x - blocks.plain_mean(lambda x: x, x, other)
