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
    eps: added to the root of the second moment; 1e-08 on embedding, head and
      vector, 1e-06 on matrix.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    rank: rows of P, at most the smaller side; a static integer. Roles: matrix.
    update_proj_gap: steps between two projectors, a static integer. Roles:
      matrix.
    scale: the update is multiplied by its square root. APOLLO-Mini uses 128
      with rank 1. Roles: matrix.
    norm_growth_limit: largest factor by which a matrix's norm may grow in one
      step; None: no limiter. Roles: matrix.
    per_unit: one factor per index of the larger side; False: per matrix. Roles:
      matrix.
    scale_front: apply `scale` before the limiter, an option of the released
      code. Roles: matrix.
    projector: 'gaussian', entries N(0, 1/rank); 'svd', the leading singular
      vectors of the gradient; 'subspace', nearly the same, by orthogonal
      iteration; or a callable (key, matrix[fan_in, fan_out], count) -> P[rank,
      smaller side]. With optax.inject_hyperparams, name `projector` in
      static_args if it is a callable. Roles: matrix.
    key: seed or key of the projectors. Roles: matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

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
  """APOLLO-Mini (rank 1) on matrices, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam`
    head: `scale_by_adam`
    matrix: `scale_by_apollo`, rank 1, per_unit False, scale 128.0
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment; 1e-08 on embedding, head and
      vector, 1e-06 on matrix.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    rank: rows of P, at most the smaller side; a static integer. Roles: matrix.
    update_proj_gap: steps between two projectors, a static integer. Roles:
      matrix.
    scale: the update is multiplied by its square root. APOLLO-Mini uses 128
      with rank 1. Roles: matrix.
    norm_growth_limit: largest factor by which a matrix's norm may grow in one
      step; None: no limiter. Roles: matrix.
    per_unit: one factor per index of the larger side; False: per matrix. Roles:
      matrix.
    scale_front: apply `scale` before the limiter, an option of the released
      code. Roles: matrix.
    projector: 'gaussian', entries N(0, 1/rank); 'svd', the leading singular
      vectors of the gradient; 'subspace', nearly the same, by orthogonal
      iteration; or a callable (key, matrix[fan_in, fan_out], count) -> P[rank,
      smaller side]. With optax.inject_hyperparams, name `projector` in
      static_args if it is a callable. Roles: matrix.
    key: seed or key of the projectors. Roles: matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

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
    eps: added to the root of the second moment; 1e-08 on embedding, head and
      vector, 1e-06 on matrix.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    rank: rows of P, at most the smaller side; a static integer. Roles: matrix.
    update_proj_gap: steps between two projectors, a static integer. Roles:
      matrix.
    scale: factor of the update. Roles: matrix.
    projector: 'svd', the leading singular vectors of the gradient; 'subspace',
      nearly the same, by orthogonal iteration from the previous projector;
      'gaussian', entries N(0, 1/rank); or a callable (key, matrix[fan_in,
      fan_out], count) -> P[rank, smaller side]. With optax.inject_hyperparams,
      name `projector` in static_args if it is a callable. Roles: matrix.
    key: seed or key of the projectors; 'svd' does not use it. Roles: matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

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
    eps: added to the root of the second moment; 1e-08 on embedding, head and
      vector, 1e-06 on matrix.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    rank: rows of P, at most the smaller side; a static integer. Roles: matrix.
    update_proj_gap: steps between two projectors, a static integer. Roles:
      matrix.
    alpha: factor of the update in the subspace. Roles: matrix.
    norm_growth_limit: largest factor by which a residual's norm may grow in one
      step; None: no limiter. Roles: matrix.
    exact_residual: subtract the projection without `alpha`. Roles: matrix.
    projector: as in `scale_by_galore`. Roles: matrix.
    key: seed or key of the projectors; 'svd' does not use it. Roles: matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

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
    b1: decay of the first moment; 0.9 on embedding, head and vector, 0.95 on
      matrix.
    b2: decay of the second moment; 0.999 on embedding, head and vector, 0.95 on
      matrix.
    eps: added to the root of the second moment.
    state_dtype: dtype of the state: float32, or bfloat16 rounded
      stochastically. None: float32, or the parameters' dtype if wider.
    update_proj_gap: steps between two bases, a static integer. Roles: matrix.
    max_side: longest side that is rotated, a static integer. Roles: matrix.
    one_sided: rotate the smaller side only, fan_in if both are equal. Roles:
      matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('soap', ...)` returns.
  """
  return recipe('soap', **given(locals()))
