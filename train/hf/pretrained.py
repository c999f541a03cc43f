"""The weights that a run starts from: checks and reads a directory."""

import pathlib
from typing import Any

import jax

from models import hf, layers
from train import workdir
from train.config import Config
from train.errors import UserError
from train.hf import files

# What a configuration and a config.json must agree on. The rest is how the
# model is computed, and init_std, which imported weights do not use.
_SHARED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_layers',
  'num_heads',
  'kv_heads',
  'tie_embeddings',
  'rope_theta',
  'rope_scaling',
  'rms_norm_eps',
)


def check(config: Config, model: layers.LlamaConfig) -> None:
  """Raises UserError if a run cannot start from the weights that it names.

  A run that has a checkpoint no longer needs them.

  Args:
    config: The configuration of the run.
    model: The model.
  """
  checkpoints = pathlib.Path(config.workdir, workdir.CHECKPOINTS)
  if config.init.path is not None and not workdir.checkpoints(checkpoints):
    check_config(pathlib.Path(config.init.path), model)


def check_config(directory: pathlib.Path, model: layers.LlamaConfig) -> None:
  """Raises UserError unless a directory holds weights of this model."""
  theirs = files.read_config(directory)
  for name in _SHARED:
    want, have = getattr(model, name), getattr(theirs, name)
    if want != have:
      raise UserError(
        f'{directory / files.CONFIG} has {name}={have!r}, and '
        f'config.model has {want!r}: use the configuration that '
        '`python -m train.hf import` writes'
      )


def readers(directory: pathlib.Path, model: layers.LlamaConfig) -> Any:
  """Returns a function per parameter that reads it from a directory.

  Args:
    directory: Holds config.json and safetensors.
    model: What the weights must be of.

  Returns:
    A tree as of `llama.init`, whose leaves return numpy arrays.

  Raises:
    UserError: If the model is another, or tensors are missing or left over;
      also from the functions, where a tensor has another shape.
  """
  check_config(directory, model)
  try:
    found = hf.readers(files.Weights(directory), model)
  except ValueError as error:
    raise UserError(f'{directory}: {error}') from error

  def checked(read):
    def call():
      try:
        return read()
      except ValueError as error:
        raise UserError(f'{directory}: {error}') from error

    return call

  return jax.tree.map(checked, found)
