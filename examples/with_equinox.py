"""Trains an Equinox model: python examples/with_equinox.py."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import sage_optax

VOCAB, WIDTH, LENGTH = 64, 32, 16


class Block(eqx.Module):
  attention: eqx.nn.MultiheadAttention
  mlp: eqx.nn.MLP
  norm1: eqx.nn.RMSNorm
  norm2: eqx.nn.RMSNorm

  def __init__(self, key):
    keys = jax.random.split(key)
    self.attention = eqx.nn.MultiheadAttention(4, WIDTH, key=keys[0])
    self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 4 * WIDTH, depth=1, key=keys[1])
    self.norm1, self.norm2 = eqx.nn.RMSNorm(WIDTH), eqx.nn.RMSNorm(WIDTH)

  def __call__(self, x):
    y = jax.vmap(self.norm1)(x)
    mask = jnp.tri(len(x), dtype=bool)
    x = x + self.attention(y, y, y, mask)
    return x + jax.vmap(self.mlp)(jax.vmap(self.norm2)(x))


class Model(eqx.Module):
  embedding: eqx.nn.Embedding
  block: Block
  lm_head: eqx.nn.Linear

  def __init__(self, key):
    keys = jax.random.split(key, 3)
    self.embedding = eqx.nn.Embedding(VOCAB, WIDTH, key=keys[0])
    self.block = Block(keys[1])
    self.lm_head = eqx.nn.Linear(WIDTH, VOCAB, use_bias=False, key=keys[2])

  def __call__(self, tokens):
    return jax.vmap(self.lm_head)(self.block(jax.vmap(self.embedding)(tokens)))


def main(steps: int = 100) -> list[float]:
  model = Model(jax.random.key(0))
  params = eqx.filter(model, eqx.is_inexact_array)
  preset = sage_optax.layout.EQUINOX  # Weights are [out, in].
  print(sage_optax.explain('sage_hybrid', params, preset=preset))
  schedule = optax.cosine_decay_schedule(1e-2, steps)
  tx = sage_optax.sage_hybrid(schedule, preset=preset)

  @eqx.filter_jit
  def train_step(model, state, tokens):
    @eqx.filter_value_and_grad
    def loss_fn(model):
      logits = jax.vmap(model)(tokens[:, :-1])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:]
      ).mean()

    loss, grads = loss_fn(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = tx.update(grads, state, params)
    return eqx.apply_updates(model, updates), state, loss

  state, losses = tx.init(params), []
  for key in jax.random.split(jax.random.key(1), steps):
    start = jax.random.randint(key, (16, 1), 0, VOCAB)
    tokens = (start + jnp.arange(LENGTH + 1)[None]) % VOCAB  # They count.
    model, state, loss = train_step(model, state, tokens)
    losses.append(float(loss))
  print(f'loss {losses[0]:.2f} -> {losses[-1]:.2f}')
  return losses


if __name__ == '__main__':
  main()
