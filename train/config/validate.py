"""Checks of a configuration; an error is one line that states what to do."""

import sage_optax
from train.config import fields
from train.config.resolve import learning_rate, mesh_shape, rope_scaling
from train.config.schema import Config
from train.errors import UserError


def validate(config: Config, num_devices: int | None = None) -> None:
  """Raises UserError if the configuration cannot be run.

  Args:
    config: The configuration.
    num_devices: The number of devices; None skips the checks of the mesh that
      need it.
  """
  fields.check(config)
  _check_schedule(config)
  _check_model(config)
  _check_tables(config)
  learning_rate(config)  # Raises if there is none.
  _check_batch(config)
  if num_devices is not None:
    check_mesh(config, mesh_shape(config, num_devices))


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
        f'that share a batch (data {data} x fsdp {fsdp}): use a multiple of '
        f'{data * fsdp}, or set config.mesh.tensor or fewer devices'
      )


def _check_schedule(config: Config) -> None:
  wsd = config.schedule.warmup_fraction + config.schedule.decay_fraction
  if config.schedule.kind == 'wsd' and wsd > 1:
    raise UserError(
      'config.schedule.warmup_fraction and decay_fraction add up to '
      f'{wsd:g}: give at most 1 in total'
    )


def _check_model(config: Config) -> None:
  model = config.model
  heads, kv_heads = model.num_heads, model.num_kv_heads or model.num_heads
  if model.hidden_size % (2 * heads):
    raise UserError(
      f'config.model.hidden_size={model.hidden_size} does not split into '
      f'num_heads={heads} heads of an even size: use a multiple of {2 * heads}'
    )
  if heads % kv_heads:
    raise UserError(
      f'config.model.num_heads={heads} is not a multiple of '
      f'num_kv_heads={kv_heads}'
    )
  rope_scaling(model)  # Raises if its fields are inconsistent.


def _check_tables(config: Config) -> None:
  """Raises UserError if a dictionary has an entry of an unknown recipe."""
  for name in ('learning_rates', 'matrix_lr_scales', 'b2s'):
    for recipe in getattr(config.optimizer, name):
      if recipe not in sage_optax.recipe_names():
        raise UserError(
          f'config.optimizer.{name} has an entry {fields.show(recipe)}, which '
          f'is no recipe: use {", ".join(sage_optax.recipe_names())}'
        )


def _check_batch(config: Config) -> None:
  batch_size, microbatch = config.train.batch_size, config.train.microbatch
  if microbatch and batch_size % microbatch:
    raise UserError(
      f'config.train.batch_size={batch_size} is not a multiple of '
      f'config.train.microbatch={microbatch}: change one of them'
    )
