"""Muon: the momentum's nearest orthogonal matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import boxes, linalg, moments, orthogonal, placement

_EQUILIBRATE = (None, 'fan_out', 'fan_in', 'both')


class ScaleByMuonState(NamedTuple):
  """State of `scale_by_muon`.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: momentum, in the shapes of the parameters, float32 or wider.
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates


def scale_by_muon(
  momentum: jax.typing.ArrayLike = 0.95,
  ns_steps: int = 5,
  *,
  nesterov: bool = True,
  consistent_rms: float | None = None,
  equilibrate: str | None = None,
  state_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
  r"""Orthogonalises the momentum of each matrix (Muon, MuonEq).

  For :math:`G \in R^{m \times n}` (fan_in, fan_out),

  .. math::

    M_t &= \beta M_{t-1} + (1 - \beta) G_t, \quad
      V_t = \beta M_t + (1 - \beta) G_t \\
    U_t &= \sqrt{\max(1, n/m)} \, \mathrm{NS}(V_t / (\|V_t\|_2 + 10^{-7}))

  with V = M if `nesterov` is off, and NS the quintic Newton-Schulz iteration
  with (3.4445, -4.7750, 2.0315), which moves singular values into 0.68 to
  1.21: in bfloat16 on accelerators, as the authors do, in float32 or wider on
  CPU. Entries end with root mean square near sqrt(max(1, n/m) / max(m, n)).
  With `consistent_rms` c the factor is c sqrt(max(m, n)), and entries of every
  matrix have root mean square near c: as Adam's at 0.2.

  `optax.contrib.muon` corrects the bias of momentum and gradient before it
  adds them, which changes directions (with `nesterov=False` both agree), and
  treats arrays of two axes only: stacked kernels go to Adam there.

  MuonEq divides V by the norms of its units before NS (`equilibrate`, with
  `consistent_rms` 0.2), so that loud units do not hide the others from an
  iteration that stops early. Its code adds 1e-8 to the squared norms of a sum
  of gradients; here 1e-8 is added to the norms, which stays harmless for small
  gradients.

  Learning rates:
    Published: 0.02 (its authors' code, with an Adam of its own rate for the
    rest); with `consistent_rms` 0.2, MuonEq's scripts have 2e-3 at 130M, 3e-3
    at 350M and 5e-4 at 1B (C4), one rate for all.

  Args:
    momentum: decay of the momentum.
    ns_steps: number of iterations, at least 1.
    nesterov: mix the gradient into the momentum once more.
    consistent_rms: root mean square of the entries of an update, about; None:
      the factor is sqrt(max(1, fan_out / fan_in)).
    equilibrate: before orthogonalising divide by the norm of each fan-out unit
      over its fan_in ('fan_out', MuonEq's default), of each fan-in unit
      ('fan_in'), by the product of the two ('both'), or by nothing (None).
    state_dtype: float32 or bfloat16 for the momentum, the latter rounded
      stochastically; None: float32, or the parameters' type if wider.

  Returns:
    A `GradientTransformation` for matrices [..., fan_in, fan_out]; updates have
    the dtype of the updates that came in. State: mn numbers per matrix.

  Raises:
    ValueError: unknown `equilibrate`; `ns_steps` less than 1 or traced; from
      `init`, a leaf that is no matrix.

  Example:
    >>> import jax.numpy as jnp, numpy as np, sage_optax
    >>> tx = sage_optax.scale_by_muon()
    >>> grads = jnp.array([[5.0, 0.0], [0.0, 0.1]])
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> print(np.linalg.svd(updates, compute_uv=False).round(1))
    [0.7 0.7]

  References:
    Jordan et al., Muon: An optimizer for hidden layers in neural networks,
    kellerjordan.github.io/posts/muon, 2024.

    Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982, 2025
    (`consistent_rms`).

    Chang et al., MuonEq: Balancing Before Orthogonalization with Lightweight
    Equilibration, arXiv 2603.28254, 2026 (`equilibrate`).
  """
  if equilibrate not in _EQUILIBRATE:
    known = ', '.join(map(repr, _EQUILIBRATE))
    raise ValueError(
      f'equilibrate must be one of {known}, got {equilibrate!r}.'
    )
  linalg.check_positive('ns_steps', ns_steps)

  def direction(place, grad, mu):
    mixed = moments.ema(grad, mu, momentum) if nesterov else mu
    balanced = _equilibrated(mixed, equilibrate)
    fan_in, fan_out = grad.shape[-2:]
    if consistent_rms is None:
      factor = max(1.0, fan_out / max(fan_in, 1)) ** 0.5
    else:
      factor = consistent_rms * max(fan_in, fan_out) ** 0.5
    return orthogonal.newton_schulz(balanced, ns_steps, place) * factor

  def init_fn(params):
    linalg.check_matrices(params, 'scale_by_muon')
    return ScaleByMuonState(jnp.zeros([], jnp.int32), moments.zeros(params))

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    grads = jax.tree.map(linalg.as_stat, updates)
    mu = jax.tree.map(lambda g, m: moments.ema(g, m, momentum), grads, state.mu)
    scaled = placement.tree_map(direction, placements, grads, mu)
    count = optax.safe_increment(state.count)
    return optax.tree.cast_like(scaled, updates), ScaleByMuonState(count, mu)

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return boxes.opened(rounding.low_precision_state(tx, state_dtype))


def _equilibrated(x, sides):
  """Units of `x` divided by their norms, both sides' taken from `x` itself."""
  scaled = x
  if sides in ('fan_out', 'both'):
    scaled = scaled / (linalg.norm(x, linalg.FAN_IN) + 1e-8)
  if sides in ('fan_in', 'both'):
    scaled = scaled / (linalg.norm(x, linalg.FAN_OUT) + 1e-8)
  return scaled
