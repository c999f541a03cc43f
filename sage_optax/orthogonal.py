"""Recipes that orthogonalise the steps of matrices."""

from typing import Unpack

import optax
from jax.typing import ArrayLike, DTypeLike

from sage_optax.leaves.arguments import OWN, Options, given, recipe_function
from sage_optax.recipes import recipe


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
    state_dtype: float32 or bfloat16 for every slot, the latter rounded
      stochastically; None: float32, or the parameters' type if wider; of
      embedding and head and vector.
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
def muon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  momentum: ArrayLike = 0.95,
  ns_steps: int = 5,
  nesterov: bool = True,
  consistent_rms: float | None = None,
  equilibrate: str | None = None,
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
    state_dtype: float32 or bfloat16 for the momentum, the latter rounded
      stochastically; None: float32, or the parameters' type if wider.
    momentum: decay of the momentum; of matrix.
    ns_steps: number of iterations, at least 1; of matrix.
    nesterov: mix the gradient into the momentum once more; of matrix.
    consistent_rms: root mean square of the entries of an update, about; None:
      the factor above; of matrix.
    equilibrate: before orthogonalising divide by the norm of each fan-out unit
      over its fan_in ('fan_out', MuonEq's default), of each fan-in unit
      ('fan_in'), by the product of the two ('both'), or by nothing (None); of
      matrix.
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
  momentum: ArrayLike = 0.95,
  ns_steps: int = 5,
  nesterov: bool = True,
  consistent_rms: float | None = 0.2,
  equilibrate: str | None = 'fan_out',
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
    state_dtype: float32 or bfloat16 for the momentum, the latter rounded
      stochastically; None: float32, or the parameters' type if wider.
    momentum: decay of the momentum; of matrix.
    ns_steps: number of iterations, at least 1; of matrix.
    nesterov: mix the gradient into the momentum once more; of matrix.
    consistent_rms: root mean square of the entries of an update, about; None:
      the factor above; of matrix.
    equilibrate: before orthogonalising divide by the norm of each fan-out unit
      over its fan_in ('fan_out', MuonEq's default), of each fan-in unit
      ('fan_in'), by the product of the two ('both'), or by nothing (None); of
      matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('muon_eq', ...)` returns.
  """
  return recipe('muon_eq', **given(locals()))


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
  momentum: ArrayLike = 0.95,
  ns_steps: int = 5,
  nesterov: bool = True,
  consistent_rms: float | None = None,
  equilibrate: str | None = None,
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
    state_dtype: float32 or bfloat16 for the momentum, the latter rounded
      stochastically; None: float32, or the parameters' type if wider.
    mu_dtype: the same for the momentum alone, Optax's name; of embedding and
      head and vector.
    axis: the axis that is averaged away in matrices, a static integer. -2, the
      vocabulary of an embedding [vocab, feature], damps features; -1 is meant
      for dense kernels [fan_in, fan_out] and heads [feature, vocab]; -2 on
      embedding and vector, -1 on head.
    momentum: decay of the momentum; of matrix.
    ns_steps: number of iterations, at least 1; of matrix.
    nesterov: mix the gradient into the momentum once more; of matrix.
    consistent_rms: root mean square of the entries of an update, about; None:
      the factor above; of matrix.
    equilibrate: before orthogonalising divide by the norm of each fan-out unit
      over its fan_in ('fan_out', MuonEq's default), of each fan-in unit
      ('fan_in'), by the product of the two ('both'), or by nothing (None); of
      matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('sage_muon', ...)` returns.
  """
  return recipe('sage_muon', **given(locals()))
