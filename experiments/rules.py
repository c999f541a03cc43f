"""Update rules for a table [vocab, feature], used only as controls.

They answer questions about the methods of `sage_optax`. They are not
recommended, so they are not part of the library.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sage_optax

# Any fixed permutation of features that moves most of them would do.
_PERMUTATION_SEED = 7


def with_damper(
  change: Callable[[jax.Array], jax.Array], b2: Any
) -> optax.GradientTransformation:
  """SAGE with another damper.

  SAGE's update is sign * H with one H per feature, so H is the largest
  absolute value of a feature's column.

  Args:
    change: H[1, feature] -> its replacement.
    b2: SAGE's decay.
  """
  sage = sage_optax.scale_by_sage(b2=b2)

  def replace(update):
    damper = jnp.max(jnp.abs(update), axis=-2, keepdims=True)
    return jnp.sign(update) * change(damper)

  def update_fn(updates, state, params=None):
    updates, state = sage.update(updates, state, params)
    return jax.tree.map(replace, updates), state

  return optax.GradientTransformation(sage.init, update_fn)


def shuffled(damper: jax.Array) -> jax.Array:
  """The dampers of all features, permuted."""
  key = jax.random.key(_PERMUTATION_SEED)
  return damper[:, jax.random.permutation(key, damper.shape[1])]


def averaged(damper: jax.Array) -> jax.Array:
  """The mean of the dampers of all features: Lion with a smaller step."""
  return jnp.mean(damper, axis=-1, keepdims=True)


def scale_by_factored(b2: Any, eps: float = 1e-30) -> Any:
  """g / sqrt(v) with v factored into rows and columns, without first moment.

  Adafactor's v (Shazeer and Stern, arXiv 1804.04235) with a constant decay and
  Adam's bias correction, without its clipping.

  Args:
    b2: decay of the means of g^2 over rows and over columns.
    eps: added to g^2.
  """

  def init_fn(params):
    rows = jax.tree.map(lambda p: jnp.zeros((p.shape[0], 1)), params)
    columns = jax.tree.map(lambda p: jnp.zeros((1, p.shape[1])), params)
    return rows, columns, jnp.zeros([], jnp.int32)

  def update_fn(updates, state, params=None):
    del params
    rows, columns, count = state
    count = optax.safe_increment(count)

    def average(old, axis):
      return jax.tree.map(
        lambda g, v: (
          b2 * v + (1 - b2) * jnp.mean(g**2 + eps, axis, keepdims=True)
        ),
        updates,
        old,
      )

    rows, columns = average(rows, -1), average(columns, -2)

    def step(g, row, column):
      # In this order, nothing underflows if a row has no gradient.
      v = row / jnp.mean(row, axis=-2, keepdims=True) * column
      return g / jnp.sqrt(v / (1 - b2**count))

    scaled = jax.tree.map(step, updates, rows, columns)
    return scaled, (rows, columns, count)

  return optax.GradientTransformation(init_fn, update_fn)


def turned(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """Applies a rule for tables [vocab, feature] to heads [feature, vocab]."""

  def turn(tree):
    return jax.tree.map(lambda x: x.T, tree)

  def init_fn(params):
    return tx.init(turn(params))

  def update_fn(updates, state, params=None):
    params = None if params is None else turn(params)
    updates, state = tx.update(turn(updates), state, params)
    return turn(updates), state

  return optax.GradientTransformation(init_fn, update_fn)
