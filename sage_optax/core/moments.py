"""Moving averages, and the steps that several methods make of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import linalg


def ema(new: jax.Array, old: jax.Array, decay: Any) -> jax.Array:
  """Exponential moving average decay * old + (1 - decay) * new, as `old`."""
  # Optax's order of the terms: Lion equals Optax's bit for bit.
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
    mu: momentum from before this step.
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
    # Of the new momentum, so that the old one need not be copied before it is
    # overwritten: XLA gives every result on CPU a loop of its own.
    del mu
    share = b1 / b2
    return jnp.sign(share * new + (1 - share) * grad).astype(new.dtype)

  known = not any(isinstance(b, jax.core.Tracer) for b in (b1, b2))
  # With a small b2 the division would lose digits.
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
  """Adam's step before its bias correction, with eps inside the correction.

  So it stands in the code of GaLore, APOLLO, Fira and SPAM; the whole step is
  this times `adam_correction`.

  Args:
    grad: gradient, in the dtype of the moments.
    mu: first moment from before this step.
    nu: second moment from before this step.
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
  """The average over its weights so far: average / (1 - decay^count)."""
  return average / (1 - jnp.asarray(decay, average.dtype) ** count)


def cosine(
  count: jax.Array,
  steps: jax.typing.ArrayLike,
  start: Any,
  end: Any,
) -> jax.Array:
  """From `start` at count 0 to `end`, where it stays from count `steps` on.

  Half a cosine of steps + 1 counts, as the code of SPAM and Stable-SPAM has it.
  """
  wave = (1 + jnp.cos(jnp.pi * count / (steps + 1))) / 2
  return jnp.where(count < steps, end + (start - end) * wave, end)


def zeros(params: optax.Params) -> optax.Updates:
  """A momentum of zeros: the shapes of `params`, float32 or wider."""
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
    function: (numbers, grad, projector, *state) -> direction and new state, as
      many as `state`.
    numbers: b1, b2 and others that may be traced. Under explicit sharding, the
      function must not close over these.
    count: updates, with this one.
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
    tree: what mapping a function of `number` results over `like` gave.
    like: tree whose leaves are where `tree` has tuples.
    number: length of the tuples.
  """
  return tuple(
    jax.tree.map(lambda _, results, i=i: results[i], like, tree)
    for i in range(number)
  )
