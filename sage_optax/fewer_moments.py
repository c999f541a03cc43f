"""Recipes of Adam with fewer second moments."""

from typing import Unpack

import optax
from jax.typing import ArrayLike, DTypeLike

from sage_optax.leaves.arguments import OWN, Options, given, recipe_function
from sage_optax.recipes import recipe


@recipe_function
def adafactor(
  learning_rate: optax.ScalarOrSchedule,
  *,
  momentum: float | None = None,
  decay_rate: float = 0.8,
  eps: ArrayLike = 1e-30,
  clipping_threshold: float | None = 1.0,
  state_dtype: DTypeLike | None = None,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Adafactor on every role, without relative step sizes.

  Method on every role: `scale_by_adafactor`.

  Args:
    learning_rate: a number or an Optax schedule.
    momentum: decay of the moving average of the clipped updates, without bias
      correction; None: no momentum.
    decay_rate: exponent of the decay, 0.8 above.
    eps: added to the squared gradients.
    clipping_threshold: largest root mean square of a unit's update; None: no
      limit.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (the momentum
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('adafactor', ...)` returns.
  """
  return recipe('adafactor', **given(locals()))


@recipe_function
def adam_mini(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float | None = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  axis: int = OWN,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Adam-mini: a second moment per token and per fan-out unit.

  Method of each role:

    embedding: `scale_by_adam_mini`, axis -1
    head: `scale_by_adam_mini`, axis -2
    matrix: `scale_by_adam_mini`, axis -2
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment; None: no first moment; the gradient itself is
      divided.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    axis: the axis of matrices to average over, -2 or -1, a static integer; -1
      on embedding, -2 on head and matrix.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('adam_mini', ...)` returns.
  """
  return recipe('adam_mini', **given(locals()))


@recipe_function
def coupled_adam(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  axis: int = OWN,
  **options: Unpack[Options],
) -> optax.GradientTransformation:
  """Coupled Adam on embedding and head, AdamW elsewhere.

  Method of each role:

    embedding: `scale_by_adam_mini`, axis -2
    head: `scale_by_adam_mini`, axis -1
    matrix: `scale_by_adam`
    vector: `scale_by_adam`

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    axis: the axis of matrices to average over, -2 or -1, a static integer; -2
      on embedding, -1 on head.
    **options: weight decay, overrides per role, rules and layout, as in
      `sage_optax.recipe`.

  Returns:
    What `sage_optax.recipe('coupled_adam', ...)` returns.
  """
  return recipe('coupled_adam', **given(locals()))
