"""Recipes that project or rotate matrices, with AdamW elsewhere."""

from typing import Unpack

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from sage_optax.core.subspace import Projector
from sage_optax.leaves.arguments import OWN, Options, given, recipe_function
from sage_optax.recipes import recipe


@recipe_function
def apollo(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = OWN,
  state_dtype: DTypeLike | None = None,
  rank: int = 256,
  update_proj_gap: int = 200,
  scale: ArrayLike = 1.0,
  norm_growth_limit: ArrayLike | None = 1.01,
  per_unit: bool = True,
  scale_front: bool = False,
  projector: Projector = 'gaussian',
  key: int | jax.Array = 0,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """APOLLO on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_apollo`, rank 256
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment; 1e-08 on embedding and head and
      vector, 1e-06 on matrix.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    rank: rows of P, at most the smaller side; a static integer; of matrix.
    update_proj_gap: steps between two projectors, a static integer; of matrix.
    scale: enters as its square root. APOLLO-Mini takes 128 with rank 1; of
      matrix.
    norm_growth_limit: largest growth of a matrix's norm in one step; None: no
      limiter; of matrix.
    per_unit: one factor per index of the larger side; False: per matrix; of
      matrix.
    scale_front: apply `scale` before the limiter, as the released option; of
      matrix.
    projector: 'gaussian', entries N(0, 1/rank); 'svd', the leading singular
      vectors of the gradient; 'subspace', the same by orthogonal iteration; or
      a callable (key, matrix[fan_in, fan_out], count) -> P[rank, smaller side].
      With optax.inject_hyperparams a callable has to be in static_args; of
      matrix.
    key: seed or key of the projectors; of matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('apollo', ...)` returns.
  """
  return recipe('apollo', **given(locals()))


@recipe_function
def apollo_mini(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = OWN,
  state_dtype: DTypeLike | None = None,
  rank: int = 1,
  update_proj_gap: int = 200,
  scale: ArrayLike = 128.0,
  norm_growth_limit: ArrayLike | None = 1.01,
  per_unit: bool = False,
  scale_front: bool = False,
  projector: Projector = 'gaussian',
  key: int | jax.Array = 0,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """APOLLO-Mini, of rank 1, on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_apollo`, rank 1, per_unit False, scale 128.0
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment; 1e-08 on embedding and head and
      vector, 1e-06 on matrix.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    rank: rows of P, at most the smaller side; a static integer; of matrix.
    update_proj_gap: steps between two projectors, a static integer; of matrix.
    scale: enters as its square root. APOLLO-Mini takes 128 with rank 1; of
      matrix.
    norm_growth_limit: largest growth of a matrix's norm in one step; None: no
      limiter; of matrix.
    per_unit: one factor per index of the larger side; False: per matrix; of
      matrix.
    scale_front: apply `scale` before the limiter, as the released option; of
      matrix.
    projector: 'gaussian', entries N(0, 1/rank); 'svd', the leading singular
      vectors of the gradient; 'subspace', the same by orthogonal iteration; or
      a callable (key, matrix[fan_in, fan_out], count) -> P[rank, smaller side].
      With optax.inject_hyperparams a callable has to be in static_args; of
      matrix.
    key: seed or key of the projectors; of matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('apollo_mini', ...)` returns.
  """
  return recipe('apollo_mini', **given(locals()))


@recipe_function
def galore(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = OWN,
  state_dtype: DTypeLike | None = None,
  rank: int = 256,
  update_proj_gap: int = 200,
  scale: ArrayLike = 0.25,
  projector: Projector = 'svd',
  key: int | jax.Array = 0,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """GaLore on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_galore`, rank 256
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment; 1e-08 on embedding and head and
      vector, 1e-06 on matrix.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    rank: rows of P, at most the smaller side; a static integer; of matrix.
    update_proj_gap: steps between two projectors, a static integer; of matrix.
    scale: factor of the update; of matrix.
    projector: 'svd', the leading singular vectors of the gradient; 'subspace',
      nearly the same by orthogonal iteration from the projector before;
      'gaussian', entries N(0, 1/rank); or a callable (key, matrix[fan_in,
      fan_out], count) -> P[rank, smaller side]. With optax.inject_hyperparams a
      callable has to be in static_args; of matrix.
    key: seed or key of the projectors; 'svd' does not use it; of matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('galore', ...)` returns.
  """
  return recipe('galore', **given(locals()))


@recipe_function
def fira(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = OWN,
  state_dtype: DTypeLike | None = None,
  rank: int = 256,
  update_proj_gap: int = 200,
  alpha: ArrayLike = 0.25,
  norm_growth_limit: ArrayLike | None = 1.01,
  exact_residual: bool = False,
  projector: Projector = 'svd',
  key: int | jax.Array = 0,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Fira on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_fira`, rank 256
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment; 1e-08 on embedding and head and
      vector, 1e-06 on matrix.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    rank: rows of P, at most the smaller side; a static integer; of matrix.
    update_proj_gap: steps between two projectors, a static integer; of matrix.
    alpha: factor of the subspace's part; of matrix.
    norm_growth_limit: largest growth of a residual's norm in one step; None: no
      limiter; of matrix.
    exact_residual: subtract the projection without `alpha`; of matrix.
    projector: as in `scale_by_galore`; of matrix.
    key: seed or key of the projectors; 'svd' does not use it; of matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('fira', ...)` returns.
  """
  return recipe('fira', **given(locals()))


@recipe_function
def soap(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = OWN,
  b2: ArrayLike = OWN,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  update_proj_gap: int = 10,
  max_side: int = 10000,
  one_sided: bool = False,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SOAP on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_soap`
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment; 0.9 on embedding and head and vector, 0.95 on
      matrix.
    b2: decay of the second moment; 0.999 on embedding and head and vector, 0.95
      on matrix.
    eps: added to the root of the second moment.
    state_dtype: float32, bfloat16 or int8 for the state, the latter two rounded
      stochastically, int8 for `mu` and `nu` alone; None: float32, or the
      parameters' type if wider.
    update_proj_gap: steps between two bases, a static integer; of matrix.
    max_side: sides longer than this are not rotated, a static integer; of
      matrix.
    one_sided: rotate the smaller side only, fan_in if both are equal; of
      matrix.
    **options: roles and layout, decay and overrides of one role, as
      `sage_optax.recipe` takes them.

  Returns:
    What `sage_optax.recipe('soap', ...)` returns.
  """
  return recipe('soap', **given(locals()))
