"""Steps of one transformation, and gradients for them."""

import jax
import jax.numpy as jnp
import numpy as np


def grads(shape, steps, seed=0):
  """[steps, *shape], normal."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((steps, *shape)), jnp.float32)


def states(tx, grads):
  """The state after each step."""
  state, seen = tx.init(grads[0]), []
  update = jax.jit(tx.update)
  for grad in grads:
    _, state = update(grad, state)
    seen.append(state)
  return seen


def updates(tx, grads):
  """The update of each step, stacked."""
  state, seen = tx.init(grads[0]), []
  update = jax.jit(tx.update)
  for grad in grads:
    scaled, state = update(grad, state)
    seen.append(scaled)
  return np.stack(seen)
