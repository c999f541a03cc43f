"""The sign of an interpolated momentum: what Lion and SAGE have in common."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax import _matrix


def ema(new: jax.Array, old: jax.Array, decay: Any) -> jax.Array:
  """Exponential moving average decay * old + (1 - decay) * new, as `old`."""
  # Optax's order of the terms: Lion equals Optax's bit for bit.
  return ((1.0 - decay) * new + decay * old).astype(old.dtype)


def interpolated_sign(
  grad: jax.Array, mu: jax.Array, b1: jax.typing.ArrayLike
) -> jax.Array:
  """The sign update (Chen et al. 2023, Program 1).

  Args:
    grad: gradient, in the dtype of `mu`.
    mu: momentum from before this step.
    b1: weight of the momentum.

  Returns:
    sign(b1 * mu + (1 - b1) * grad), in the shape and dtype of `grad`.
  """
  return jnp.sign(ema(grad, mu, b1))


def zeros(params: optax.Params) -> optax.Updates:
  """A momentum of zeros: the shapes of `params`, float32 or wider."""
  return jax.tree.map(
    lambda p: jnp.zeros_like(p, dtype=_matrix.stat_dtype(p)), params
  )
