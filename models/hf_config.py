"""Converts Hugging Face's config.json of a Llama from and to `LlamaConfig`."""

import math
from collections.abc import Mapping
from typing import Any

from models.layers import LlamaConfig
from models.rope import RopeScaling

# Our name -> their name, for fields with the same meaning.
_SAME = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'hidden_size',
  'intermediate_size': 'intermediate_size',
  'num_layers': 'num_hidden_layers',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'rms_norm_eps': 'rms_norm_eps',
}
_ORIGINAL = 'original_max_position_embeddings'
# Fields that need not be integers.
_REAL = (
  'rms_norm_eps', 'rope_theta', 'factor', 'low_freq_factor', 'high_freq_factor',
)  # fmt: skip
# The default values of their optional fields.
_ABSENT = {'num_key_value_heads': None, 'rms_norm_eps': 1e-6}

# Fields that change what the model computes, and their supported values.
_FIXED: dict[str, tuple[Any, ...]] = {
  'model_type': ('llama',),
  'hidden_act': ('silu',),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'attention_dropout': (0, None),
  'quantization_config': (None,),
  'sliding_window': (None,),
  'is_causal': (True,),
  'partial_rotary_factor': (1.0, None),
}


def from_hf(fields: Mapping[str, Any]) -> LlamaConfig:
  """Returns the model that a config.json describes.

  Args:
    fields: The content of config.json, of transformers 4 or 5.

  Returns:
    The configuration; fields about computation have their default values.

  Raises:
    ValueError: A field is missing, or has a value that is not supported; the
      message names it.
  """
  # If both are present, transformers uses the older name.
  rope = fields.get('rope_scaling') or fields.get('rope_parameters') or {}
  if not isinstance(rope, Mapping):
    raise ValueError(f'rope_parameters={rope!r} is not an object')
  for name, allowed in _FIXED.items():
    for value in (where.get(name, allowed[-1]) for where in (fields, rope)):
      if value not in allowed:
        raise ValueError(
          f'{name}={value!r} is not supported: only '
          f'{" or ".join(map(repr, allowed))} is'
        )
  values: dict[str, Any] = {}
  for ours, theirs in _SAME.items():
    absent = theirs in _ABSENT and fields.get(theirs) is None
    values[ours] = _ABSENT[theirs] if absent else _number(fields, theirs)
  head_dim = fields.get('head_dim')
  expected = values['hidden_size'] // values['num_heads']
  if head_dim not in (None, expected):
    raise ValueError(
      f'head_dim={head_dim} is not supported: only hidden_size / '
      f'num_attention_heads = {expected} is'
    )
  theta = rope.get('rope_theta') or fields.get('rope_theta') or 10000.0
  return LlamaConfig(
    **values,
    tie_embeddings=bool(fields.get('tie_word_embeddings', False)),
    rope_theta=_number({'rope_theta': theta}, 'rope_theta'),
    rope_scaling=_scaling_from_hf(rope),
  )


def _number(fields: Mapping[str, Any], name: str) -> Any:
  """A positive number, an integer unless the field is one of _REAL."""
  if name not in fields:
    raise ValueError(f'{name} is missing')
  value = fields[name]
  kinds = (int, float) if name in _REAL else (int,)
  if type(value) not in kinds or not 0 < value < math.inf:
    kind = 'number' if name in _REAL else 'integer'
    raise ValueError(f'{name}={value!r} is not a positive {kind}')
  return value


def to_hf(config: LlamaConfig, max_positions: int) -> dict[str, Any]:
  """Returns the fields of a config.json that transformers 4 and 5 read.

  Args:
    config: The model.
    max_positions: The longest sequence that it was trained on.

  Returns:
    Fields for the model and its positions; the caller adds token ids.
  """
  scaling = _scaling_to_hf(config.rope_scaling)
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    **{theirs: getattr(config, ours) for ours, theirs in _SAME.items()},
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'attention_dropout': 0.0,
    'initializer_range': config.init_std,
    'tie_word_embeddings': config.tie_embeddings,
    'max_position_embeddings': max_positions,
    # transformers 5 reads rope_parameters, 4 the other two.
    'rope_parameters': {'rope_theta': config.rope_theta, **scaling},
    'rope_theta': config.rope_theta,
    'rope_scaling': None if config.rope_scaling is None else scaling,
  }


def _scaling_from_hf(rope: Mapping[str, Any]) -> RopeScaling | None:
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return None
  if kind == 'linear':
    return RopeScaling(_number(rope, 'factor'))
  if kind == 'llama3':
    names = ('factor', 'low_freq_factor', 'high_freq_factor', _ORIGINAL)
    return RopeScaling(*(_number(rope, name) for name in names))
  raise ValueError(
    f'rope_type={kind!r} is not supported: only default, linear and llama3 are'
  )


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any]:
  if scaling is None:
    return {'rope_type': 'default'}
  if scaling.original_positions is None:
    return {'rope_type': 'linear', 'factor': scaling.factor}
  return {
    'rope_type': 'llama3',
    'factor': scaling.factor,
    'low_freq_factor': scaling.low_freq_factor,
    'high_freq_factor': scaling.high_freq_factor,
    _ORIGINAL: scaling.original_positions,
  }
