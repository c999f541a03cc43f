"""LoRA on frozen kernels, by optax.partition: python examples/lora.py."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import sage_optax

VOCAB, WIDTH, RANK = 64, 32, 4


class Model(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(VOCAB, WIDTH, name='embed')(tokens)
    y = nn.gelu(nn.Dense(4 * WIDTH, name='up')(x))
    x = x + nn.Dense(WIDTH, name='down')(y)
    return nn.Dense(VOCAB, use_bias=False, name='lm_head')(x)


def add_adapters(params, key):
  """Returns {'base': params, 'lora': a tree with lora_a, lora_b per kernel}."""
  keys = iter(jax.random.split(key, len(jax.tree.leaves(params))))

  def adapter(path, kernel):
    if path[-1].key != 'kernel':
      return None
    a = nn.initializers.lecun_normal()(next(keys), (len(kernel), RANK))
    return {'lora_a': a, 'lora_b': jnp.zeros((RANK, kernel.shape[1]))}

  lora = jax.tree_util.tree_map_with_path(adapter, params)
  return {'base': params, 'lora': lora}


def merge(weights):
  """Returns the parameters with the products added."""

  def add(param, ab):
    return param if ab is None else param + ab['lora_a'] @ ab['lora_b']

  return jax.tree.map(add, weights['base'], weights['lora'])


def main(steps: int = 100) -> list[float]:
  model = Model()
  params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))['params']
  weights = add_adapters(params, jax.random.key(1))
  print(sage_optax.explain('sage_hybrid', weights['lora']))
  tx = optax.partition(
    {'train': sage_optax.sage_hybrid(1e-2), 'freeze': optax.set_to_zero()},
    {'base': 'freeze', 'lora': 'train'},
  )

  @jax.jit
  def train_step(weights, state, tokens):
    def loss_fn(weights):
      logits = model.apply({'params': merge(weights)}, tokens[:, :-1])
      cross_entropy = optax.softmax_cross_entropy_with_integer_labels
      return cross_entropy(logits, tokens[:, 1:]).mean()

    # The gradients of 'base' are not used, so they are not computed.
    loss, grads = jax.value_and_grad(loss_fn)(weights)
    updates, state = tx.update(grads, state, weights)
    return optax.apply_updates(weights, updates), state, loss

  state, losses = tx.init(weights), []
  for key in jax.random.split(jax.random.key(2), steps):
    start = jax.random.randint(key, (16, 1), 0, VOCAB)
    tokens = (start + jnp.arange(17)[None]) % VOCAB
    weights, state, loss = train_step(weights, state, tokens)
    losses.append(float(loss))
  print(f'loss {losses[0]:.2f} -> {losses[-1]:.2f}')
  return losses


if __name__ == '__main__':
  main()
