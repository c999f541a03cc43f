"""Converts parameters from and to Hugging Face's LlamaForCausalLM.

The functions take and return state dicts of numpy arrays, and need neither
torch nor transformers. Kernels are transposed: torch's Linear stores
[fan_out, fan_in].
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import llama

_EMBEDDING = 'model.embed_tokens.weight'
_FINAL_NORM = 'model.norm.weight'
_LM_HEAD = 'lm_head.weight'

# Path under 'layers' -> name under 'model.layers.<i>.'.
_LAYER_NAMES = {
  ('attention_norm', 'scale'): 'input_layernorm.weight',
  ('attention', 'q_proj', 'kernel'): 'self_attn.q_proj.weight',
  ('attention', 'k_proj', 'kernel'): 'self_attn.k_proj.weight',
  ('attention', 'v_proj', 'kernel'): 'self_attn.v_proj.weight',
  ('attention', 'o_proj', 'kernel'): 'self_attn.o_proj.weight',
  ('mlp_norm', 'scale'): 'post_attention_layernorm.weight',
  ('mlp', 'gate_proj', 'kernel'): 'mlp.gate_proj.weight',
  ('mlp', 'up_proj', 'kernel'): 'mlp.up_proj.weight',
  ('mlp', 'down_proj', 'kernel'): 'mlp.down_proj.weight',
}

# Buffers of old checkpoints, computed here from rope_theta.
_IGNORED_SUFFIX = 'rotary_emb.inv_freq'


def from_hf(
  state: Mapping[str, np.ndarray], config: llama.LlamaConfig
) -> llama.Params:
  """Returns the parameters in a state dict of LlamaForCausalLM.

  Args:
    state: Name -> array. The head is optional if the embedding is tied.
    config: The model's configuration.

  Returns:
    A tree like that of `llama.init`, of NumPy arrays with dtype
    config.param_dtype; the caller puts them on devices.

  Raises:
    ValueError: If names are missing or unknown, or a shape does not match the
      configuration.
  """
  return jax.tree.map(lambda read: read(), readers(state, config))


def readers(state: Mapping[str, np.ndarray], config: llama.LlamaConfig) -> Any:
  """Like `from_hf`, but returns functions that read one array each.

  With this, a large model can be put on devices leaf by leaf.

  Args:
    state: Name -> array; it may read arrays from a file on access.
    config: The model's configuration.

  Returns:
    A tree like that of `llama.init` whose leaves are functions without
    arguments that return numpy arrays. Each raises ValueError if the shape does
    not match the configuration.

  Raises:
    ValueError: if names are missing or unknown.
  """
  names = _names(config)
  expected = set(jax.tree.leaves(names))
  allowed = expected | {_LM_HEAD} if config.tie_embeddings else expected
  found = {name for name in state if not name.endswith(_IGNORED_SUFFIX)}
  missing, unknown = sorted(expected - found), sorted(found - allowed)
  if missing or unknown:
    raise ValueError(
      f'the state dict has missing names {missing} and unknown names {unknown}:'
      ' pass the state of a LlamaForCausalLM without biases, and a config with '
      'its num_layers and tie_embeddings'
    )
  if (
    config.tie_embeddings
    and _LM_HEAD in found
    and not np.array_equal(state[_LM_HEAD], state[_EMBEDDING])
  ):
    raise ValueError(
      f'tie_embeddings is set, but {_LM_HEAD} differs from {_EMBEDDING}: '
      'unset it'
    )
  shapes = jax.eval_shape(lambda: llama.init(jax.random.key(0), config))

  def read(shape, names):
    stacked = isinstance(names, list)
    arrays = [_read(state, n, config) for n in (names if stacked else [names])]
    array = np.stack(arrays) if stacked else arrays[0]
    if array.shape != shape.shape:
      raise ValueError(
        f'{names[0] if stacked else names}{" ... stacked" * stacked} has the '
        f'shape {array.shape}, but the config requires {shape.shape}: change '
        'the config'
      )
    return array

  return jax.tree.map(
    lambda shape, names: functools.partial(read, shape, names), shapes, names
  )


def to_hf(
  params: llama.Params, config: llama.LlamaConfig
) -> dict[str, np.ndarray]:
  """Returns the state dict of LlamaForCausalLM that holds these parameters.

  Args:
    params: A tree like that of `llama.init`.
    config: The model's configuration.

  Returns:
    Name -> array, without the head if it is tied.
  """
  state: dict[str, np.ndarray] = {}

  def leaf(array, names):
    array = np.asarray(array)
    if isinstance(names, list):
      state.update(
        (n, _transpose(n, a)) for n, a in zip(names, array, strict=True)
      )
    else:
      state[names] = _transpose(names, array)

  jax.tree.map(leaf, params, _names(config))
  return state


def _names(config: llama.LlamaConfig) -> Any:
  """Returns a tree like init's: a name, or a list with one per layer."""
  layers: dict[str, Any] = {}
  for path, name in _LAYER_NAMES.items():
    node = layers
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = [
      f'model.layers.{i}.{name}' for i in range(config.num_layers)
    ]
  names = {
    'embed': {'embedding': _EMBEDDING},
    'layers': layers,
    'final_norm': {'scale': _FINAL_NORM},
  }
  if not config.tie_embeddings:
    names['lm_head'] = {'kernel': _LM_HEAD}
  return names


def _read(state, name, config):
  return _transpose(name, np.asarray(state[name])).astype(
    jnp.dtype(config.param_dtype)
  )


def _transpose(name: str, array: np.ndarray) -> np.ndarray:
  # Every matrix except the embedding belongs to a Linear layer. Transposing a
  # vector does not change it.
  return array if name == _EMBEDDING else array.T
