"""Checks and reads the pretrained weights that a run starts from."""

import pathlib
from typing import Any

import jax
import numpy as np

from models import hf, layers, llama
from train import workdir
from train.config import Config
from train.errors import UserError
from train.hf import files

# Fields in which a configuration and a config.json must agree. The others
# describe how the model is computed, or are not used with imported weights
# (init_std).
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
  """Raises UserError if a run cannot start from its `config.init.path`.

  A run that has a checkpoint no longer needs these weights.

  Args:
    config: The configuration of the run.
    model: The model.
  """
  checkpoints = pathlib.Path(config.workdir, workdir.CHECKPOINTS)
  if config.init.path is not None and not workdir.checkpoints(checkpoints):
    readers(pathlib.Path(config.init.path), model)


def readers(directory: pathlib.Path, model: layers.LlamaConfig) -> Any:
  """Returns a function per parameter that reads it from a directory.

  Args:
    directory: Contains config.json and safetensors.
    model: The model that the weights must fit.

  Returns:
    A tree like that of `llama.init`, whose leaves are functions that return
    NumPy arrays.

  Raises:
    UserError: If the directory has another model, or tensors are missing,
      unknown or of another shape.
  """
  theirs = files.read_config(directory)
  for name in _SHARED:
    want, have = getattr(model, name), getattr(theirs, name)
    if want != have:
      raise UserError(
        f'{directory / files.CONFIG} has {name}={have!r}, but config.model has '
        f'{want!r}: use the configuration that `python -m train.hf import` '
        'writes'
      )
  weights = files.Weights(directory)
  try:
    found = hf.readers(weights, model)
  except ValueError as error:
    raise UserError(f'{directory}: {error}') from error
  shapes = jax.eval_shape(lambda: llama.init(jax.random.key(0), model))
  # Arrays that take no memory.
  zero = np.float32(0)
  empty = jax.tree.map(lambda x: np.broadcast_to(zero, x.shape), shapes)
  for name, expected in hf.to_hf(empty, model).items():
    if weights.shape(name) != expected.shape:
      raise UserError(
        f'{directory}: {name} has the shape {weights.shape(name)}, but '
        f'{files.CONFIG} requires {expected.shape}'
      )
  return found
