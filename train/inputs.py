"""Opens and checks the data of a run; prepares the bundled text."""

import dataclasses
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from models import llama
from train.config import Config, mesh_shape, model_config
from train.data import bundled, loader, shards
from train.data import tokenizer as tokenizer_lib
from train.distributed import processes
from train.distributed.signals import Stop
from train.errors import UserError
from train.results import evaluate

# The names of `Inputs.hashes`.
HASHES = ('data.corpus', 'data.tokenizer')


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Opened data.

  Attributes:
    directory: Directory of the shards.
    manifest: Their manifest.
    tokenizer: The tokenizer that encoded them.
    train: The tokens of the training split.
    validation: The validation split.
  """

  directory: pathlib.Path
  manifest: dict[str, Any]
  tokenizer: tokenizer_lib.Tokenizer
  train: shards.TokenStream
  validation: evaluate.Validation

  @property
  def hashes(self) -> dict[str, str]:
    """Hashes that identify the data."""
    values = (self.manifest['corpus_hash'], self.tokenizer.fingerprint)
    return dict(zip(HASHES, values, strict=True))


def read_hashes(config: Config) -> dict[str, str]:
  """`Inputs.hashes` from the manifest alone; {} if there is none yet."""
  directory = _directory(config)
  if not os.path.lexists(directory / shards.MANIFEST):
    return {}
  manifest = shards.read_manifest(directory)
  values = (manifest['corpus_hash'], manifest['tokenizer']['fingerprint'])
  return dict(zip(HASHES, values, strict=True))


def open_inputs(
  config: Config, stop: Stop, say: Callable[[str], None]
) -> Inputs:
  """Opens the data of a run, and prepares the bundled text if necessary.

  Args:
    config: The configuration.
    stop: Ends the preparation early.
    say: Receives messages.

  Returns:
    The data.

  Raises:
    UserError: If it is missing, damaged, or does not fit the model.
    Interrupted: If `stop` was set during the preparation.
  """
  directory = _directory(config)
  if config.data.source == 'bundled':
    max_mb = config.data.max_mb
    manifest = bundled.prepare_bundled(
      directory,
      config.data.vocab_size,
      bundled.bytes_of(max_mb),
      tokenizer=config.data.tokenizer or None,
      should_stop=stop,
      log=say,
    )
  else:
    if not os.path.lexists(directory / shards.MANIFEST):
      raise UserError(_how_to_get_data(config, directory))
    manifest = shards.read_manifest(directory)
  check_vocab(manifest, config.model.vocab_size)
  tokenizer = tokenizer_lib.load(config.data.tokenizer or directory)
  check_tokenizer(manifest, tokenizer)
  validation = evaluate.Validation(
    directory,
    seq_len=config.train.seq_len,
    batch_size=config.eval.batch_size,
    token_bytes=tokenizer.token_bytes(),
    should_stop=stop,
    say=say,
  )
  trained = config.train.steps * config.train.batch_size
  during_the_run, _ = evaluate.windows(
    config.eval.max_windows, trained=trained, seq_len=config.train.seq_len
  )
  validation.check(during_the_run)
  train = shards.open_split(directory, 'train', should_stop=stop, say=say)
  return Inputs(directory, manifest, tokenizer, train, validation)


def open_together(config: Config, stop: Stop) -> Inputs:
  """Opens the data in all processes; only process 0 prepares or hashes it.

  Args:
    config: The configuration.
    stop: Ends the preparation early.

  Returns:
    The data.

  Raises:
    UserError: As in `open_inputs`, or if a process cannot see the data.
    Interrupted: As in `open_inputs`.
  """
  opened: list[Inputs] = []

  def open_here() -> None:
    opened.append(open_inputs(config, stop, print))

  processes.first_does(open_here, stop)
  processes.check_shared(_directory(config) / shards.MANIFEST, 'the data')

  def finish() -> Inputs:
    if not opened:
      opened.append(open_inputs(config, Stop(), lambda _: None))
    inputs, train = opened[0], config.train
    loader.check_enough(inputs.train, train.seq_len, train.batch_size)
    return inputs

  return processes.together(finish)


def check_vocab(manifest: dict[str, Any], vocab_size: int) -> None:
  """Raises UserError if the model's vocabulary is too small for the tokens."""
  needed = manifest['vocab_size']
  if vocab_size < needed:
    raise UserError(
      f'The shards have a vocabulary of {needed} tokens, but the model has '
      f'only {vocab_size}: set --config.model.vocab_size={needed} or prepare '
      'data with a smaller tokenizer.'
    )


