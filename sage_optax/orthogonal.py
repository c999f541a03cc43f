"""Recipes that orthogonalise the steps of matrices."""

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
    b1: decay of the first moment; of embedding and head and vector.
    b2: decay of the second moment; of embedding and head and vector.
    eps: added to the root of the second moment; of embedding and head and
      vector.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    momentum: decay of the momentum; None: the gradient itself, and no state; of
      matrix.
    ns_steps: number of iterations, at least 1; of matrix.
    nesterov: mix the gradient into the momentum once more; of matrix.
    consistent_rms: root mean square of the entries of an update, about; None:
      the factor is sqrt(max(1, fan_out / fan_in)); of matrix.
    equilibrate: before orthogonalising divide by the norm of each fan-out unit
      over its fan_in ('fan_out', MuonEq's default), of each fan-in unit
      ('fan_in'), by the product of the two ('both'), or by nothing (None); of
      matrix.
    ns_coeffs: polynomials of the iteration: 'standard', 'dion' (Dion's) or
      'polar_express', which bring singular values nearer to 1; of matrix.
    preconditioning: norm divided by before the iteration: 'frobenius',
      'schatten' (of order 4) or 'schatten8'; the latter two are nearer to the
      largest singular value, so that the iteration converges further; of
      matrix.
    normalize_after: after orthogonalising divide by the norm of each 'fan_out'
      or 'fan_in' unit; None: no division; of matrix.
    nuclear_power: exponent of the inner product with V, about its nuclear norm,
      that multiplies the update; None: 0; of matrix.
    unit_decay: decay of NorMuon's second moment; None: no such moment; of
      matrix.
    ortho_rank: number of units drawn, a static integer; None, or the smaller
      side at least: the whole matrix; of matrix.
    key: an integer or a key of `jax.random`; with `ortho_rank` only; of matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

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
    b1: decay of the first moment; of embedding and head and vector.
    b2: decay of the second moment; of embedding and head and vector.
    eps: added to the root of the second moment; of embedding and head and
      vector.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    momentum: decay of the momentum; None: the gradient itself, and no state; of
      matrix.
    ns_steps: number of iterations, at least 1; of matrix.
    nesterov: mix the gradient into the momentum once more; of matrix.
    consistent_rms: root mean square of the entries of an update, about; None:
      the factor is sqrt(max(1, fan_out / fan_in)); of matrix.
    equilibrate: before orthogonalising divide by the norm of each fan-out unit
      over its fan_in ('fan_out', MuonEq's default), of each fan-in unit
      ('fan_in'), by the product of the two ('both'), or by nothing (None); of
      matrix.
    ns_coeffs: polynomials of the iteration: 'standard', 'dion' (Dion's) or
      'polar_express', which bring singular values nearer to 1; of matrix.
    preconditioning: norm divided by before the iteration: 'frobenius',
      'schatten' (of order 4) or 'schatten8'; the latter two are nearer to the
      largest singular value, so that the iteration converges further; of
      matrix.
    normalize_after: after orthogonalising divide by the norm of each 'fan_out'
      or 'fan_in' unit; None: no division; of matrix.
    nuclear_power: exponent of the inner product with V, about its nuclear norm,
      that multiplies the update; None: 0; of matrix.
    unit_decay: decay of NorMuon's second moment; None: no such moment; of
      matrix.
    ortho_rank: number of units drawn, a static integer; None, or the smaller
      side at least: the whole matrix; of matrix.
    key: an integer or a key of `jax.random`; with `ortho_rank` only; of matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

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
    b1: decay of the first moment; of embedding and head and vector.
    b2: decay of the second moment; of embedding and head and vector.
    eps: added to the root of the second moment; of embedding and head and
      vector.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    momentum: decay of the momentum; None: the gradient itself, and no state; of
      matrix.
    ns_steps: number of iterations, at least 1; of matrix.
    nesterov: mix the gradient into the momentum once more; of matrix.
    consistent_rms: root mean square of the entries of an update, about; None:
      the factor is sqrt(max(1, fan_out / fan_in)); of matrix.
    equilibrate: before orthogonalising divide by the norm of each fan-out unit
      over its fan_in ('fan_out', MuonEq's default), of each fan-in unit
      ('fan_in'), by the product of the two ('both'), or by nothing (None); of
      matrix.
    ns_coeffs: polynomials of the iteration: 'standard', 'dion' (Dion's) or
      'polar_express', which bring singular values nearer to 1; of matrix.
    preconditioning: norm divided by before the iteration: 'frobenius',
      'schatten' (of order 4) or 'schatten8'; the latter two are nearer to the
      largest singular value, so that the iteration converges further; of
      matrix.
    normalize_after: after orthogonalising divide by the norm of each 'fan_out'
      or 'fan_in' unit; None: no division; of matrix.
    nuclear_power: exponent of the inner product with V, about its nuclear norm,
      that multiplies the update; None: 0; of matrix.
    unit_decay: decay of NorMuon's second moment; None: no such moment; of
      matrix.
    ortho_rank: number of units drawn, a static integer; None, or the smaller
      side at least: the whole matrix; of matrix.
    key: an integer or a key of `jax.random`; with `ortho_rank` only; of matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('normuon', ...)` returns.
  """
  return recipe('normuon', **given(locals()))
