"""Resolves the values None, 'auto' and -1 of a configuration."""

import os
from typing import Any

from models import llama, rope
from train.config.schema import Config, ModelConfig
from train.errors import UserError

# The meaning of 'auto', and the platform of attentions that support only one.
_ATTENTION = {'cpu': 'chunked', 'gpu': 'dot_product', 'tpu': 'splash'}
_ATTENTION_PLATFORM = {'cudnn': 'gpu', 'splash': 'tpu'}


def complete(config: Config) -> None:
  """Fills in the fields whose default is computed from others, in place."""
  paths: tuple[tuple[Any, str], ...] = (
    (config, 'workdir'),
    (config.init, 'path'),
    (config.data, 'path'),
    (config.data, 'tokenizer'),
    (config.log, 'compilation_cache'),
  )
  # Shells leave the tilde in --config.workdir=~/runs/mine.
  for section, name in paths:
    if path := getattr(section, name):
      setattr(section, name, os.path.expanduser(path))
  if not config.workdir:
    config.workdir = f'runs/{config.name}'
  if not config.eval.batch_size:
    config.eval.batch_size = config.train.microbatch or config.train.batch_size
  # A trial of two steps must not end with an evaluation of an hour.
  trained = config.train.steps * config.train.batch_size
  config.eval.max_windows = min(config.eval.max_windows or trained, trained)


def learning_rate(config: Config) -> float:
  """Returns the peak learning rate of the recipe; raises UserError if none."""
  options = config.optimizer
  if options.learning_rate is not None:
    return options.learning_rate
  if options.recipe not in options.learning_rates:
    raise UserError(
      f'no learning rate is known for the recipe {options.recipe!r} in the '
      f'configuration {config.name!r}: give --config.optimizer.learning_rate='
    )
  return options.learning_rates[options.recipe]


def mesh_shape(config: Config, num_devices: int) -> tuple[int, int, int]:
  """Returns the sizes of data, fsdp and tensor, -1 replaced by the rest."""
  sizes = [config.mesh.data, config.mesh.fsdp, config.mesh.tensor]
  given = 1
  for size in sizes:
    if size != -1 and size < 1:
      raise UserError(
        f'config.mesh.data, fsdp, tensor are {sizes}: each must be a number '
        'of devices, or -1 (one of them) for the rest'
      )
    given *= 1 if size == -1 else size
  if sizes.count(-1) > 1:
    raise UserError(f'config.mesh has more than one -1: {sizes}; keep one')
  if num_devices % given or (-1 not in sizes and given != num_devices):
    raise UserError(
      f'config.mesh requires data x fsdp x tensor = {sizes}, but there are '
      f'{num_devices} devices: make the product {num_devices}, or set one '
      'axis to -1'
    )
  data, fsdp, tensor = (num_devices // given if s == -1 else s for s in sizes)
  return data, fsdp, tensor


def model_config(config: Config, platform: str) -> llama.LlamaConfig:
  """Returns the model of a configuration, for a platform.

  Args:
    config: The configuration.
    platform: Where the model will run: 'cpu', 'gpu' or 'tpu'.

  Raises:
    UserError: If the platform or the type does not support the attention.
  """
  default = 'float32' if platform == 'cpu' else 'bfloat16'
  dtype = config.train.dtype or default
  model = config.model
  attention = model.attention
  if attention == 'auto':
    attention = _ATTENTION[platform]
  if _ATTENTION_PLATFORM.get(attention, platform) != platform:
    raise UserError(
      f'config.model.attention={attention!r} needs a '
      f'{_ATTENTION_PLATFORM[attention].upper()}, but the platform is '
      f'{platform.upper()}: set it to auto'
    )
  if attention == 'cudnn' and dtype != 'bfloat16':
    raise UserError(
      f"config.model.attention='cudnn' computes in bfloat16, but "
      f'config.train.dtype is {dtype}: change one'
    )
  return llama.LlamaConfig(
    vocab_size=model.vocab_size,
    hidden_size=model.hidden_size,
    intermediate_size=model.intermediate_size,
    num_layers=model.num_layers,
    num_heads=model.num_heads,
    num_kv_heads=model.num_kv_heads,
    tie_embeddings=model.tie_embeddings,
    rope_theta=model.rope_theta,
    rope_scaling=rope_scaling(model),
    rms_norm_eps=model.rms_norm_eps,
    init_std=model.init_std,
    compute_dtype=dtype,
    param_dtype='float64' if dtype == 'float64' else 'float32',
    attention=attention,
    remat=model.remat,
    platform=platform,
  )


def rope_scaling(model: ModelConfig) -> rope.RopeScaling | None:
  """Returns the scaling of the rotary frequencies; raises UserError."""
  rest = (
    model.rope_low_freq_factor,
    model.rope_high_freq_factor,
    model.rope_original_positions,
  )
  if model.rope_factor is None:
    if any(value is not None for value in rest):
      raise UserError(
        'config.model.rope_low_freq_factor, rope_high_freq_factor and '
        'rope_original_positions need config.model.rope_factor'
      )
    return None
  try:
    return rope.RopeScaling(model.rope_factor, *rest)
  except ValueError as error:
    raise UserError(f'config.model.rope_*: {error}') from error
