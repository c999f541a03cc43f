"""Checks of a configuration, each with one line that says what to do."""

import dataclasses
import math
import typing
from typing import Any

import sage_optax
from train.errors import UserError
from train.schema import Config

_CHOICES = {
  'data.source': ('bundled', 'shards'),
  'model.remat': ('none', 'dots', 'full'),
  'model.attention': ('auto', 'chunked', 'dot_product', 'cudnn', 'splash'),
  'schedule.kind': ('cosine', 'linear', 'wsd', 'constant'),
  'train.platform': ('auto', 'cpu', 'gpu', 'tpu'),
  'train.dtype': (None, 'float32', 'bfloat16', 'float64'),
  'optimizer.projector': (None, 'gaussian', 'svd', 'subspace'),
  'optimizer.state_dtype': (None, 'float32', 'bfloat16'),
}

_AT_LEAST = {
  'model.vocab_size': 2,
  'model.hidden_size': 1,
  'model.intermediate_size': 1,
  'model.num_layers': 1,
  'model.num_heads': 1,
  'model.num_kv_heads': 1,
  'data.vocab_size': 257,
  'data.max_mb': 0.01,
  'data.seed': 0,
  'train.seed': 0,
  'train.steps': 1,
  'train.batch_size': 1,
  'train.seq_len': 1,
  'train.microbatch': 1,
  'optimizer.weight_decay': 0,
  'optimizer.num_iters': 1,
  'optimizer.ns_steps': 1,
  'optimizer.rank': 1,
  'optimizer.update_proj_gap': 1,
  'optimizer.reset_interval': 1,
  **{f'optimizer.{role}.lr_scale': 0 for role in sage_optax.roles.ROLES},
  **{f'optimizer.{role}.weight_decay': 0 for role in sage_optax.roles.ROLES},
  'eval.every': 0,
  'eval.max_windows': 1,
  'eval.batch_size': 0,
  'checkpoint.every': 1,
  'checkpoint.keep': 1,
  'log.every': 1,
  'log.profile_start': 0,
  'log.profile_steps': 0,
}

# JAX's and Grain's seeds, and counters, are 32 bits wide.
_AT_MOST = {
  'data.seed': 2**32 - 1,
  'train.seed': 2**31 - 1,
  'train.steps': 2**31 - 1,
}

_MORE_THAN_ZERO = (
  'model.rope_theta',
  'model.rms_norm_eps',
  'model.init_std',
  'train.grad_clip',
  'optimizer.learning_rate',
  'optimizer.eps',
)

_DECAY_RATES = ('optimizer.b1', 'optimizer.b2', 'optimizer.momentum')

_FRACTIONS = (
  'schedule.warmup_fraction',
  'schedule.final_fraction',
  'schedule.decay_fraction',
)


def get(config: Config, path: str) -> Any:
  """Returns the field at a dotted path."""
  value: Any = config
  for name in path.split('.'):
    value = getattr(value, name)
  return value


def validate(config: Config, num_devices: int | None = None) -> None:
  """Raises UserError if the configuration cannot be run.

  Args:
    config: The configuration.
    num_devices: The number of devices; None leaves out the checks of the mesh
      that need it.
  """
  _check_types(config, '')
  _check_values(config)
  _check_model(config)
  _check_optimizer(config)
  _check_batch(config)
  if num_devices is not None:
    check_mesh(config, mesh_shape(config, num_devices))


def complete(config: Config) -> None:
  """Fills, in place, the fields whose default is computed from others."""
  if not config.workdir:
    config.workdir = f'runs/{config.name}'
  if not config.eval.batch_size:
    config.eval.batch_size = config.train.microbatch or config.train.batch_size
  # A trial of two steps must not end in an evaluation of an hour.
  trained = config.train.steps * config.train.batch_size
  config.eval.max_windows = min(config.eval.max_windows or trained, trained)


