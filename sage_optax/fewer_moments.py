"""Recipes of Adam with fewer moments."""

from typing import Unpack

import jax
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


@recipe_function
def rms_muon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float | None = OWN,
  b2: ArrayLike = 0.99,
  eps: ArrayLike = 1e-08,
  state_dtype: DTypeLike | None = None,
  axis: int = OWN,
  momentum: float | None = None,
  ns_steps: int = 5,
  nesterov: bool = True,
  consistent_rms: float | None = 0.2,
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
  """A second moment per token, and Muon without momentum on matrices.

  Our own combination, from our study (docs/evidence.md). Its best learning rate
  for a Llama of width 64 was 6.4e-2. It keeps one number per token and two per
  element of vectors.

  Method of each role:

    embedding: `scale_by_adam_mini`, b1 None, b2 0.99, axis -1
    head: `scale_by_adam_mini`, b1 None, b2 0.99, axis -2
    matrix: `scale_by_muon`, momentum None, consistent_rms 0.2, lr_scale
      0.25
    vector: `scale_by_adam`, b2 0.99

  Args:
    learning_rate: a number or an Optax schedule.
    b1: decay of the first moment; None: no first moment; the gradient itself is
      divided; None on embedding and head, 0.9 on vector.
    b2: decay of the second moment. Roles: embedding, head, vector.
    eps: added to the root of the second moment. Roles: embedding, head, vector.
    state_dtype: dtype of the state: float32, bfloat16 or int8 (`mu` and `nu`
      only); the latter two are rounded stochastically. None: float32, or the
      parameters' dtype if wider.
    axis: the axis of matrices to average over, -2 or -1, a static integer; -1
      on embedding, -2 on head.
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
    What `sage_optax.recipe('rms_muon', ...)` returns.
  """
  return recipe('rms_muon', **given(locals()))
