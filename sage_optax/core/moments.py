"""Moving averages, and update rules that several methods share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import linalg


def ema(new: jax.Array, old: jax.Array, decay: Any) -> jax.Array:
  """Exponential moving average decay * old + (1 - decay) * new, as `old`."""
  linalg.check_precise('A decay', decay)
  # Optax's order of terms, so that Lion equals Optax's bit for bit.
  return ((1.0 - decay) * new + decay * old).astype(old.dtype)


def sign_step(
  grad: jax.Array,
  mu: jax.Array,
  b1: Any,
  b2: Any,
) -> tuple[jax.Array, jax.Array]:
  """The sign update and the new momentum (Chen et al. 2023, Program 1).

  Args:
    grad: gradient, in the dtype of `mu`.
    mu: momentum before this step.
    b1: weight of the momentum in the update.
    b2: decay of the momentum.

  Returns:
    sign(b1 * mu + (1 - b1) * grad), in the shape and dtype of `grad`, and the
    new momentum.
  """
  new = ema(grad, mu, b2)

  def plain(grad, mu, new):
    del new
    return jnp.sign(ema(grad, mu, b1))

  def fused(grad, mu, new):
    # Computed from the new momentum, so that the old one need not be copied
    # before it is overwritten: on CPU, XLA computes every result in its own
    # loop.
    del mu
    share = b1 / b2
    return jnp.sign(share * new + (1 - share) * grad).astype(new.dtype)

  known = not any(isinstance(b, jax.core.Tracer) for b in (b1, b2))
  # With a small b2, the division would lose digits.
  if not (isinstance(grad, jax.core.Tracer) and known and 0.5 <= b2 > b1):
    return plain(grad, mu, new), new
  sign = jax.lax.platform_dependent(grad, mu, new, cpu=fused, default=plain)
  return sign, new


def raw_adam(
  grad: jax.Array,
  mu: jax.Array,
  nu: jax.Array,
  b1: jax.typing.ArrayLike,
  b2: jax.typing.ArrayLike,
  eps: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Adam's update before the bias correction, which then also scales eps.

  The code of GaLore, APOLLO, Fira and SPAM uses this form; the whole update is
  this times `adam_correction`.

  Args:
    grad: gradient, in the dtype of the moments.
    mu: first moment before this step.
    nu: second moment before this step.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.

  Returns:
    mu / (sqrt(nu) + eps) of the new moments, and the new moments.
  """
  mu = ema(grad, mu, b1)
  nu = ema(jnp.square(grad), nu, b2)
  return mu / (jnp.sqrt(nu) + eps), mu, nu


def adam_correction(
  count: jax.Array,
  b1: jax.typing.ArrayLike,
  b2: jax.typing.ArrayLike,
  dtype: Any,
) -> jax.Array:
  """sqrt(1 - b2^t) / (1 - b1^t) for t = `count`, counted from 1."""
  return jnp.sqrt(1 - jnp.asarray(b2, dtype) ** count) / (
    1 - jnp.asarray(b1, dtype) ** count
  )


def unbiased(
  average: jax.Array, decay: jax.typing.ArrayLike, count: jax.Array
) -> jax.Array:
  """Corrects the bias of an average: average / (1 - decay^count)."""
  return average / (1 - jnp.asarray(decay, average.dtype) ** count)


def cosine(
  count: jax.Array,
  steps: jax.typing.ArrayLike,
  start: Any,
  end: Any,
) -> jax.Array:
  """Cosine schedule from `start` at count 0 to `end`, constant from `steps` on.

  Half a period is steps + 1 counts, as in the code of SPAM and Stable-SPAM.
  """
  wave = (1 + jnp.cos(jnp.pi * count / (steps + 1))) / 2
  return jnp.where(count < steps, end + (start - end) * wave, end)


def zeros(params: optax.Params) -> optax.Updates:
  """Zeros in the shapes of `params`, float32 or wider."""
  return jax.tree.map(
    lambda p: jnp.zeros_like(p, dtype=linalg.stat_dtype(p)), params
  )


def zeros_of(statistic: Any, params: optax.Params) -> optax.Updates:
  """Zeros in the shape, dtype and sharding of a statistic of each leaf."""
  return jax.tree.map(
    lambda p: jnp.zeros_like(jax.eval_shape(statistic, p)), params
  )


def map_corrected(
  function: Callable[..., Any],
  numbers: tuple[Any, ...],
  count: jax.Array,
  *trees: Any,
) -> tuple[Any, ...]:
  """Maps a function over leaves, and corrects the bias of its first result.

  Args:
    function: (numbers, grad, projector, *state) -> direction, *new_state.
    numbers: b1, b2 and other numbers that may be traced. Under explicit
      sharding, the function must not close over these.
    count: number of updates, including this one.
    *trees: gradients, projectors and state.

  Returns:
    A tree of directions and the trees of the new state.
  """

  b1, b2, *_ = numbers

  def step(grad, projector, *state):
    in_auto_axes = linalg.in_auto_axes(function, (grad, *state))
    direction, *rest = in_auto_axes(numbers, grad, projector, *state)
    correction = adam_correction(count, b1, b2, direction.dtype)
    return direction * correction, *rest

  return unzip(jax.tree.map(step, *trees), trees[0], len(trees) - 1)


def unzip(tree: Any, like: Any, number: int) -> tuple[Any, ...]:
  """Turns a tree of tuples into a tuple of trees.

  Args:
    tree: the result of mapping a function with `number` results over `like`.
    like: tree whose leaves are where `tree` has tuples.
    number: length of the tuples.
  """
  return tuple(
    jax.tree.map(lambda _, results, i=i: results[i], like, tree)
    for i in range(number)
  )
