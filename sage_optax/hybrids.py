"""Recipes that give matrices a method of their own."""

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
    b1: weight of the old momentum in the update; of embedding and head and
      vector.
    b2: decay of the momentum and of the statistic; of embedding and head and
      vector.
    eps: added to every norm. Zero slices stay zero; compiled for one CPU, so do
      slices whose entries are all below 1e-18.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider; of embedding and head and vector.
    mu_dtype: the same for the momentum alone, Optax's name; of embedding and
      head and vector.
    axis: the axis that is averaged away in matrices, a static integer. -2, the
      vocabulary of an embedding [vocab, feature], damps features; -1 is meant
      for dense kernels [fan_in, fan_out] and heads [feature, vocab]; -2 on
      embedding and vector, -1 on head.
    num_iters: number of iterations, at least 1; of matrix.
    unit_norm: leave both square roots out, as the SAGE authors' hybrid does.
      The fan_out slices [i, :] then end with norm 1, entries with root mean
      square 1 / sqrt(fan_out); of matrix, off unless paper=True.
    kernels: as `scale_by_sinkgd` takes it; None: XLA's code alone.
    paper: take the authors' released form: on matrices no square-root factors
      (`unit_norm`) and lr_scale 10.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

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
    b1: weight of the old momentum in the update; of embedding and head and
      vector.
    b2: decay of the momentum; 0.99 on embedding and head, 0.999 on vector.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider; of embedding and head and vector.
    mu_dtype: the same under Optax's name; of embedding and head.
    num_iters: number of iterations, at least 1; of matrix.
    eps: added to every norm. Zero slices stay zero; compiled for one CPU, so do
      slices whose entries are all below 1e-18; of matrix and vector.
    unit_norm: leave both square roots out, as the SAGE authors' hybrid does.
      The fan_out slices [i, :] then end with norm 1, entries with root mean
      square 1 / sqrt(fan_out); of matrix.
    kernels: as `scale_by_sinkgd` takes it; None: XLA's code alone.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

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
  """SinkGD on matrices, AdamW elsewhere: the method of its paper.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_sinkgd`, lr_scale 0.05
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment; of embedding and head and vector.
    b2: decay of the second moment; of embedding and head and vector.
    eps: added to every norm. Zero slices stay zero; compiled for one CPU, so do
      slices whose entries are all below 1e-18.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider; of embedding and head and vector.
    num_iters: number of iterations, at least 1; of matrix.
    unit_norm: leave both square roots out, as the SAGE authors' hybrid does.
      The fan_out slices [i, :] then end with norm 1, entries with root mean
      square 1 / sqrt(fan_out); of matrix.
    kernels: as `scale_by_sinkgd` takes it; None: XLA's code alone.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

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
    b1: decay of the first moment; of embedding and head and vector.
    b2: decay of the second moment; of embedding and head and vector.
    eps: added to the root of the second moment; of embedding and head and
      vector.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider; of embedding and head and vector.
    ns_steps: number of iterations, at least 1; singular values below about
      1.5^-ns_steps of the typical are not brought up to the others. Keep to 20
      in float32: centring leaves an empty direction where rounding grows by 1.5
      with each, and from about 25 the iteration can diverge; of matrix.
    center: subtract the mean over fan_in; the variance is about the mean then,
      else about 0; of matrix.
    rescale: give the whitened matrix the Frobenius norm it had before. Without
      it singular values end near 1; of matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

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

  A combination that nobody has published, without known learning rates.

  Method of each role:

    embedding: `scale_by_sage`, axis -2
    head: `scale_by_sage`, axis -1
    matrix: `scale_by_muon`
    vector: `scale_by_sage`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: weight of the old momentum in the update; of embedding and head and
      vector.
    b2: decay of the momentum and of the statistic; of embedding and head and
      vector.
    eps: added to the statistics in the denominators; of embedding and head and
      vector.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    mu_dtype: the same for the momentum alone, Optax's name; of embedding and
      head and vector.
    axis: the axis that is averaged away in matrices, a static integer. -2, the
      vocabulary of an embedding [vocab, feature], damps features; -1 is meant
      for dense kernels [fan_in, fan_out] and heads [feature, vocab]; -2 on
      embedding and vector, -1 on head.
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
    What `sage_optax.recipe('sage_muon', ...)` returns.
  """
  return recipe('sage_muon', **given(locals()))
