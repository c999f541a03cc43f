"""Recipes with a separate method for matrices."""

from typing import Unpack

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from sage_optax.leaves.arguments import OWN, Options, given, recipe_function
from sage_optax.recipes import recipe


@recipe_function
def sage_hybrid(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.99,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  mu_dtype: DTypeLike | None = None,
  axis: int = OWN,
  num_iters: int = 5,
  unit_norm: bool = OWN,
  kernels: str | None = None,
  paper: bool = False,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SAGE on embedding, head and vectors, SinkGD on matrices.

  Method of each role:

    embedding: `scale_by_sage`, axis -2
    head: `scale_by_sage`, axis -1
    matrix: `scale_by_sinkgd`, lr_scale 0.33
    vector: `scale_by_sage`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: weight of the old momentum in the update. Roles: embedding, head,
      vector.
    b2: decay of the momentum and of the statistic. Roles: embedding, head,
      vector.
    eps: added to every norm (matrix) and to SAGE's statistics (other roles).
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider. Roles: embedding, head, vector.
    mu_dtype: as `state_dtype`, for the momentum only; Optax's name. Roles:
      embedding, head, vector.
    axis: the axis of matrices to average over, a static integer. -2, the
      vocabulary of an embedding [vocab, feature], damps features; -1 is meant
      for dense kernels [fan_in, fan_out] and heads [feature, vocab]; -2 on
      embedding and vector, -1 on head.
    num_iters: number of iterations, at least 1. Roles: matrix.
    unit_norm: omit both square roots, as the SAGE authors' hybrid does. The
      fan_out slices [i, :] then end with norm 1, and entries with root mean
      square 1 / sqrt(fan_out); of matrix, off unless paper=True.
    kernels: as in `scale_by_sinkgd`; None: XLA's code only.
    paper: use the authors' released form: on matrices, no square-root factors
      (`unit_norm`) and lr_scale 10.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('sage_hybrid', ...)` returns.
  """
  return recipe('sage_hybrid', **given(locals()))


@recipe_function
def lion_hybrid(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = OWN,
  state_dtype: DTypeLike | None = None,
  mu_dtype: DTypeLike | None = None,
  num_iters: int = 5,
  eps: ArrayLike = 1e-08,
  unit_norm: bool = False,
  kernels: str | None = None,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Lion on embedding and head, SinkGD on matrices, AdamW on vectors.

  Method of each role:

    embedding: `scale_by_lion`
    head: `scale_by_lion`
    matrix: `scale_by_sinkgd`, lr_scale 0.33
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: weight of the old momentum in the update. Roles: embedding, head,
      vector.
    b2: decay of the momentum; 0.99 on embedding and head, 0.999 on vector.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider. Roles: embedding, head, vector.
    mu_dtype: Optax's name for `state_dtype`. Roles: embedding, head.
    num_iters: number of iterations, at least 1. Roles: matrix.
    eps: added to every norm (matrix) and to the root of Adam's second moment
      (vector).
    unit_norm: omit both square roots, as the SAGE authors' hybrid does. The
      fan_out slices [i, :] then end with norm 1, and entries with root mean
      square 1 / sqrt(fan_out). Roles: matrix.
    kernels: as in `scale_by_sinkgd`; None: XLA's code only.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('lion_hybrid', ...)` returns.
  """
  return recipe('lion_hybrid', **given(locals()))


@recipe_function
def sinkgd(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  num_iters: int = 5,
  unit_norm: bool = False,
  kernels: str | None = None,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SinkGD on matrices, AdamW elsewhere, as in its paper.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_sinkgd`, lr_scale 0.05
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment. Roles: embedding, head, vector.
    b2: decay of the second moment. Roles: embedding, head, vector.
    eps: added to every norm (matrix) and to the root of Adam's second moment
      (other roles).
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider. Roles: embedding, head, vector.
    num_iters: number of iterations, at least 1. Roles: matrix.
    unit_norm: omit both square roots, as the SAGE authors' hybrid does. The
      fan_out slices [i, :] then end with norm 1, and entries with root mean
      square 1 / sqrt(fan_out). Roles: matrix.
    kernels: as in `scale_by_sinkgd`; None: XLA's code only.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('sinkgd', ...)` returns.
  """
  return recipe('sinkgd', **given(locals()))


@recipe_function
def swan(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  ns_steps: int = 10,
  center: bool = True,
  rescale: bool = True,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SWAN on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_swan`
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment. Roles: embedding, head, vector.
    b2: decay of the second moment. Roles: embedding, head, vector.
    eps: added to the root of the second moment. Roles: embedding, head, vector.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider. Roles: embedding, head, vector.
    ns_steps: number of iterations, at least 1. Singular values below about
      1.5^-ns_steps of a typical one stay smaller than the others. Use at most
      20 in float32: centering leaves a direction without signal in which
      rounding errors grow by 1.5 per iteration, and from about 25 iterations on
      it can diverge. Roles: matrix.
    center: subtract the mean over fan_in, so that the variance is taken about
      the mean, else about 0. Roles: matrix.
    rescale: restore the Frobenius norm that the matrix had before whitening.
      Without it, singular values end near 1. Roles: matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('swan', ...)` returns.
  """
  return recipe('swan', **given(locals()))


@recipe_function
def sage_muon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.99,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  mu_dtype: DTypeLike | None = None,
  axis: int = OWN,
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
  """SAGE on embedding, head and vectors, Muon on matrices.

  A new combination without published learning rates.

  Method of each role:

    embedding: `scale_by_sage`, axis -2
    head: `scale_by_sage`, axis -1
    matrix: `scale_by_muon`
    vector: `scale_by_sage`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: weight of the old momentum in the update. Roles: embedding, head,
      vector.
    b2: decay of the momentum and of the statistic. Roles: embedding, head,
      vector.
    eps: added to the statistics in the denominators. Roles: embedding, head,
      vector.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    mu_dtype: as `state_dtype`, for the momentum only; Optax's name. Roles:
      embedding, head, vector.
    axis: the axis of matrices to average over, a static integer. -2, the
      vocabulary of an embedding [vocab, feature], damps features; -1 is meant
      for dense kernels [fan_in, fan_out] and heads [feature, vocab]; -2 on
      embedding and vector, -1 on head.
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
    What `sage_optax.recipe('sage_muon', ...)` returns.
  """
  return recipe('sage_muon', **given(locals()))
