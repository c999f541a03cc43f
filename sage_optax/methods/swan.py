"""SWAN: each gradient matrix standardized and whitened, without state."""

import jax.numpy as jnp
import optax

from sage_optax.core import boxes, linalg, orthogonal, placement

_UNIT = (linalg.FAN_IN, linalg.FAN_OUT)


def scale_by_swan(
  ns_steps: int = 10,
  *,
  center: bool = True,
  rescale: bool = True,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Standardizes gradients per fan-out unit, then whitens each matrix.

  For :math:`G \in R^{m \times n}` (fan_in, fan_out), with mean and variance
  over fan_in,

  .. math::

    \tilde G_{\cdot j} &= (G_{\cdot j} - \mathrm{mean}(G_{\cdot j})) /
      \sqrt{\mathrm{var}(G_{\cdot j}) + 10^{-8}} \\
    W &= (\tilde G \tilde G^\top)^{-1/2} \tilde G, \quad
      U = W \, \|\tilde G\|_2 / \|W\|_2

  The inverse root is computed by a coupled Newton-Schulz iteration on the Gram
  matrix of the smaller side, divided by its Frobenius norm, in float32 or
  wider. If the gradients' standard deviations are far above 1e-4, entries end
  with root mean square 1. Smaller gradients give smaller entries: scale tiny
  gradients first (`optax.scale`).

  Centering removes the mean over fan_in from every update, so that only weight
  decay changes the mean of a unit's weights. `center=False` keeps it.

  The authors' code was not available. An independent implementation divides the
  Gram matrix by its trace instead. Both agree once the iteration has converged;
  before, that implementation lags by log(trace / norm) / log(2.25) iterations,
  which is five for 2048 equal singular values.

  Learning rates:
    We know of no published rates. Entries move by the learning rate, as with
    Adam, so start with Adam's rates.

  Args:
    ns_steps: number of iterations, at least 1. Singular values below about
      1.5^-ns_steps of a typical one stay smaller than the others. Use at most
      20 in float32: centering leaves a direction without signal in which
      rounding errors grow by 1.5 per iteration, and from about 25 iterations on
      it can diverge.
    center: subtract the mean over fan_in, so that the variance is taken about
      the mean, else about 0.
    rescale: restore the Frobenius norm that the matrix had before whitening.
      Without it, singular values end near 1.
    core_ndim: 2 or None; all axes before the last two are a batch.

  Returns:
    A `GradientTransformation` without state, for matrices; updates keep the
    dtype of the gradients. A zero gradient gives zero. State: none.

  Raises:
    ValueError: `core_ndim` is not 2; `ns_steps` is less than 1 or traced; from
      `init`, a leaf that is not a matrix.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_swan(center=False)
    >>> grads = jnp.array([[1.0, 10.0], [0.5, 9.0]])  # nearly one direction
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.asarray(updates).round(3))
    [[ 1.39   0.263]
     [-0.263  1.39 ]]

  References:
    Ma et al., SWAN: SGD with Normalization and Whitening Enables Stateless LLM
    Training, arXiv 2412.13148, 2024.
  """
  linalg.check_static('core_ndim', core_ndim, (None, 2))
  linalg.check_positive('ns_steps', ns_steps)

  def direction(place, grad):
    x = linalg.as_stat(grad)
    if center:
      x = x - jnp.mean(x, axis=linalg.FAN_IN, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=linalg.FAN_IN, keepdims=True)
    x = x / jnp.sqrt(variance + 1e-8)
    white = orthogonal.whiten(x, ns_steps, place)
    if rescale:
      now = linalg.safe_norm(white, _UNIT)
      before = linalg.safe_norm(x, _UNIT)
      white = white * (before / jnp.where(now > 0, now, 1.0))
    return white

  def init_fn(params):
    linalg.check_matrices(params, 'scale_by_swan')
    return optax.EmptyState()

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    scaled = placement.tree_map(direction, placements, updates)
    return optax.tree.cast_like(scaled, updates), state

  return boxes.opened(optax.GradientTransformationExtraArgs(init_fn, update_fn))
