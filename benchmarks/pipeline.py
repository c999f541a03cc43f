"""Times the work around the training step: python -m benchmarks.pipeline.

- the loader alone, in tokens per second, against the training step
- how long a checkpoint blocks the loop, in steps
- the time from the start of a process to the end of its first step, with an
  empty and with a filled compilation cache

It uses the bundled text and prepares it if necessary. README.md has results.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import results
from train import checkpoint, inputs, mesh
from train import config as config_lib
from train import program as program_lib
from train.data import loader
from train.distributed import signals

_ROOT = pathlib.Path(__file__).parent.parent
_NAME = 'pipeline'
# Batches that take a CPU a few seconds at most.
_STEP = ('train.batch_size=8', 'train.microbatch=2')
_DATA = ('data.source=bundled', 'data.max_mb=12.0', 'train.platform=cpu')
_CONFIGS = ('quickstart', 'llama_60m')
_LOAD_SECONDS = 2.0
_SAVES = 3
_STARTS = 3


@dataclasses.dataclass(frozen=True)
class Speed:
  """Speeds of one configuration.

  Attributes:
    name: Name of the configuration.
    loaded: Tokens per second of the loader alone, with the run's batch size.
    trained: Tokens per second of the training step.
    step_ms: Median time of a step with the batch of `_STEP`.
    saved_ms: Median time that a checkpoint blocks the loop.
    slowed_ms: Median of the total delay of steps while it is written.
    saved_bytes: Size of the state.
  """

  name: str
  loaded: float
  trained: float
  step_ms: float
  saved_ms: float
  slowed_ms: float
  saved_bytes: int


@dataclasses.dataclass(frozen=True)
class Start:
  """Seconds from the start of a process to the end of its first step.

  Attributes:
    cold: With an empty compilation cache.
    warm: With a filled one: median, least and most.
  """

  cold: float
  warm: tuple[float, float, float]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.pipeline',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  names = ','.join(_CONFIGS)
  add = parser.add_argument
  add('--configs', default=names, help=f'some of {names}')
  results.add_outputs(parser)
  args = parser.parse_args(argv)
  chosen = args.configs.split(',')
  if unknown := [name for name in chosen if name not in _CONFIGS]:
    print(
      f'error: --configs has {unknown[0]!r}: use some of {names}',
      file=sys.stderr,
    )
    return 2
  machine = results.machine()
  speeds = [speed(name) for name in chosen]
  started = start()
  text = markdown(speeds, started, machine)
  print(text)
  if args.json:
    found = {
      'machine': machine,
      'speeds': list(map(dataclasses.asdict, speeds)),
      'start': dataclasses.asdict(started),
    }
    args.json.write_text(json.dumps(found, indent=2) + '\n')
  if args.markdown:
    results.put(args.markdown, _NAME, text)
  return 0


def markdown(
  speeds: Sequence[Speed], started: Start, machine: dict[str, Any]
) -> str:
  """Returns the report."""
  header = [
    *('configuration', 'loader, tokens/s', 'step, tokens/s', 'loader / step'),
    *(
      'step, ms',
      'state, MiB',
      'save blocks, ms',
      'in steps',
      'save slows, ms',
    ),
  ]
  rows = [
    [
      s.name,
      f'{s.loaded:,.0f}',
      f'{s.trained:,.0f}',
      f'{s.loaded / s.trained:,.0f}',
      results.number(s.step_ms, 0),
      results.number(s.saved_bytes / 2**20, 1),
      results.number(s.saved_ms, 0),
      results.number(s.saved_ms / s.step_ms),
      results.number(s.slowed_ms, 0),
    ]
    for s in speeds
  ]
  median, least, most = started.warm
  return '\n\n'.join(
    [
      results.caption(machine),
      results.table(header, rows),
      'From the start of `python -m train.main --config configs/quickstart.py` '
      f'to the end of its first step: {started.cold:.1f} s with an empty '
      f'compilation cache, {median:.1f} s with a filled one ({least:.1f} to '
      f'{most:.1f}).',
    ]
  )


def speed(name: str) -> Speed:
  """Times the loader, the step and checkpoints of a configuration."""
  path = str(_ROOT / 'configs' / f'{name}.py')
  config = config_lib.load(path, *_DATA)
  opened = inputs.open_inputs(config, signals.Stop(), _say)
  loaded = _loaded(config, opened)
  config = config_lib.load(path, *_DATA, *_STEP)
  step = _Stepper(config, opened)
  with tempfile.TemporaryDirectory() as directory:
    usual, saved, slowed = _saves(step, pathlib.Path(directory))
  tokens = config.train.batch_size * config.train.seq_len
  return Speed(
    name=name,
    loaded=loaded,
    trained=tokens / usual,
    step_ms=1e3 * usual,
    saved_ms=1e3 * saved,
    slowed_ms=1e3 * slowed,
    saved_bytes=sum(x.nbytes for x in jax.tree.leaves(step.state)),
  )


def _batches(config: Any, opened: inputs.Inputs) -> loader.TrainIterator:
  return loader.train_iterator(
    opened.train,
    seq_len=config.train.seq_len,
    batch_size=config.train.batch_size,
    seed=config.data.seed,
    start_step=0,
  )


def _loaded(config: Any, opened: inputs.Inputs) -> float:
  """Returns the loader's tokens per second, without its start."""
  batches = _batches(config, opened)
  tokens, began = -next(batches)[:, 1:].size, time.perf_counter()
  while (seconds := time.perf_counter() - began) < _LOAD_SECONDS:
    tokens += next(batches)[:, 1:].size
  return max(tokens, 0) / seconds


