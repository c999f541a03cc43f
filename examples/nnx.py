"""Trains a small Flax NNX model: python examples/nnx.py."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import sage_optax

VOCAB, WIDTH, HEADS, LENGTH = 64, 32, 4, 16


class Block(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.norm1 = nnx.RMSNorm(WIDTH, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      HEADS, WIDTH, use_bias=False, decode=False, rngs=rngs
    )
    self.norm2 = nnx.RMSNorm(WIDTH, rngs=rngs)
    self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
    self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

  def __call__(self, x):
    mask = nnx.make_causal_mask(x[..., 0])
    x = x + self.attention(self.norm1(x), mask=mask)
    return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Model(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
    self.block = Block(rngs)
    self.lm_head = nnx.Linear(WIDTH, VOCAB, use_bias=False, rngs=rngs)

  def __call__(self, tokens):
    return self.lm_head(self.block(self.embed(tokens)))


@nnx.jit
def train_step(model, optimizer, tokens):
  def loss_fn(model):
    logits = model(tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    ).mean()

  loss, grads = nnx.value_and_grad(loss_fn)(model)
  optimizer.update(model, grads)
  return loss


def main(steps: int = 100) -> list[float]:
  model = Model(nnx.Rngs(0))
  # Embedding and head: SAGE. Kernels: SinkGD, without state. Norms: SAGE.
  print(sage_optax.explain('sage_hybrid', nnx.state(model, nnx.Param)))
  schedule = optax.cosine_decay_schedule(1e-2, steps)
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    sage_optax.sage_hybrid(schedule),
  )
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  losses = []
  for key in jax.random.split(jax.random.key(1), steps):
    # Sequences that count: 5, 6, 7, ...
    start = jax.random.randint(key, (16, 1), 0, VOCAB)
    tokens = (start + jnp.arange(LENGTH + 1)[None]) % VOCAB
    losses.append(float(train_step(model, optimizer, tokens)))
  print(f'loss {losses[0]:.2f} -> {losses[-1]:.2f}')
  return losses


if __name__ == '__main__':
  main()
