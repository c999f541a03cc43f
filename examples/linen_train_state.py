"""Trains a Flax Linen model: python examples/linen_train_state.py."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

import sage_optax

VOCAB, WIDTH, HEADS, LENGTH = 64, 32, 4, 16


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    mask = nn.make_causal_mask(x[..., 0])
    y = nn.RMSNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(HEADS, use_bias=False)(y, mask=mask)
    y = nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))
    return x + nn.Dense(WIDTH)(nn.gelu(y))


class Model(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(VOCAB, WIDTH)(tokens)
    x = nn.RMSNorm()(Block()(x))
    return nn.Dense(VOCAB, use_bias=False, name='lm_head')(x)


@jax.jit
def train_step(state, tokens):
  def loss_fn(params):
    logits = state.apply_fn({'params': params}, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    ).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=grads), loss


def main(steps: int = 100) -> list[float]:
  model = Model()
  example = jnp.zeros((1, LENGTH), jnp.int32)
  params = model.init(jax.random.key(0), example)['params']
  # The query kernel [embed, heads, head_dim] is a matrix [embed, heads x dim].
  print(sage_optax.explain('sage_hybrid', params))
  schedule = optax.cosine_decay_schedule(1e-2, steps)
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    sage_optax.sage_hybrid(schedule),
  )
  state = train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=tx
  )
  losses = []
  for key in jax.random.split(jax.random.key(1), steps):
    # Sequences that count: 5, 6, 7, ...
    start = jax.random.randint(key, (16, 1), 0, VOCAB)
    tokens = (start + jnp.arange(LENGTH + 1)[None]) % VOCAB
    state, loss = train_step(state, tokens)
    losses.append(float(loss))
  print(f'loss {losses[0]:.2f} -> {losses[-1]:.2f}')
  return losses


if __name__ == '__main__':
  main()