def check_tokenizer(
  manifest: dict[str, Any], tokenizer: tokenizer_lib.Tokenizer
) -> None:
  """Raises UserError unless the shards were encoded with this tokenizer."""
  made_with = manifest['tokenizer']['fingerprint']
  if tokenizer.fingerprint != made_with:
    raise UserError(
      f'The shards were encoded with another tokenizer (hash {made_with[:12]}) '
      f'than {tokenizer.path} (hash {tokenizer.fingerprint[:12]}): use the '
      f'{manifest["tokenizer"]["file"]} beside the shards, or prepare the '
      'data again with this one.'
    )


def _directory(config: Config) -> pathlib.Path:
  """Returns the directory of the data; bundled text has one per setting."""
  data = config.data
  if data.path or data.source != 'bundled':
    return pathlib.Path(data.path or f'data/{config.name}')
  vocabulary = pathlib.Path(data.tokenizer).stem or str(data.vocab_size)
  size = 'all' if data.max_mb is None else f'{data.max_mb:g}mb'
  return pathlib.Path(f'data/bundled-{vocabulary}-{size}')


def _how_to_get_data(config: Config, directory: pathlib.Path) -> str:
  """Describes what is missing and how to get it."""
  vocabulary = config.model.vocab_size
  command = f'python -m train.main {shlex.join(sys.argv[1:])}'
  path = '' if config.data.path else f' --config.data.path={directory}'
  known = {
    32000: "Llama 2's and Mistral 7B v0.1's tokenizer.json,\nand T5's "
    'SentencePiece spiece.model (its tokenizer.json has 32100 entries)',
    128256: "Llama 3's, 3.1's, 3.2's and 3.3's tokenizer.json",
  }.get(vocabulary, 'any whose vocabulary is at most that')
  data, fsdp, _ = mesh_shape(config, jax.device_count())
  rows = max(2, data * fsdp)
  return f"""no prepared data in {directory}: run two commands
  python -m train.prepare --input 'TEXTS/*.jsonl.zst' \\
    --tokenizer tokenizer.json --output {directory}
  {command}{path}
TEXTS are .txt, .jsonl(.gz, .zst) or .parquet files. Tokenizers with the
{vocabulary} entries of this model: {known}.
To try it on this machine, with text that needs no download:
  {command} {' '.join(_trial(config, rows))}
That should take about {_trial_time(config, rows)} (an estimate)."""


def _trial(config: Config, rows: int) -> list[str]:
  """Options that train two steps of `rows` sequences on the bundled text.

  They use directories of their own, and override what was typed.
  """
  options = {'data.source': 'bundled', 'workdir': f'{config.workdir}-trial'}
  options |= {'train.steps': '2', 'train.batch_size': f'{rows}'}
  if config.data.path:
    options['data.path'] = ''
  if config.train.microbatch:
    options['train.microbatch'] = 'none'
  small = config.model.vocab_size < config.data.vocab_size
  if small and not config.data.tokenizer:
    options['data.vocab_size'] = f'{config.model.vocab_size}'
  return [
    shlex.quote(f'--config.{name}={value}') for name, value in options.items()
  ]


def _trial_time(config: Config, rows: int) -> str:
  """Estimates how long two steps of `rows` sequences take on this CPU."""
  model = model_config(config, 'cpu')
  tokens = 2 * rows * config.train.seq_len
  flops = llama.flops_per_token(model, config.train.seq_len) * tokens
  # A training step runs at about half the speed of a matrix product.
  # Evaluating as many tokens is a third of the work. The parameters, the
  # optimizer and the sample are read from memory about a hundred times, at a
  # few GB/s.
  seconds = flops * (1 + 1 / 3) / (0.5 * _matmul_flops())
  seconds += llama.num_params(model) * 4 * 100 / 5e9
  seconds += 60  # preparing the text, and compilation
  if seconds < 120:
    return f'{round(seconds, -1):.0f} seconds'
  return f'{seconds / 60:.0f} minutes'


def _matmul_flops(size: int = 1024) -> float:
  """Measures the speed of a matrix product."""
  a = np.ones((size, size), np.float32)
  a @ a  # Starts the threads.
  start = time.perf_counter()
  a @ a
  return 2 * size**3 / (time.perf_counter() - start)
