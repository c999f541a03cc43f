"""Muon: the orthogonal matrix nearest to the momentum."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import rounding
from sage_optax.core import (
  blocks,
  boxes,
  linalg,
  moments,
  orthogonal,
  placement,
)

_UNIT = (linalg.FAN_IN, linalg.FAN_OUT)
_SIDES = (None, 'fan_out', 'fan_in')


class ScaleByMuonState(NamedTuple):
  """State of `scale_by_muon`.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: momentum, in the shapes of the parameters, float32 or wider; None if
      `momentum` is None.
    nu: mean squares over fan_in of orthogonalized matrices, [..., 1, fan_out];
      None if `unit_decay` is None.
    rng_key: key of the sampled units; None if `ortho_rank` is None.
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates | None
  nu: optax.Updates | None = None
  rng_key: jax.Array | None = None


def scale_by_muon(
  momentum: float | None = 0.95,
  ns_steps: int = 5,
  *,
  nesterov: bool = True,
  consistent_rms: float | None = None,
  equilibrate: str | None = None,
  state_dtype: jax.typing.DTypeLike | None = None,
  ns_coeffs: str = 'standard',
  preconditioning: str = 'frobenius',
  normalize_after: str | None = None,
  nuclear_power: float | None = None,
  unit_decay: float | None = None,
  ortho_rank: int | None = None,
  key: int | jax.Array = 0,
) -> optax.GradientTransformation:
  r"""Orthogonalizes the momentum of each matrix (Muon and its variants).

  For :math:`G \in R^{m \times n}` (fan_in, fan_out),

  .. math::

    M_t &= \beta M_{t-1} + (1 - \beta) G_t, \quad
      V_t = \beta M_t + (1 - \beta) G_t \\
    U_t &= \sqrt{\max(1, n/m)} \, \mathrm{NS}(V_t / (\|V_t\|_2 + 10^{-7}))

  with V = M if `nesterov` is off, and NS the quintic Newton-Schulz iteration
  with (3.4445, -4.7750, 2.0315), which moves singular values into 0.68 to 1.21.
  It runs in bfloat16 on accelerators, as in the authors' code, and in float32
  or wider on CPU. Entries end with root mean square near
  sqrt(max(1, n/m) / max(m, n)). With `consistent_rms` c, the factor is
  c sqrt(max(m, n)), and the entries of every matrix have root mean square near
  c; with c = 0.2, they are like Adam's.

  `optax.contrib.muon` corrects the bias of momentum and gradient before adding
  them, which changes directions (with `nesterov=False` both agree). It treats
  only arrays with two axes; stacked kernels are updated by Adam there.

  MuonEq divides V by the norms of its units before NS (`equilibrate`, with
  `consistent_rms` 0.2), so that units with large gradients do not hide the
  others from an iteration that stops early. Its code adds 1e-8 to the squared
  norms of a sum of gradients; here 1e-8 is added to the norms, which is
  harmless for small gradients, too.

  NorMuon divides the orthogonal matrix O by the root of a second moment per
  fan-out unit, :math:`v_t = \beta_2 v_{t-1} + (1 - \beta_2) \,
  \mathrm{mean}_{fan\_in}(O_t^2)` (`unit_decay`), and scales the result to its
  former norm or, with `consistent_rms`, to exactly this rms.

  Low-rank Muon samples `ortho_rank` units of the larger side in each step,
  orthogonalizes the part of V in their span and drops the rest: X = Q NS(Q^T V)
  with an orthonormal basis Q of the units. Then `ortho_rank` singular values
  are near 1 and the others are 0, so the entries are smaller; no factor
  corrects that. This saves time, not memory. `momentum=None` is its form
  without state.

  Symmetry-compatible updates multiply the polar factor P by
  :math:`\langle V, P \rangle^\alpha` (`nuclear_power`; 1 is PolarGrad), and
  their hybrids divide units by their norms after it (`normalize_after`) or
  before it (`equilibrate`). A division after it, also that of `unit_decay` with
  `consistent_rms`, cancels the power, as in the released code. Their form for
  experts, (VV^T + eps I)^(-1/2) V, is the same polar factor except for eps. For
  routers, use `scale_by_column_norm`.

  Learning rates:
    Published: 0.02 (its authors' code, with a separate rate for Adam on the
    other parameters). With `consistent_rms` 0.2, MuonEq's scripts use 2e-3 at
    130M, 3e-3 at 350M and 5e-4 at 1B (C4), one rate for all parameters. NorMuon
    0.035, low-rank Muon 0.025 (modded-nanogpt). From our study at width 64,
    embedding and matrices: `muon` 4.5e-2 and 1.6e-2, `rms_muon` 6.4e-2 and
    1.6e-2.

  Args:
    momentum: decay of the momentum; None: use the gradient itself, without
      state.
    ns_steps: number of iterations, at least 1.
    nesterov: use Nesterov momentum.
    consistent_rms: approximate root mean square of the entries of an update;
      None: multiply by sqrt(max(1, fan_out / fan_in)).
    equilibrate: what to divide by before orthogonalizing: the norm of each
      fan-out unit over its fan_in ('fan_out', MuonEq's default), of each fan-in
      unit ('fan_in'), the product of the two ('both'), or nothing (None).
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    ns_coeffs: polynomials of the iteration: 'standard', or 'dion' (Dion's) or
      'polar_express', which both bring singular values closer to 1.
    preconditioning: norm to divide by before the iteration: 'frobenius',
      'schatten' (of order 4) or 'schatten8'; the latter two are closer to the
      largest singular value, so the iteration converges further.
    normalize_after: after orthogonalizing, divide by the norm of each 'fan_out'
      or 'fan_in' unit; None: do not divide.
    nuclear_power: multiply the update by its inner product with V (about V's
      nuclear norm) to this power; None: 0.
    unit_decay: decay of NorMuon's second moment; None: no second moment.
    ortho_rank: number of units sampled, a static integer; None, or at least the
      smaller side: the whole matrix.
    key: seed or key of the samples; used with `ortho_rank` only.

  Returns:
    A `GradientTransformation` for matrices [..., fan_in, fan_out]; updates keep
    the dtype of the gradients. State: mn numbers per matrix [m, n], none
    without a momentum; with `unit_decay` n more.

  Raises:
    ValueError: an unknown name; `ns_steps` or `ortho_rank` less than 1 or
      traced; from `init`, a leaf that is not a matrix.

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
    Equilibration, arXiv 2603.28254, 2026 (`equilibrate`, 'schatten8').

    Li et al., NorMuon, arXiv 2510.05491, 2025 (`unit_decay`).

    He, Deng and Lu, Low-rank Orthogonalization, arXiv 2509.11983, 2025
    (`ortho_rank`).

    Amsel et al., The Polar Express, arXiv 2505.16932, 2025; Ahn et al., Dion,
    arXiv 2504.05295, 2025 (`ns_coeffs`).

    Lau and Su, symmetry-compatible updates, arXiv 2605.18106, 2026
    (`nuclear_power`, `normalize_after`).
  """
  linalg.check_choice('equilibrate', equilibrate, (*_SIDES, 'both'))
  linalg.check_choice('normalize_after', normalize_after, _SIDES)
  linalg.check_choice('ns_coeffs', ns_coeffs, tuple(orthogonal.NS_COEFFS))
  linalg.check_choice(
    'preconditioning', preconditioning, orthogonal.PRECONDITIONINGS
  )
  linalg.check_positive('ns_steps', ns_steps)
  if ortho_rank is not None:
    linalg.check_positive('ortho_rank', ortho_rank)
  newton_schulz = functools.partial(
    orthogonal.newton_schulz,
    ns_steps=ns_steps,
    ns_coeffs=ns_coeffs,
    preconditioning=preconditioning,
  )

  def orthogonalize(place, x, key):
    if ortho_rank is None or ortho_rank >= min(x.shape[-2:]):
      return newton_schulz(x, place=place)
    chosen = orthogonal.draw_columns(key, x.shape, ortho_rank)
    return orthogonal.in_span(newton_schulz, x, chosen, place)

  def direction(place, grad, mu, nu, key):
    fan_in, fan_out = grad.shape[-2:]
    mixed = mu
    if momentum is not None and nesterov:
      mixed = moments.ema(grad, mu, momentum)
    balanced = _equilibrated(mixed, equilibrate)
    x = orthogonalize(place, balanced, key)
    if nuclear_power is not None:
      size = jnp.sum(balanced * x, axis=_UNIT, keepdims=True)
      x = x * jnp.maximum(size, 0.0) ** nuclear_power
    if normalize_after is not None:
      x = x / (linalg.norm(x, _over(normalize_after)) + 1e-8)
    if unit_decay is not None:
      nu = moments.ema(_unit_squares(x), nu, unit_decay)
      # The norm if all singular values are 1.
      full = min(fan_in, fan_out) ** 0.5
      size = linalg.norm(x, _UNIT) if consistent_rms is None else full
      x = _with_norm(x / (jnp.sqrt(nu) + 1e-10), size)
    if consistent_rms is None:
      factor = max(1.0, fan_out / max(fan_in, 1)) ** 0.5
    else:
      factor = consistent_rms * max(fan_in, fan_out) ** 0.5
    return x * factor, nu

  def init_fn(params):
    linalg.check_matrices(params, 'scale_by_muon')
    return ScaleByMuonState(
      jnp.zeros([], jnp.int32),
      None if momentum is None else moments.zeros(params),
      None if unit_decay is None else moments.zeros_of(_unit_squares, params),
      None if ortho_rank is None else rounding.raw_key(key),
    )

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    del params, extra_args
    grads = mu = jax.tree.map(linalg.as_stat, updates)
    if momentum is not None:
      mu = jax.tree.map(
        lambda g, m: moments.ema(g, m, momentum), grads, state.mu
      )
    keys = None
    if ortho_rank is not None:
      typed = rounding.typed_key(state.rng_key)
      keys = jax.random.fold_in(typed, state.count)

    def step(place, grad, mu, number, nu=None):
      key = None if keys is None else rounding.leaf_key(keys, number)
      return direction(place, grad, mu, nu, key)

    numbers = rounding.leaf_numbers(updates)
    rest = () if unit_decay is None else (state.nu,)
    steps = placement.tree_map(step, placements, grads, mu, numbers, *rest)
    scaled, nu = moments.unzip(steps, grads, 2)
    new_state = ScaleByMuonState(
      optax.safe_increment(state.count),
      None if momentum is None else mu,
      None if unit_decay is None else nu,
      state.rng_key,
    )
    return optax.tree.cast_like(scaled, updates), new_state

  tx = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return boxes.opened(rounding.low_precision_state(tx, state_dtype))


def _unit_squares(x):
  """Mean squares over fan_in."""
  return blocks.plain_mean(jnp.square, x, linalg.FAN_IN)


def _with_norm(x, size):
  """Scales matrices to norm `size`; zeros stay zero."""
  norm = linalg.norm(x, _UNIT)
  return x * (size / jnp.where(norm > 0, norm, 1.0))


def _over(side):
  """The axis to take the norm of a unit of `side` over."""
  return linalg.FAN_IN if side == 'fan_out' else linalg.FAN_OUT


def _equilibrated(x, sides):
  """Divides units of `x` by their norms; both sides use the norms of `x`."""
  scaled = x
  for side in ('fan_out', 'fan_in'):
    if sides in (side, 'both'):
      scaled = scaled / (linalg.norm(x, _over(side)) + 1e-8)
  return scaled
