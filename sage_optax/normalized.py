"""Recipes that divide slices of matrices by their size."""

from typing import Unpack

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from sage_optax.leaves.arguments import OWN, Options, given, recipe_function
from sage_optax.recipes import recipe


@recipe_function
def scale(
  learning_rate: optax.ScalarOrSchedule,
  *,
  momentum: float | None = OWN,
  eps: ArrayLike = 1e-08,
  unit_norm: bool = False,
  state_dtype: DTypeLike | None = None,
  axis: int = -2,
  nesterov: bool = False,
  center: bool = False,
  shape_factor: bool = False,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SCALE, with momentum on the head; AdamW on vectors.

  Method of each role:

    embedding: `scale_by_column_norm`
    head: `scale_by_column_norm`, momentum 0.9
    matrix: `scale_by_column_norm`
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    momentum: decay of the momentum; None: no momentum, no state; None on
      embedding and matrix, 0.9 on head.
    eps: smallest rms (or norm) divided by. Zero slices stay zero.
    unit_norm: divide by the L2 norm, as the paper's equation does; of embedding
      and head and matrix.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    axis: the axis that slices run along in matrices, a static integer: -2,
      fan_in (the vocabulary of an embedding [vocab, feature]), or -1, fan_out
      (the features of a token); of embedding and head and matrix.
    nesterov: mix the gradient into the momentum once more; of embedding and
      head and matrix.
    center: subtract from matrices the mean over the other axis, before and
      after the division; of embedding and head and matrix.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)); of
      embedding and head and matrix.
    b1: decay of the first moment; of vector.
    b2: decay of the second moment; of vector.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('scale', ...)` returns.
  """
  return recipe('scale', **given(locals()))


@recipe_function
def sage_scale(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.99,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  mu_dtype: DTypeLike | None = None,
  axis: int = OWN,
  momentum: float | None = None,
  unit_norm: bool = False,
  nesterov: bool = False,
  center: bool = False,
  shape_factor: bool = False,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SAGE on embedding, head and vectors, SCALE on matrices.

  A combination that nobody has published, without known learning rates.

  Method of each role:

    embedding: `scale_by_sage`, axis -2
    head: `scale_by_sage`, axis -1
    matrix: `scale_by_column_norm`
    vector: `scale_by_sage`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: weight of the old momentum in the update; of embedding and head and
      vector.
    b2: decay of the momentum and of the statistic; of embedding and head and
      vector.
    eps: smallest rms (or norm) divided by. Zero slices stay zero.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    mu_dtype: the same for the momentum alone, Optax's name; of embedding and
      head and vector.
    axis: the axis that slices run along in matrices, a static integer: -2,
      fan_in (the vocabulary of an embedding [vocab, feature]), or -1, fan_out
      (the features of a token); -2 on embedding and matrix and vector, -1 on
      head.
    momentum: decay of the momentum; None: no momentum, no state; of matrix.
    unit_norm: divide by the L2 norm, as the paper's equation does; of matrix.
    nesterov: mix the gradient into the momentum once more; of matrix.
    center: subtract from matrices the mean over the other axis, before and
      after the division; of matrix.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)); of
      matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('sage_scale', ...)` returns.
  """
  return recipe('sage_scale', **given(locals()))


@recipe_function
def rmnp(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  momentum: float | None = 0.95,
  unit_norm: bool = True,
  axis: int = -2,
  nesterov: bool = True,
  center: bool = False,
  shape_factor: bool = True,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """RMNP on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_column_norm`, momentum 0.95, unit_norm True, nesterov
      True, shape_factor True
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment; of embedding and head and vector.
    b2: decay of the second moment; of embedding and head and vector.
    eps: added to the root of the second moment.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    momentum: decay of the momentum; None: no momentum, no state; of matrix.
    unit_norm: divide by the L2 norm, as the paper's equation does; of matrix.
    axis: the axis that slices run along in matrices, a static integer: -2,
      fan_in (the vocabulary of an embedding [vocab, feature]), or -1, fan_out
      (the features of a token); of matrix.
    nesterov: mix the gradient into the momentum once more; of matrix.
    center: subtract from matrices the mean over the other axis, before and
      after the division; of matrix.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)); of
      matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('rmnp', ...)` returns.
  """
  return recipe('rmnp', **given(locals()))


@recipe_function
def symmetric(
  learning_rate: optax.ScalarOrSchedule,
  *,
  momentum: float | None = 0.95,
  eps: ArrayLike = 1e-08,
  unit_norm: bool = True,
  state_dtype: DTypeLike | None = None,
  axis: int = OWN,
  nesterov: bool = OWN,
  center: bool = OWN,
  shape_factor: bool = False,
  ns_steps: int = 5,
  consistent_rms: float | None = None,
  equilibrate: str | None = None,
  ns_coeffs: str = 'polar_express',
  preconditioning: str = 'frobenius',
  normalize_after: str | None = None,
  nuclear_power: float | None = None,
  unit_decay: float | None = None,
  ortho_rank: int | None = None,
  key: int | jax.Array = 0,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.95,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Unit norm per token, Muon on matrices, AdamW on vectors.

  Symmetry-compatible updates: permuting the tokens, or rotating the features,
  of parameters and gradients does the same to the update. A router [feature,
  expert] is treated as a head: give it that role in `rules`. The factors are
  the ratios of the rates published for Qwen3 0.6B.

  Method of each role:

    embedding: `scale_by_column_norm`, momentum 0.95, unit_norm True, axis -1,
      lr_scale 25
    head: `scale_by_column_norm`, momentum 0.95, unit_norm True, center True,
      lr_scale 0.25
    matrix: `scale_by_muon`, ns_coeffs polar_express
    vector: `scale_by_adam`, b2 0.95, lr_scale 2.5

  Args:
    learning_rate: a number or an Optax schedule.
    momentum: decay of the momentum; None: no momentum, no state; of embedding
      and head and matrix.
    eps: smallest rms (or norm) divided by. Zero slices stay zero; of embedding
      and head and vector.
    unit_norm: divide by the L2 norm, as the paper's equation does; of embedding
      and head.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    axis: the axis that slices run along in matrices, a static integer: -2,
      fan_in (the vocabulary of an embedding [vocab, feature]), or -1, fan_out
      (the features of a token); -1 on embedding, -2 on head.
    nesterov: mix the gradient into the momentum once more; False on embedding
      and head, True on matrix.
    center: subtract from matrices the mean over the other axis, before and
      after the division; False on embedding, True on head.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)); of
      embedding and head.
    ns_steps: number of iterations, at least 1; of matrix.
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
    b1: decay of the first moment; of vector.
    b2: decay of the second moment; of vector.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('symmetric', ...)` returns.
  """
  return recipe('symmetric', **given(locals()))