def learning_rate(config: Config) -> float:
  """Returns the peak learning rate of the chosen recipe."""
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
      f'config.mesh asks for data x fsdp x tensor = {sizes}, and there are '
      f'{num_devices} devices: make the product {num_devices}, or set one '
      'axis to -1'
    )
  data, fsdp, tensor = (num_devices // given if s == -1 else s for s in sizes)
  return data, fsdp, tensor


def check_mesh(config: Config, shape: tuple[int, int, int]) -> None:
  """Raises UserError if the mesh does not divide a batch."""
  data, fsdp, _ = shape
  rows = {
    'train.microbatch': config.train.microbatch,
    'train.batch_size': config.train.batch_size,
    'eval.batch_size': config.eval.batch_size,
  }
  for path, size in rows.items():
    if size and size % (data * fsdp):
      raise UserError(
        f'config.{path}={size} is not divisible by the {data * fsdp} devices '
        f'that share a batch (data {data} x fsdp {fsdp}): take a multiple of '
        f'{data * fsdp}, or set config.mesh.tensor or fewer devices'
      )


def _check_types(section: Any, prefix: str) -> None:
  for name, annotation in typing.get_type_hints(type(section)).items():
    value, path = getattr(section, name), f'{prefix}{name}'
    if dataclasses.is_dataclass(annotation):
      if not isinstance(value, typing.cast(type, annotation)):
        raise UserError(f'config.{path} is {value!r}, not a section of fields')
      _check_types(value, f'{path}.')
    elif typing.get_origin(annotation) is dict:
      if not isinstance(value, dict):
        raise UserError(f'config.{path} is {value!r}: give a dictionary')
      for key, item in value.items():
        _check_type(item, (float,), f'{path}.{key}')
    else:
      kinds = typing.get_args(annotation) or (annotation,)
      _check_type(value, kinds, path)


def _check_type(value: Any, kinds: tuple[type, ...], path: str) -> None:
  allowed = {*kinds, int} if float in kinds else set(kinds)
  if type(value) not in allowed:
    names = ' or '.join(
      'none' if kind is type(None) else kind.__name__ for kind in kinds
    )
    raise UserError(f'config.{path} is {value!r}: give {names}')
  if isinstance(value, float) and not math.isfinite(value):
    raise UserError(f'config.{path} is {value!r}: give a finite number')


def _check_values(config: Config) -> None:
  for path, choices in _CHOICES.items():
    if get(config, path) not in choices:
      known = ', '.join(repr(choice) for choice in choices if choice)
      raise UserError(f'config.{path} is {get(config, path)!r}: give {known}')
  for path, least in _AT_LEAST.items():
    value = get(config, path)
    if value is not None and not value >= least:
      raise UserError(f'config.{path} is {value}: give at least {least}')
  for path, most in _AT_MOST.items():
    if get(config, path) > most:
      raise UserError(
        f'config.{path} is {get(config, path)}: give at most {most}'
      )
  for path in _DECAY_RATES:
    value = get(config, path)
    if value is not None and not 0 <= value < 1:
      raise UserError(f'config.{path} is {value}: give 0 or more, less than 1')
  for path in _MORE_THAN_ZERO:
    value = get(config, path)
    if value is not None and not value > 0:
      raise UserError(f'config.{path} is {value}: give more than 0')
  for path in _FRACTIONS:
    if not 0 <= get(config, path) <= 1:
      raise UserError(f'config.{path} is {get(config, path)}: give 0 to 1')
  wsd = config.schedule.warmup_fraction + config.schedule.decay_fraction
  if config.schedule.kind == 'wsd' and wsd > 1:
    raise UserError(
      'config.schedule.warmup_fraction and decay_fraction add up to '
      f'{wsd:g}: give at most 1 together'
    )


def _check_model(config: Config) -> None:
  model = config.model
  heads, kv_heads = model.num_heads, model.num_kv_heads or model.num_heads
  if model.hidden_size % (2 * heads):
    raise UserError(
      f'config.model.hidden_size={model.hidden_size} does not split into '
      f'num_heads={heads} heads of an even size: take a multiple of {2 * heads}'
    )
  if heads % kv_heads:
    raise UserError(
      f'config.model.num_heads={heads} is not a multiple of '
      f'num_kv_heads={kv_heads}'
    )


def _check_optimizer(config: Config) -> None:
  known = sage_optax.recipe_names()
  if config.optimizer.recipe not in known:
    raise UserError(
      f'config.optimizer.recipe is {config.optimizer.recipe!r}: '
      f'give one of {", ".join(known)}'
    )
  if not learning_rate(config) > 0:
    raise UserError(
      f'the learning rate is {learning_rate(config)}: give more than 0'
    )


def _check_batch(config: Config) -> None:
  batch_size, microbatch = config.train.batch_size, config.train.microbatch
  if microbatch and batch_size % microbatch:
    raise UserError(
      f'config.train.batch_size={batch_size} is not a multiple of '
      f'config.train.microbatch={microbatch}: change one of them'
    )
