"""Helpers for tests that start training runs."""

import concurrent.futures
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np

from train import main
from train.data import encoding, tokenizer
from train.data import writer as writer_lib

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).parent / 'tiny_config.py'
_WORDS = 'stone river light green seven walks under quiet morning because'
SUBSETS = ('prose', 'verse')


def texts(split, subset, count=60):
  """Documents of random words, the same each time."""
  seed = [SUBSETS.index(subset), split == 'train']
  rng = np.random.default_rng(seed)
  words = _WORDS.split()
  for _ in range(count if split == 'train' else count // 6):
    yield ' '.join(rng.choice(words, rng.integers(30, 60))) + '.'


def write_data(directory, splits=('train', 'validation'), vocab_size=290):
  """Writes token shards of two subsets, and their tokenizer."""
  directory.mkdir(parents=True)
  bpe = tokenizer.train_bpe(
    list(texts('train', 'prose')),
    vocab_size,
    directory / 'tokenizer.json',
  )
  writer = writer_lib.Writer(directory, bpe)
  encoder = encoding.Encoder(bpe)
  for split in splits:
    for subset in SUBSETS:
      pairs = ((subset, text) for text in texts(split, subset))
      for document in encoder.encode(pairs):
        writer.add(split, document)
  writer.finish(corpus_hash='0123456789abcdef')
  return directory


def command(data, workdir, *overrides):
  """The arguments of a run."""
  overrides = (f'data.path={data}', f'workdir={workdir}', *overrides)
  return [f'--config={CONFIG}', *(f'--config.{o}' for o in overrides)]


def call(*args):
  """Runs the command line in this process; returns the exit status."""
  return main.main(['main', *args])


def environment(devices=1, cache=True):
  """Returns the environment of a run in a process of its own."""
  return os.environ | {
    # As the tests themselves compile; the last of a flag counts.
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} '
    f'--xla_force_host_platform_device_count={devices}',
    'JAX_PLATFORMS': 'cpu',
    'JAX_ENABLE_COMPILATION_CACHE': str(cache),
    'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.cache' / 'jax'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'PYTHONWARNINGS': 'error',
  }


def start(args, module='train.main', options=(), devices=1, cache=True):
  """Starts the command line in a process of its own."""
  return subprocess.Popen(
    [sys.executable, *options, '-m', module, *args],
    cwd=ROOT,
    env=environment(devices, cache),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_all(args, count, devices, **kwargs):
  """Starts the command line in several processes that train together."""
  if count == 1:
    return [start(args, devices=devices, **kwargs)]
  address = f'127.0.0.1:{free_port()}'
  flags = [f'--coordinator={address}', f'--num_processes={count}']
  # Only process 0 would use it, and then wait for the others longer than Gloo
  # does, which is 30 s.
  kwargs['cache'] = False
  return [
    start([*args, *flags, f'--process_id={i}'], devices=devices, **kwargs)
    for i in range(count)
  ]


def free_port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def without_gloo(text):
  """Output without Gloo's lines, which several threads may interleave."""
  text = re.sub(
    r'\[Gloo\] Rank|\d+ is connected to \d+ peer ranks\.|'
    r'Expected number of connected peer ranks is :',
    '',
    text,
  )
  return re.sub(r'^[ \d]*\n', '', text, flags=re.MULTILINE)


def ends(processes, timeout=600):
  """Waits for processes; returns their statuses, outputs and errors."""
  try:
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
      texts = list(
        pool.map(lambda p: p.communicate(timeout=timeout), processes)
      )
  finally:
    for process in processes:
      with process:  # Closes its pipes: a later test would be warned of them.
        process.kill()
  outs, errs = ([text[i] for text in texts] for i in (0, 1))
  return [process.returncode for process in processes], outs, errs


def files(directory):
  """Every file below a directory, with its contents."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(pathlib.Path(directory).rglob('*'))
    if path.is_file()
  }
