"""The optimizer for MaxText: python examples/maxtext_factory.py.

MaxText calls `get_optimizer(config, learning_rate_schedule, model)` of its
module `optimizers`. Call `sage_optimizer` there if `config.opt_type` is 'sage'.
"""

import types

import jax
import jax.numpy as jnp
import optax

import sage_optax


def sage_optimizer(config, learning_rate_schedule):
  """Returns SAGE on embedding, head and norms, SinkGD on the kernels."""
  return sage_optax.sage_hybrid(
    learning_rate_schedule,
    b1=config.adam_b1,
    weight_decay=config.adam_weight_decay,
    preset=sage_optax.layout.MAXTEXT,  # Scanned layers are axis 1.
  )


def params(embed=64, layers=4, heads=4, head_dim=16, mlp=128, vocab=256):
  """Parameters with the names and axes of MaxText's Llama."""
  shapes = {
    'token_embedder': {'embedding': (vocab, embed)},
    'decoder': {
      'layers': {
        'pre_self_attention_layer_norm': {'scale': (embed, layers)},
        'self_attention': {
          'query': {'kernel': (embed, layers, heads, head_dim)},
          'key': {'kernel': (embed, layers, heads, head_dim)},
          'value': {'kernel': (embed, layers, heads, head_dim)},
          'out': {'kernel': (heads, layers, head_dim, embed)},
        },
        'post_self_attention_layer_norm': {'scale': (embed, layers)},
        'mlp': {
          'wi_0': {'kernel': (embed, layers, mlp)},
          'wi_1': {'kernel': (embed, layers, mlp)},
          'wo': {'kernel': (mlp, layers, embed)},
        },
      },
      'decoder_norm': {'scale': (embed,)},
      'logits_dense': {'kernel': (embed, vocab)},
    },
  }
  return jax.tree.map(
    jnp.ones, shapes, is_leaf=lambda shape: isinstance(shape, tuple)
  )


def main(steps: int = 10) -> list[float]:
  config = types.SimpleNamespace(adam_b1=0.9, adam_weight_decay=0.1)
  schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, 2, steps)
  tx = sage_optimizer(config, schedule)
  weights = {'params': params()}
  preset = sage_optax.layout.MAXTEXT
  options = {'preset': preset, 'weight_decay': config.adam_weight_decay}
  print(sage_optax.explain('sage_hybrid', weights, **options))
  state = tx.init(weights)

  @jax.jit
  def train_step(weights, state):
    loss, grads = jax.value_and_grad(optax.tree.norm)(weights)
    updates, state = tx.update(grads, state, weights)
    return optax.apply_updates(weights, updates), state, loss

  losses = []
  for _ in range(steps):
    weights, state, loss = train_step(weights, state)
    losses.append(float(loss))
  print(f'norm of the weights {losses[0]:.3f} -> {losses[-1]:.3f}')
  return losses


if __name__ == '__main__':
  main()
