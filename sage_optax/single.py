"""Recipes that use one method on every role."""

from typing import Unpack

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from sage_optax.leaves.arguments import OWN, Options, given, recipe_function
from sage_optax.recipes import recipe


@recipe_function
def adamw(
  learning_rate: optax.ScalarOrSchedule,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  *,
  state_dtype: DTypeLike | None = None,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """AdamW, Optax's with float32 state.

  The first arguments have the order of `optax.adamw`. Unlike there, the weight
  decay is 0 by default, and vectors are not decayed.

  Method on every role: `scale_by_adam`.

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('adamw', ...)` returns.
  """
  return recipe('adamw', **given(locals()))


@recipe_function
def lion(
  learning_rate: optax.ScalarOrSchedule,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.99,
  *,
  state_dtype: DTypeLike | None = None,
  mu_dtype: DTypeLike | None = None,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Lion on every role.

  Method on every role: `scale_by_lion`.

  Args:
    learning_rate: a number or an Optax schedule.
    b1: weight of the old momentum in the update.
    b2: decay of the momentum.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    mu_dtype: Optax's name for `state_dtype`.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('lion', ...)` returns.
  """
  return recipe('lion', **given(locals()))


@recipe_function
def sage(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.99,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  mu_dtype: DTypeLike | None = None,
  axis: int = OWN,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SAGE on every role.

  Method of each role:

    embedding: `scale_by_sage`, axis -2
    head: `scale_by_sage`, axis -1
    matrix: `scale_by_sage`, axis -1
    vector: `scale_by_sage`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: weight of the old momentum in the update.
    b2: decay of the momentum and of the statistic.
    eps: added to the statistics in the denominators.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    mu_dtype: as `state_dtype`, for the momentum only; Optax's name.
    axis: the axis of matrices to average over, a static integer. -2, the
      vocabulary of an embedding [vocab, feature], damps features; -1 is meant
      for dense kernels [fan_in, fan_out] and heads [feature, vocab]; -2 on
      embedding and vector, -1 on head and matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('sage', ...)` returns.
  """
  return recipe('sage', **given(locals()))


@recipe_function
def sinkgd_pure(
  learning_rate: optax.ScalarOrSchedule,
  *,
  num_iters: int = 5,
  eps: ArrayLike = 1e-08,
  unit_norm: bool = False,
  kernels: str | None = None,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SinkGD on every role, without state.

  Method on every role: `scale_by_sinkgd`.

  Args:
    learning_rate: a number or an Optax schedule.
    num_iters: number of iterations, at least 1.
    eps: added to every norm. Zero slices stay zero.
    unit_norm: omit both square roots, as the SAGE authors' hybrid does. The
      fan_out slices [i, :] then end with norm 1, and entries with root mean
      square 1 / sqrt(fan_out).
    kernels: as in `scale_by_sinkgd`; None: XLA's code only.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('sinkgd_pure', ...)` returns.
  """
  return recipe('sinkgd_pure', **given(locals()))


@recipe_function
def stable_spam(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  gamma1: ArrayLike = 0.7,
  gamma2: ArrayLike = 0.9,
  gamma3: ArrayLike = 0.999,
  reset_interval: int | None = 1000,
  state_dtype: DTypeLike | None = None,
  total_steps: int | None = None,
  min_scale: ArrayLike = 0.5,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Stable-SPAM on every role.

  Method on every role: `scale_by_stable_spam`.

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to both roots.
    gamma1: decay of the mean norm.
    gamma2: decay of the mean squared norm.
    gamma3: decay of the mean largest entry.
    reset_interval: steps between resets of Adam's moments, at least 1; None: no
      resets.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    total_steps: multiply b1 and gamma1 by a cosine schedule from 1 to
      `min_scale` over this many steps; None: leave them unchanged. This is in
      the released code only.
    min_scale: final value of that schedule.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('stable_spam', ...)` returns.
  """
  return recipe('stable_spam', **given(locals()))


@recipe_function
def spam(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-06,
  threshold: ArrayLike = 5000.0,
  reset_interval: int = 500,
  warmup_steps: int = 150,
  grace_steps: int = 20,
  density: ArrayLike = 1.0,
  key: int | jax.Array = 0,
  state_dtype: DTypeLike | None = None,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SPAM on every role.

  Method on every role: `scale_by_spam`.

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    threshold: theta, the largest allowed ratio of a squared entry to its second
      moment.
    reset_interval: steps between resets of the moments, at least 1.
    warmup_steps: length of the warm-up after each reset.
    grace_steps: steps without clipping at the start and after each reset.
    density: share of the entries that learn between two resets, in (0, 1]. With
      the Python number 1, the program contains no masks; with an array (as
      under `optax.inject_hyperparams`), masks are computed in every step.
    key: seed or key of the masks.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('spam', ...)` returns.
  """
  return recipe('spam', **given(locals()))


@recipe_function
def sgd_sai(
  learning_rate: optax.ScalarOrSchedule,
  *,
  momentum: ArrayLike = 0.9,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  normalize_by_max: bool = False,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """SGD-SaI on every role.

  Method on every role: `scale_by_sgd_sai`.

  Args:
    learning_rate: a number or an Optax schedule.
    momentum: decay of the momentum.
    eps: added to the standard deviation.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    normalize_by_max: divide gsnr by its maximum over all units that this
      transformation sees (in a recipe, the units of one role), as in the paper.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('sgd_sai', ...)` returns.
  """
  return recipe('sgd_sai', **given(locals()))
