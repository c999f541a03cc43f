"""A step on 8 devices: JAX_PLATFORMS=cpu python examples/sharded_step.py."""

import os

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sage_optax

VOCAB, WIDTH, HIDDEN, LAYERS = 512, 64, 256, 4
PARAMS = {
  'embed': {'embedding': jnp.zeros((VOCAB, WIDTH))},
  'layers': {
    'norm': {'scale': jnp.zeros((LAYERS, WIDTH))},
    'up': {'kernel': jnp.zeros((LAYERS, WIDTH, HIDDEN))},
    'down': {'kernel': jnp.zeros((LAYERS, HIDDEN, WIDTH))},
  },
}
SPECS = {
  'embed': {'embedding': P('tensor', 'fsdp')},
  'layers': {
    'norm': {'scale': P(None, 'fsdp')},
    'up': {'kernel': P(None, 'fsdp', 'tensor')},
    'down': {'kernel': P(None, 'tensor', 'fsdp')},
  },
}


def loss_fn(params, tokens):
  def layer(x, p):
    y = jax.nn.standardize(x) * p['norm']['scale']
    return x + jax.nn.gelu(y @ p['up']['kernel']) @ p['down']['kernel'], None

  table = params['embed']['embedding']
  x, _ = jax.lax.scan(layer, table[tokens[:, :-1]], params['layers'])
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels
  return cross_entropy(x @ table.T, tokens[:, 1:]).mean()


def main(steps: int = 50) -> list[float]:
  mesh = jax.make_mesh((4, 2), ('fsdp', 'tensor'), (AxisType.Auto,) * 2)
  print(sage_optax.explain('sage_hybrid', PARAMS, param_specs=SPECS, mesh=mesh))
  tx = sage_optax.sage_hybrid(1e-2)
  # The state's axes are sharded as the axes of the parameters.
  state_specs = sage_optax.sharding.state_specs(tx, PARAMS, SPECS, mesh.shape)
  # For Muon, which needs whole matrices, each device takes some of the layers.
  tx = sage_optax.sharding.with_mesh(tx, mesh, SPECS)

  def init(key):
    params = optax.tree.scale(0.1, optax.tree.random_like(key, PARAMS))
    return params, tx.init(params)

  def train_step(params, state, tokens):
    loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  out = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), (SPECS, state_specs, P())
  )
  step_fn = jax.jit(train_step, donate_argnums=(0, 1), out_shardings=out)
  params, state = jax.jit(init, out_shardings=out[:2])(jax.random.key(0))
  losses = []
  for key in jax.random.split(jax.random.key(1), steps):
    start = jax.random.randint(key, (16, 1), 0, VOCAB)
    tokens = (start + jnp.arange(17)[None]) % VOCAB  # They count: 5, 6, 7, ...
    tokens = jax.device_put(tokens, NamedSharding(mesh, P('fsdp')))
    params, state, loss = step_fn(params, state, tokens)
    losses.append(float(loss))
  print(f'loss {losses[0]:.2f} -> {losses[-1]:.2f}')
  return losses


if __name__ == '__main__':
  main()
