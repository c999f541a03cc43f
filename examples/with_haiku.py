"""Trains a Haiku model: python examples/with_haiku.py."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import sage_optax

VOCAB, WIDTH, HEADS, LENGTH = 64, 32, 4, 16


def model(tokens):
  """Returns logits [B, S, V] of tokens [B, S]."""
  x = hk.Embed(VOCAB, WIDTH)(tokens)
  y = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
  attention = hk.MultiHeadAttention(
    HEADS, WIDTH // HEADS, w_init=hk.initializers.VarianceScaling()
  )
  mask = jnp.tri(tokens.shape[1], dtype=bool)[None, None]
  x = x + attention(y, y, y, mask=mask)
  y = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
  x = x + hk.nets.MLP([4 * WIDTH, WIDTH], activation=jax.nn.gelu)(y)
  return hk.Linear(VOCAB, with_bias=False, name='lm_head')(x)


def main(steps: int = 100) -> list[float]:
  transformed = hk.transform(model)
  example = jnp.zeros((1, LENGTH), jnp.int32)
  params = transformed.init(jax.random.key(0), example)
  preset = sage_optax.layout.HAIKU
  print(sage_optax.explain('sage_hybrid', params, preset=preset))
  schedule = optax.cosine_decay_schedule(1e-2, steps)
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    sage_optax.sage_hybrid(schedule, preset=preset),
  )

  @jax.jit
  def train_step(params, state, tokens):
    def loss_fn(params):
      logits = transformed.apply(params, None, tokens[:, :-1])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:]
      ).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  state, losses = tx.init(params), []
  for key in jax.random.split(jax.random.key(1), steps):
    # Sequences that count: 5, 6, 7, ...
    start = jax.random.randint(key, (16, 1), 0, VOCAB)
    tokens = (start + jnp.arange(LENGTH + 1)[None]) % VOCAB
    params, state, loss = train_step(params, state, tokens)
    losses.append(float(loss))
  print(f'loss {losses[0]:.2f} -> {losses[-1]:.2f}')
  return losses


if __name__ == '__main__':
  main()
