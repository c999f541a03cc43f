"""Steps of one transformation, and gradients for them."""

import jax
import jax.numpy as jnp
import numpy as np

import sage_optax


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


def on_mesh(tx, grads, axis_type):
  """Yields update and state of each step on 4 x 2 devices.

  Matrices are sharded on both axes, and under automatic axes a rank in the
  place of either. That updates stay where gradients are, and the state where
  `state_specs` says, is asserted.
  """
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(axis_type,) * 2)

  def named(spec):
    return jax.sharding.NamedSharding(mesh, spec)

  spec = jax.P(*(None,) * (grads[0].ndim - 2), 'a', 'b')
  with jax.set_mesh(mesh):
    sharded = [jax.device_put(grad, named(spec)) for grad in grads]
    explicit = axis_type == jax.sharding.AxisType.Explicit
    specs = sage_optax.sharding.state_specs(
      tx, sharded[0], spec, None if explicit else mesh.shape
    )
    shardings = named(spec), jax.tree.map(named, specs)
    state = jax.jit(tx.init, out_shardings=shardings[1])(sharded[0])
    # Under automatic sharding the results' shardings are the caller's to say.
    update = jax.jit(tx.update, out_shardings=None if explicit else shardings)
    for grad in sharded:
      scaled, state = update(grad, state)
      for leaf, wanted in zip(
        jax.tree.leaves((scaled, state)),
        jax.tree.leaves(shardings),
        strict=True,
      ):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), leaf.sharding
      yield scaled, state
