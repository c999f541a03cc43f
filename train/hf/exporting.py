"""Writes the parameters of a checkpoint as a Hugging Face directory."""

import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from models import hf, hf_config, layers, llama, rope
from train import errors
from train import state as state_lib
from train import workdir as workdir_lib
from train.data import tokenizer as tokenizer_lib
from train.errors import UserError
from train.hf import files

# Copied along with a tokenizer.json or tokenizer.model.
_BESIDE = ('tokenizer_config.json', 'special_tokens_map.json')
_TOKENS = ('bos_token_id', 'eos_token_id', 'pad_token_id')


class Format(NamedTuple):
  """The format of exported weights.

  Attributes:
    dtype: 'float32' or 'bfloat16'.
    max_shard_bytes: Largest size of a file.
    tokenizer: File or directory of the tokenizer to copy, if any.
  """

  dtype: str = 'float32'
  max_shard_bytes: int = 5 * 10**9
  tokenizer: pathlib.Path | None = None


def export(
  workdir: pathlib.Path,
  target: pathlib.Path,
  form: Format,
  step: int | None = None,
) -> str:
  """Writes config.json, the weights and the tokenizer's files.

  Args:
    workdir: Working directory of a run.
    target: Directory to write; it must be empty or not exist.
    form: Format of the weights.
    step: Step of the checkpoint; None for the last one.

  Returns:
    A message that lists the files.

  Raises:
    UserError: If there is no such run or checkpoint, `target` is not empty, or
      the tokenizer is not the run's.
  """
  run = files.read_json(workdir / workdir_lib.RUN_FILE, 'a run').get('run')
  if not isinstance(run, dict):
    run = {}  # Edited: the model's fields are missing.
  model = _model(run, workdir)
  found = workdir_lib.checkpoints(workdir / workdir_lib.CHECKPOINTS)
  paths = [p for p in found if step in (None, int(p.name))]
  if not paths:
    there = ', '.join(p.name for p in found) or 'none'
    which = '' if step is None else f' of step {step}'
    raise UserError(f'{workdir} has no checkpoint{which}; there are: {there}')
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f'{target} is not empty: choose another DIR')
  config = hf_config.to_hf(model, run['train.seq_len'])
  config |= _of_origin(run.get('init.path'), run['train.seq_len'])
  config['dtype'] = form.dtype
  copies: dict[str, pathlib.Path] = {}
  if form.tokenizer is not None:
    tokenizer = _tokenizer(form.tokenizer, run)
    config['eos_token_id'] = tokenizer.eot_id
    copies = _tokenizer_files(form.tokenizer, tokenizer)
  with jax.enable_x64(model.param_dtype == 'float64'):
    state = hf.to_hf(restore_params(paths[0], model), model)
  dtype = jnp.dtype(form.dtype)
  try:
    target.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'cannot create {target} ({error.strerror}): choose another DIR'
    ) from error
  for name, path in copies.items():
    shutil.copy(path, target / name)
  written = files.write_weights(
    target,
    {name: array.astype(dtype) for name, array in state.items()},
    form.max_shard_bytes,
  )
  files.write_json(target / files.CONFIG, config)
  return (
    f'{target} has the parameters of step {paths[0].name}, in {form.dtype}: '
    f'{", ".join(path.name for path in written)}{_missing(run)}'
  )


def _model(run: dict[str, Any], workdir: pathlib.Path) -> layers.LlamaConfig:
  """The model of a run, from its identity, which may have been edited."""
  names = (
    *('vocab_size', 'hidden_size', 'intermediate_size', 'num_layers'),
    *('num_heads', 'num_kv_heads', 'tie_embeddings', 'rope_theta'),
    *('rms_norm_eps', 'init_std'),
  )
  values: dict[str, Any] = {name: run.get(f'model.{name}') for name in names}
  for name, value in values.items():
    if (name, value) == ('num_kv_heads', None):
      continue
    if not isinstance(value, int | float):
      raise UserError(
        f'{workdir / workdir_lib.RUN_FILE} has no number model.{name}: give '
        'the working directory of a run, or restore that file'
      )
  scaling = None
  if run.get('model.rope_factor') is not None:
    scaling = rope.RopeScaling(
      run['model.rope_factor'],
      run['model.rope_low_freq_factor'],
      run['model.rope_high_freq_factor'],
      run['model.rope_original_positions'],
    )
  param_dtype = 'float32'
  if run.get('train.dtype') == 'float64':
    param_dtype = 'float64'
  return layers.LlamaConfig(
    **values, rope_scaling=scaling, param_dtype=param_dtype
  )


