"""Recipes that orthogonalize the updates of matrices."""

from typing import Unpack

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from sage_optax.leaves.arguments import Options, given, recipe_function
from sage_optax.recipes import recipe


@recipe_function
def muon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  momentum: float | None = 0.95,
  ns_steps: int = 5,
  nesterov: bool = True,
  consistent_rms: float | None = None,
  equilibrate: str | None = None,
  ns_coeffs: str = 'standard',
  preconditioning: str = 'frobenius',
  normalize_after: str | None = None,
  nuclear_power: float | None = None,
  unit_decay: float | None = None,
  ortho_rank: int | None = None,
  key: int | jax.Array = 0,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Muon on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_muon`
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment. Roles: embedding, head, vector.
    b2: decay of the second moment. Roles: embedding, head, vector.
    eps: added to the root of the second moment. Roles: embedding, head, vector.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    momentum: decay of the momentum; None: use the gradient itself, without
      state. Roles: matrix.
    ns_steps: number of iterations, at least 1. Roles: matrix.
    nesterov: use Nesterov momentum. Roles: matrix.
    consistent_rms: approximate root mean square of the entries of an update;
      None: multiply by sqrt(max(1, fan_out / fan_in)). Roles: matrix.
    equilibrate: what to divide by before orthogonalizing: the norm of each
      fan-out unit over its fan_in ('fan_out', MuonEq's default), of each fan-in
      unit ('fan_in'), the product of the two ('both'), or nothing (None).
      Roles: matrix.
    ns_coeffs: polynomials of the iteration: 'standard', or 'dion' (Dion's) or
      'polar_express', which both bring singular values closer to 1. Roles:
      matrix.
    preconditioning: norm to divide by before the iteration: 'frobenius',
      'schatten' (of order 4) or 'schatten8'; the latter two are closer to the
      largest singular value, so the iteration converges further. Roles: matrix.
    normalize_after: after orthogonalizing, divide by the norm of each 'fan_out'
      or 'fan_in' unit; None: do not divide. Roles: matrix.
    nuclear_power: multiply the update by its inner product with V (about V's
      nuclear norm) to this power; None: 0. Roles: matrix.
    unit_decay: decay of NorMuon's second moment; None: no second moment. Roles:
      matrix.
    ortho_rank: number of units sampled, a static integer; None, or at least the
      smaller side: the whole matrix. Roles: matrix.
    key: seed or key of the samples; used with `ortho_rank` only. Roles: matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('muon', ...)` returns.
  """
  return recipe('muon', **given(locals()))


@recipe_function
def muon_eq(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  momentum: float | None = 0.95,
  ns_steps: int = 5,
  nesterov: bool = True,
  consistent_rms: float | None = 0.2,
  equilibrate: str | None = 'fan_out',
  ns_coeffs: str = 'standard',
  preconditioning: str = 'frobenius',
  normalize_after: str | None = None,
  nuclear_power: float | None = None,
  unit_decay: float | None = None,
  ortho_rank: int | None = None,
  key: int | jax.Array = 0,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """MuonEq on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_muon`, equilibrate fan_out, consistent_rms 0.2
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment. Roles: embedding, head, vector.
    b2: decay of the second moment. Roles: embedding, head, vector.
    eps: added to the root of the second moment. Roles: embedding, head, vector.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    momentum: decay of the momentum; None: use the gradient itself, without
      state. Roles: matrix.
    ns_steps: number of iterations, at least 1. Roles: matrix.
    nesterov: use Nesterov momentum. Roles: matrix.
    consistent_rms: approximate root mean square of the entries of an update;
      None: multiply by sqrt(max(1, fan_out / fan_in)). Roles: matrix.
    equilibrate: what to divide by before orthogonalizing: the norm of each
      fan-out unit over its fan_in ('fan_out', MuonEq's default), of each fan-in
      unit ('fan_in'), the product of the two ('both'), or nothing (None).
      Roles: matrix.
    ns_coeffs: polynomials of the iteration: 'standard', or 'dion' (Dion's) or
      'polar_express', which both bring singular values closer to 1. Roles:
      matrix.
    preconditioning: norm to divide by before the iteration: 'frobenius',
      'schatten' (of order 4) or 'schatten8'; the latter two are closer to the
      largest singular value, so the iteration converges further. Roles: matrix.
    normalize_after: after orthogonalizing, divide by the norm of each 'fan_out'
      or 'fan_in' unit; None: do not divide. Roles: matrix.
    nuclear_power: multiply the update by its inner product with V (about V's
      nuclear norm) to this power; None: 0. Roles: matrix.
    unit_decay: decay of NorMuon's second moment; None: no second moment. Roles:
      matrix.
    ortho_rank: number of units sampled, a static integer; None, or at least the
      smaller side: the whole matrix. Roles: matrix.
    key: seed or key of the samples; used with `ortho_rank` only. Roles: matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('muon_eq', ...)` returns.
  """
  return recipe('muon_eq', **given(locals()))


@recipe_function
def normuon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  momentum: float | None = 0.95,
  ns_steps: int = 5,
  nesterov: bool = False,
  consistent_rms: float | None = 0.2,
  equilibrate: str | None = None,
  ns_coeffs: str = 'standard',
  preconditioning: str = 'frobenius',
  normalize_after: str | None = None,
  nuclear_power: float | None = None,
  unit_decay: float | None = 0.95,
  ortho_rank: int | None = None,
  key: int | jax.Array = 0,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """NorMuon on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_muon`, nesterov False, consistent_rms 0.2, unit_decay 0.95
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment. Roles: embedding, head, vector.
    b2: decay of the second moment. Roles: embedding, head, vector.
    eps: added to the root of the second moment. Roles: embedding, head, vector.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    momentum: decay of the momentum; None: use the gradient itself, without
      state. Roles: matrix.
    ns_steps: number of iterations, at least 1. Roles: matrix.
    nesterov: use Nesterov momentum. Roles: matrix.
    consistent_rms: approximate root mean square of the entries of an update;
      None: multiply by sqrt(max(1, fan_out / fan_in)). Roles: matrix.
    equilibrate: what to divide by before orthogonalizing: the norm of each
      fan-out unit over its fan_in ('fan_out', MuonEq's default), of each fan-in
      unit ('fan_in'), the product of the two ('both'), or nothing (None).
      Roles: matrix.
    ns_coeffs: polynomials of the iteration: 'standard', or 'dion' (Dion's) or
      'polar_express', which both bring singular values closer to 1. Roles:
      matrix.
    preconditioning: norm to divide by before the iteration: 'frobenius',
      'schatten' (of order 4) or 'schatten8'; the latter two are closer to the
      largest singular value, so the iteration converges further. Roles: matrix.
    normalize_after: after orthogonalizing, divide by the norm of each 'fan_out'
      or 'fan_in' unit; None: do not divide. Roles: matrix.
    nuclear_power: multiply the update by its inner product with V (about V's
      nuclear norm) to this power; None: 0. Roles: matrix.
    unit_decay: decay of NorMuon's second moment; None: no second moment. Roles:
      matrix.
    ortho_rank: number of units sampled, a static integer; None, or at least the
      smaller side: the whole matrix. Roles: matrix.
    key: seed or key of the samples; used with `ortho_rank` only. Roles: matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('normuon', ...)` returns.
  """
  return recipe('normuon', **given(locals()))
