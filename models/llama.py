"""Llama, as Hugging Face's LlamaForCausalLM computes it.

Parameters are a nested dict of arrays; the layers are stacked on axis 0 and
run by a scan. Flax NNX modules stay inside `models.layers`.
"""

import functools
import math

import jax
import jax.numpy as jnp

from models import cross_entropy, layers
from models import rope as rope_lib
from models.layers import Constrain, LlamaConfig, Params

__all__ = [
  'Constrain',
  'LlamaConfig',
  'Params',
  'apply',
  'flops_per_token',
  'init',
  'logical_axes',
  'loss',
  'num_params',
  'token_losses',
]


def init(key: jax.Array, config: LlamaConfig) -> Params:
  """Returns fresh parameters: normal matrices, norm scales of one.

  Args:
    key: A PRNG key.
    config: The model.

  Returns:
    A nested dict. Kernels are [fan_in, fan_out]; the leaves under 'layers'
    have a leading axis of num_layers.
  """
  embed_key, layers_key, norm_key, head_key = jax.random.split(key, 4)
  normal = jax.nn.initializers.normal(config.init_std, config.param_dtype)
  table_shape = (config.vocab_size, config.hidden_size)
  params = {
    'embed': {'embedding': normal(embed_key, table_shape)},
    'layers': jax.vmap(lambda key: layers.init(layers.Block, key, config))(
      jax.random.split(layers_key, config.num_layers)
    ),
    'final_norm': layers.init(layers.RMSNorm, norm_key, config),
  }
  if not config.tie_embeddings:
    params['lm_head'] = {'kernel': normal(head_key, table_shape[::-1])}
  return params


def apply(
  params: Params,
  tokens: jax.Array,
  config: LlamaConfig,
  *,
  constrain: Constrain = lambda x, axes: x,
) -> jax.Array:
  """Returns the logits of the next token at every position.

  Args:
    params: A tree from `init`.
    tokens: Token ids [B, S].
    config: The model.
    constrain: Shards an activation. It is called with every large activation
      and a tuple of its axis names ('batch', 'sequence', 'embed', 'heads',
      'kv_heads', 'mlp', 'vocab', or None for an axis that is never sharded),
      and returns the activation. The axes of freshly looked-up embedding rows
      are 'lookup_batch' and 'lookup_embed'.

  Returns:
    Logits [B, S, V], float32 or wider.
  """
  head, hidden, table = _forward(params, tokens, config, constrain)
  return head.logits(hidden, table)


def loss(
  params: Params,
  tokens: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  config: LlamaConfig,
  *,
  constrain: Constrain = lambda x, axes: x,
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted loss and the weights, both summed over all tokens.

  Args:
    params: A tree from `init`.
    tokens: Token ids [B, S].
    targets: The tokens that follow [B, S].
    weights: Weights of the targets [B, S].
    config: The model.
    constrain: See `apply`.

  Returns:
    The sum of weight times negative log-likelihood in nats, and the sum of
    weights, scalars, float32 or wider.
  """
  head, hidden, table = _forward(params, tokens, config, constrain)
  weights = weights.astype(config.wide_dtype)
  total = cross_entropy.weighted_loss(head, hidden, table, targets, weights)
  return total, jnp.sum(weights)


def token_losses(
  params: Params,
  tokens: jax.Array,
  targets: jax.Array,
  config: LlamaConfig,
  *,
  constrain: Constrain = lambda x, axes: x,
) -> jax.Array:
  """Returns the negative log-likelihood of each target, for evaluation.

  Args:
    params: A tree from `init`.
    tokens: Token ids [B, S].
    targets: The tokens that follow [B, S].
    config: The model.
    constrain: See `apply`.

  Returns:
    Nats [B, S], float32 or wider.
  """
  head, hidden, table = _forward(params, tokens, config, constrain)
  return cross_entropy.token_losses(head, hidden, table, targets)


def logical_axes(config: LlamaConfig) -> Params:
  """Returns a tree like `init`'s whose leaves are tuples of axis names."""
  axes: Params = {
    'embed': {'embedding': ('vocab', 'embed')},
    'layers': {
      'attention_norm': {'scale': ('layers', 'embed')},
      'attention': {
        'q_proj': {'kernel': ('layers', 'embed', 'heads')},
        'k_proj': {'kernel': ('layers', 'embed', 'kv_heads')},
        'v_proj': {'kernel': ('layers', 'embed', 'kv_heads')},
        'o_proj': {'kernel': ('layers', 'heads', 'embed')},
      },
      'mlp_norm': {'scale': ('layers', 'embed')},
      'mlp': {
        'gate_proj': {'kernel': ('layers', 'embed', 'mlp')},
        'up_proj': {'kernel': ('layers', 'embed', 'mlp')},
        'down_proj': {'kernel': ('layers', 'mlp', 'embed')},
      },
    },
    'final_norm': {'scale': ('embed',)},
  }
  if not config.tie_embeddings:
    axes['lm_head'] = {'kernel': ('embed', 'vocab')}
  return axes


def num_params(config: LlamaConfig) -> int:
  """Returns the number of parameters."""
  shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def flops_per_token(config: LlamaConfig, seq_len: int) -> float:
  r"""Returns the floating-point operations to train on one token.

  .. math::  6 N + 12 L S D

  with N parameters, L layers, sequences of S tokens and width D. An untied
  embedding is only looked up and does not count in N. The formula counts two
  operations per multiply-add and three products with each matrix (one forward,
  two backward), and the same for attention without discounting the causal
  half. Recomputation does not count. This is the convention of Chowdhery et
  al., PaLM, arXiv 2204.02311, appendix B.
  """
  matmul_params = num_params(config)
  if not config.tie_embeddings:
    matmul_params -= config.vocab_size * config.hidden_size
  attention_size = config.num_layers * seq_len * config.hidden_size
  return 6.0 * matmul_params + 12.0 * attention_size


def _forward(params, tokens, config, constrain):
  """Returns the head, the normalized hidden states, and the head's table."""
  # Gather before casting: the gradients of a token's occurrences are then
  # summed in the type of the table, not in the narrower compute type.
  embedding = jnp.asarray(params['embed']['embedding'])
  x = jnp.take(embedding, tokens, axis=0).astype(config.compute_dtype)
  # Keep the sharding of the table here, so that its rows are not gathered.
  x = constrain(x, ('lookup_batch', 'sequence', 'lookup_embed'))
  x = constrain(x, layers.RESIDUAL)
  rope = rope_lib.tables(
    tokens.shape[1],
    config.head_dim,
    config.rope_theta,
    config.wide_dtype,
    config.rope_scaling,
  )

  def body(x, layer):
    block = layers.bind(layers.Block, layer, config)
    return block(x, rope, constrain), None

  x, _ = jax.lax.scan(_remat(body, config.remat), x, params['layers'])
  norm = layers.bind(layers.RMSNorm, params['final_norm'], config)
  head = cross_entropy.Head(config.tie_embeddings, config.loss_chunk, constrain)
  table = embedding if head.tied else params['lm_head']['kernel']
  return head, norm(x), table


def _remat(body, mode: str):
  # A scan already prevents the merging that prevent_cse guards against.
  checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)
  if mode == 'dots':
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return checkpoint(body, policy=policy)
  return checkpoint(body) if mode == 'full' else body