def restore_params(
  path: pathlib.Path, model: layers.LlamaConfig
) -> llama.Params:
  """Reads the parameters of a checkpoint without the optimizer's state.

  Args:
    path: Directory of the checkpoint.
    model: The model of the checkpoint.

  Returns:
    A tree like that of `llama.init`, on the CPU.

  Raises:
    UserError: If the checkpoint cannot be read, or a checksum differs.
  """
  place = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
  abstract = {
    'params': jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      jax.eval_shape(lambda: llama.init(jax.random.key(0), model)),
    )
  }
  try:
    expected = workdir_lib.read_description(path)['checksums']
    restored = ocp.PyTreeCheckpointer().restore(
      path.absolute() / 'state',
      args=ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
      ),
    )
  except Exception as error:  # A broken file may raise anything.
    raise UserError(
      f'cannot read the checkpoint {path} ({errors.first_line(error)}): give '
      'another --step'
    ) from error
  for name, value in state_lib.checksums(restored).items():
    if expected.get(name) != value:
      raise UserError(
        f'the checkpoint {path} is damaged: the checksum of {name} differs; '
        'give another --step'
      )
  return restored['params']


def _missing(run: dict[str, Any]) -> str:
  """Reports that fields of the imported config.json could not be copied."""
  source = run.get('init.path')
  if source is None or pathlib.Path(source, files.CONFIG).exists():
    return ''
  return (
    f'\n{pathlib.Path(source, files.CONFIG)}, from which the run started, is '
    'missing: check max_position_embeddings and the token ids in the new one.'
  )


def _of_origin(source: str | None, seq_len: int) -> dict[str, Any]:
  """Fields of the imported config.json that training does not change."""
  # Without an entry, transformers would use ids of its own.
  found: dict[str, Any] = dict.fromkeys(_TOKENS)
  path = None if source is None else pathlib.Path(source, files.CONFIG)
  if path is None or not path.exists():
    return found
  fields = files.read_json(path)
  found |= {name: fields.get(name) for name in found}
  positions = fields.get('max_position_embeddings')
  if type(positions) is int and positions > seq_len:
    found['max_position_embeddings'] = positions
  return found


def _tokenizer(
  path: pathlib.Path, run: dict[str, Any]
) -> tokenizer_lib.Tokenizer:
  """Loads a tokenizer; UserError if it is not the run's."""
  tokenizer = tokenizer_lib.load(path)
  expected = run.get('data.tokenizer')
  if expected and tokenizer.fingerprint != expected:
    raise UserError(
      f'{tokenizer.path} (hash {tokenizer.fingerprint[:12]}) is not the '
      f'tokenizer of the run (hash {expected[:12]}): give the directory of its '
      'shards'
    )
  return tokenizer


def _tokenizer_files(
  given: pathlib.Path, tokenizer: tokenizer_lib.Tokenizer
) -> dict[str, pathlib.Path]:
  """Name in the export -> file. A directory may have both formats."""
  folder = tokenizer.path.parent
  found = {tokenizer.file_name: tokenizer.path}
  beside: tuple[str, ...] = ()
  if given.is_dir():
    beside = (*tokenizer_lib.NAMES, *_BESIDE)
  elif tokenizer.path.name in tokenizer_lib.NAMES:
    beside = _BESIDE
  for name in beside:
    if (folder / name).exists():
      found.setdefault(name, folder / name)
  return found
