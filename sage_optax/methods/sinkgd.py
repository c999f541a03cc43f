"""SinkGD: each gradient matrix normalised along both axes, without state."""

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import boxes, linalg, placement, sinkhorn


def scale_by_sinkgd(
  num_iters: int = 5,
  eps: jax.typing.ArrayLike = 1e-8,
  *,
  unit_norm: bool = False,
  kernels: str | None = None,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Normalises gradient matrices over fan_in and fan_out in turn.

  `num_iters` times, for :math:`X \in R^{m \times n}` (fan_in, fan_out):

  .. math::

    X_{ij} &\leftarrow \sqrt m \, X_{ij} / (\|X_{\cdot j}\|_2 + \epsilon) \\
    X_{ij} &\leftarrow \sqrt n \, X_{ij} / (\|X_{i \cdot}\|_2 + \epsilon)

  In PyTorch's layout that is rows first, columns last. Entries end with root
  mean square 1. Vectors (`core_ndim` 1) become g / (norm2(g) + eps). The paper
  has no eps; released codes add it to the norms, as here, or take it as their
  floor.

  Learning rates:
    Published: 0.02 times 0.05 on matrices (60M to 1B, C4), Adam elsewhere.
    SAGE's suite has 2e-4 times 100. Its hybrid has 2e-3 times 10 on matrices
    of unit norm, the same product, which supports `unit_norm=True` for the
    former too; but the released class of pure SinkGD keeps the square roots.

  Args:
    num_iters: number of iterations, at least 1.
    eps: added to every norm. Zero slices stay zero; so do slices whose entries
      are below 1e-38 of the largest sum over fan_out of absolute values.
    unit_norm: leave both square roots out, as the SAGE authors' hybrid does.
      The fan_out slices [i, :] then end with norm 1, entries with root mean
      square 1 / sqrt(fan_out).
    kernels: None: XLA's code. 'pallas': on TPUs and NVIDIA GPUs, under
      `sage_optax.sharding.with_mesh`, kernels that read a matrix once, or once
      per iteration. They have been compiled and interpreted, but have not run
      on the hardware. There slices whose entries are all below 1e-18 stay zero.
    core_ndim: trailing axes that form one unit: 2 for matrices, 1 for vectors;
      all axes before are a batch. None: min(ndim, 2).

  Returns:
    A `GradientTransformation`. State: none; updates have the dtype of the
    updates that came in, the arithmetic is in float32 or wider.

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
  if isinstance(num_iters, int) and num_iters < 1:
    raise ValueError(f'num_iters must be at least 1, got {num_iters}.')
  if kernels not in (None, 'pallas'):
    raise ValueError(f"kernels must be None or 'pallas', got {kernels!r}.")

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