class _Stepper:
  """The training step of a configuration, as the loop calls it."""

  def __init__(self, config: Any, opened: inputs.Inputs):
    self._program = program_lib.build(config)
    self._step = self._program.compile_train_step(
      config.train.batch_size, config.train.seq_len
    )
    self.state = self._program.init(config.train.seed)
    self._config = config
    self._batches = _batches(config, opened)

  def __call__(self) -> float:
    """Takes a step; returns its seconds."""
    began = time.perf_counter()
    size = self._config.train.batch_size
    batch = mesh.put_batch(
      next(self._batches), self._program.mesh, range(size), size
    )
    self.state, values = self._step(self.state, batch)
    jax.block_until_ready((self.state, values))
    return time.perf_counter() - began


def _saves(step: _Stepper, directory: pathlib.Path) -> tuple[float, ...]:
  """Returns median seconds of a step, a save, and the delay of steps by it."""
  step()
  usual = statistics.median(step() for _ in range(5))
  saved, slowed = [], []
  checkpoints = checkpoint.Checkpoints(directory, {'name': 'benchmark'})
  for i in range(1 + _SAVES):
    began = time.perf_counter()
    checkpoints.save(step.state, i + 1)
    saved.append(time.perf_counter() - began)
    slower = 0.0
    while True:
      slower += step() - usual
      if not checkpoints.writing:
        break
    slowed.append(slower)
  checkpoints.close()
  # The first save also does one-time setup.
  return usual, statistics.median(saved[1:]), statistics.median(slowed[1:])


def start() -> Start:
  """Times runs of the quickstart from their start to their first step."""
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    seconds = [
      _first_step(root / str(i), root / 'cache') for i in range(_STARTS + 1)
    ]
  cold, *warm = seconds
  return Start(cold, (statistics.median(warm), min(warm), max(warm)))


def _first_step(workdir: pathlib.Path, cache: pathlib.Path) -> float:
  """Returns the seconds until a new run has recorded its first step."""
  command = [
    *(sys.executable, '-m', 'train.main', '--config=configs/quickstart.py'),
    *(f'--config.workdir={workdir}', '--config.train.steps=1'),
    '--config.train.platform=cpu',
  ]
  began = time.perf_counter()
  process = subprocess.Popen(
    command,
    cwd=_ROOT,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  try:
    path = workdir / 'metrics.jsonl'
    while not (path.exists() and path.stat().st_size):
      if process.poll() is not None:
        output = process.stdout.read() if process.stdout else ''
        raise RuntimeError(f'The run ended without a step:\n{output}')
      time.sleep(0.005)
    return time.perf_counter() - began
  finally:
    process.kill()
    process.communicate()


def _say(line: str) -> None:
  print(line, file=sys.stderr)


if __name__ == '__main__':
  sys.exit(main())
