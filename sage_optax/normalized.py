"""Recipes that divide slices of matrices by their norm."""

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
    eps: smallest rms (or norm) to divide by; on vector, added to the root of
      Adam's second moment.
    unit_norm: divide by the L2 norm, as the paper's equation does. Roles:
      embedding, head, matrix.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    axis: the axis of matrices that slices run along, a static integer: -2,
      fan_in (the vocabulary of an embedding [vocab, feature]), or -1, fan_out
      (the features of a token). Roles: embedding, head, matrix.
    nesterov: use Nesterov momentum. Roles: embedding, head, matrix.
    center: subtract from matrices the mean over the other axis, before and
      after the division. Roles: embedding, head, matrix.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)). Roles:
      embedding, head, matrix.
    b1: decay of the first moment. Roles: vector.
    b2: decay of the second moment. Roles: vector.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

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

  A new combination without published learning rates.

  Method of each role:

    embedding: `scale_by_sage`, axis -2
    head: `scale_by_sage`, axis -1
    matrix: `scale_by_column_norm`
    vector: `scale_by_sage`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: weight of the old momentum in the update. Roles: embedding, head,
      vector.
    b2: decay of the momentum and of the statistic. Roles: embedding, head,
      vector.
    eps: smallest rms (or norm) to divide by (matrix); added to SAGE's
      statistics (other roles).
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    mu_dtype: as `state_dtype`, for the momentum only; Optax's name. Roles:
      embedding, head, vector.
    axis: the axis of matrices that SAGE averages over and that SCALE's slices
      run along, a static integer; -2 on embedding, matrix and vector, -1 on
      head.
    momentum: decay of the momentum; None: no momentum, no state. Roles: matrix.
    unit_norm: divide by the L2 norm, as the paper's equation does. Roles:
      matrix.
    nesterov: use Nesterov momentum. Roles: matrix.
    center: subtract from matrices the mean over the other axis, before and
      after the division. Roles: matrix.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)). Roles:
      matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

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
    b1: decay of the first moment. Roles: embedding, head, vector.
    b2: decay of the second moment. Roles: embedding, head, vector.
    eps: smallest norm to divide by (matrix); added to the root of Adam's second
      moment (other roles).
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    momentum: decay of the momentum; None: no momentum, no state. Roles: matrix.
    unit_norm: divide by the L2 norm, as the paper's equation does. Roles:
      matrix.
    axis: the axis of matrices that slices run along, a static integer: -2,
      fan_in (the vocabulary of an embedding [vocab, feature]), or -1, fan_out
      (the features of a token). Roles: matrix.
    nesterov: use Nesterov momentum. Roles: matrix.
    center: subtract from matrices the mean over the other axis, before and
      after the division. Roles: matrix.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)). Roles:
      matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

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

  Symmetry-compatible updates: if the tokens of parameters and gradients are
  permuted, or their features rotated, the update changes in the same way. A
  router [feature, expert] should be treated as a head: give it that role in
  `rules`. The factors are the ratios of the rates published for Qwen3 0.6B.

  Method of each role:

    embedding: `scale_by_column_norm`, momentum 0.95, unit_norm True, axis -1,
      lr_scale 25
    head: `scale_by_column_norm`, momentum 0.95, unit_norm True, center True,
      lr_scale 0.25
    matrix: `scale_by_muon`, ns_coeffs polar_express
    vector: `scale_by_adam`, b2 0.95, lr_scale 2.5

  Args:
    learning_rate: a number or an Optax schedule.
    momentum: decay of the momentum; None: no momentum, no state. Roles:
      embedding, head, matrix.
    eps: smallest norm to divide by (embedding, head); added to the root of
      Adam's second moment (vector).
    unit_norm: divide by the L2 norm, as the paper's equation does. Roles:
      embedding, head.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    axis: the axis of matrices that slices run along, a static integer: -2,
      fan_in (the vocabulary of an embedding [vocab, feature]), or -1, fan_out
      (the features of a token); -1 on embedding, -2 on head.
    nesterov: use Nesterov momentum; False on embedding and head, True on
      matrix.
    center: subtract from matrices the mean over the other axis, before and
      after the division; False on embedding, True on head.
    shape_factor: multiply matrices by sqrt(max(1, fan_out / fan_in)). Roles:
      embedding, head.
    ns_steps: number of iterations, at least 1. Roles: matrix.
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
    b1: decay of the first moment. Roles: vector.
    b2: decay of the second moment. Roles: vector.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('symmetric', ...)` returns.
  """
  return recipe('symmetric', **given(locals()))
