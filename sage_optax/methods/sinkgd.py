"""SinkGD and MultiNorm: gradients normalized in several norms in turn."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import boxes, linalg, orthogonal, placement, sinkhorn


def scale_by_sinkgd(
  num_iters: int = 5,
  eps: jax.typing.ArrayLike = 1e-8,
  *,
  unit_norm: bool = False,
  kernels: str | None = None,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Normalizes gradient matrices over fan_in and fan_out in turn.

  `num_iters` times, for :math:`X \in R^{m \times n}` (fan_in, fan_out):

  .. math::

    X_{ij} &\leftarrow \sqrt m \, X_{ij} / (\|X_{\cdot j}\|_2 + \epsilon) \\
    X_{ij} &\leftarrow \sqrt n \, X_{ij} / (\|X_{i \cdot}\|_2 + \epsilon)

  In PyTorch's layout, that is rows first, then columns. Entries end with root
  mean square 1. Vectors (`core_ndim` 1) become g / (norm2(g) + eps). The paper
  has no eps; released implementations add it to the norms, as here, or use it
  as a lower bound.

  Learning rates:
    Published: 0.02 times 0.05 on matrices (60M to 1B, C4), Adam elsewhere.
    SAGE's suite uses 2e-4 times 100. Its hybrid uses 2e-3 times 10 on matrices
    of unit norm. The product is the same, which suggests `unit_norm=True` for
    the former, too; but the released class of pure SinkGD keeps the square
    roots. From our study at width 64, embedding and matrices: `sinkgd` 9.05e-2
    and 4e-3.

  Args:
    num_iters: number of iterations, at least 1.
    eps: added to every norm. Zero slices stay zero; so do slices whose entries
      are below 1e-38 of the largest sum over fan_out of absolute values.
    unit_norm: omit both square roots, as the SAGE authors' hybrid does. The
      fan_out slices [i, :] then end with norm 1, and entries with root mean
      square 1 / sqrt(fan_out).
    kernels: None: XLA's code. 'pallas': on TPUs and NVIDIA GPUs, under
      `sage_optax.sharding.with_mesh`, kernels that read a matrix once, or once
      per iteration. They have been compiled and interpreted, but have not run
      on the hardware. They do not normalize slices whose entries are all below
      1e-19 times eps (below 1e-19, if eps is 0).
    core_ndim: number of trailing axes that form one unit: 2 for matrices, 1 for
      vectors; all axes before them are a batch. None: min(ndim, 2).

  Returns:
    A `GradientTransformation`. State: none; updates keep the dtype of the
    gradients, the arithmetic is in float32 or wider.

  Raises:
    ValueError: `core_ndim` does not fit, `num_iters` is less than 1, or
      `kernels` is unknown.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_sinkgd()
    >>> grads = jnp.array([[1.0, -100.0], [0.01, 1.0]])
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.asarray(updates).round(3))
    [[ 1. -1.]
     [ 1.  1.]]

  References:
    Scetbon et al., Gradient Multi-Normalization for Stateless and Scalable LLM
    Training, arXiv 2502.06742, 2025.
  """
  linalg.check_static('core_ndim', core_ndim, (None, 1, 2))
  if not isinstance(num_iters, jax.Array):  # It may be traced.
    linalg.check_positive('num_iters', num_iters)
  linalg.check_choice('kernels', kernels, (None, 'pallas'))
  options = sinkhorn.Options(num_iters, eps, unit_norm, kernels)

  def normalize(place, grad):
    axes = linalg.unit_axes(jnp.ndim(grad), core_ndim)
    if len(axes) == 2:
      x = sinkhorn.normalize(grad, options, place)
    else:
      x = linalg.as_stat(grad)
      x = x / (linalg.safe_norm(x, axes) + eps)
    return x.astype(jnp.result_type(grad))

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    return placement.tree_map(normalize, placements, updates), state

  return boxes.opened(
    optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)
  )


def scale_by_multi_norm(
  norms: Sequence[str] = ('fan_out', 'fan_in'),
  num_iters: int = 5,
  eps: jax.typing.ArrayLike = 1e-8,
  *,
  ns_steps: int = 10,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Replaces a gradient matrix by the steepest direction of each norm in turn.

  `num_iters` times, for each norm :math:`p` of `norms`,

  .. math::

    X \leftarrow \arg\max_{p(Z) = 1} \langle Z, X \rangle

  starting with X = G. The norms are scaled so that every result has entries
  of root mean square 1, which lets the alternation converge:

  - 'fan_out': every fan-out unit has rms 1 over its fan_in;
  - 'fan_in': every fan-in unit has rms 1 over its fan_out;
  - 'spectral': all singular values are equal;
  - 'frobenius': the whole matrix has rms 1;
  - 'max': every entry is a sign.

  The default is SinkGD (`scale_by_sinkgd`, which is faster), and
  `norms=('spectral',)` with one iteration is Muon's direction without
  momentum. SWAN centers the gradient, then applies 'fan_out' and 'spectral'
  once.

  Learning rates:
    We know of no published rates except SinkGD's. Entries move by the learning
    rate.

  Args:
    norms: names from the list above, at least one, in their order.
    num_iters: number of rounds, at least 1.
    eps: added to the norms. Zero slices stay zero.
    ns_steps: Newton-Schulz iterations of 'spectral', as in `scale_by_swan`.
    core_ndim: 2 or None; all axes before the last two are a batch.

  Returns:
    A `GradientTransformation` without state, for matrices; updates keep the
    dtype of the gradients. State: none.

  Raises:
    ValueError: an unknown norm, or none; `num_iters` or `ns_steps` is less
      than 1 or traced; `core_ndim` is not 2; from `init`, a leaf that is not a
      matrix.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_multi_norm(['spectral', 'max'], 1)
    >>> grads = jnp.array([[1.0, 10.0], [0.5, 9.0]])  # nearly one direction
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.asarray(updates))
    [[ 1.  1.]
     [-1.  1.]]

  References:
    Scetbon et al., Gradient Multi-Normalization for Stateless and Scalable LLM
    Training, arXiv 2502.06742, 2025, algorithms 1 and 2.
  """
  unknown = [name for name in norms if name not in _NORMS]
  if isinstance(norms, str) or unknown or not norms:
    raise ValueError(
      f'norms must be a list of {", ".join(map(repr, _NORMS))}, got {norms!r}.'
    )
  linalg.check_positive('num_iters', num_iters)
  linalg.check_positive('ns_steps', ns_steps)
  linalg.check_static('core_ndim', core_ndim, (None, 2))

  def direction(place, grad):
    x = linalg.as_stat(grad)
    for name in tuple(norms) * num_iters:
      x = _NORMS[name](x, eps, ns_steps, place)
    return x

  def init_fn(params):
    linalg.check_matrices(params, 'scale_by_multi_norm')
    return optax.EmptyState()

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    scaled = placement.tree_map(direction, placements, updates)
    return optax.tree.cast_like(scaled, updates), state

  return boxes.opened(optax.GradientTransformationExtraArgs(init_fn, update_fn))


def _unit_rms(*axes: int) -> Callable[..., jax.Array]:
  """Returns a function that scales slices over `axes` to rms 1."""

  def apply(x, eps, ns_steps, place):
    del ns_steps, place
    size = 1
    for axis in axes:
      size *= x.shape[axis]
    return x / (linalg.norm(x, axes) + eps) * size**0.5

  return apply


def _spectral(x, eps, ns_steps, place):
  """The polar factor, scaled to rms 1."""
  white = orthogonal.whiten(x, ns_steps, place)
  return _NORMS['frobenius'](white, eps, ns_steps, place)


def _max(x, eps, ns_steps, place):
  del eps, ns_steps, place
  return jnp.sign(x)


_NORMS: dict[str, Callable[..., jax.Array]] = {
  'fan_out': _unit_rms(linalg.FAN_IN),
  'fan_in': _unit_rms(linalg.FAN_OUT),
  'spectral': _spectral,
  'frobenius': _unit_rms(linalg.FAN_IN, linalg.FAN_OUT),
  'max': _max,
}
