"""Kills runs and flips bits at random: python -m tests.drill.

  python -m tests.drill --kills 100 --flips 200 --markdown docs/reliability.md

A training run of each recipe, and a preparation, are killed with SIGKILL at
random moments until they complete; the result is compared with that of an
uninterrupted one. Flips change one bit of a saved checkpoint and restore it.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from tests.drill import forks

RECIPES = ('sage_hybrid', 'galore', 'apollo', 'muon', 'stable_spam')
_SPREAD_SECONDS = 0.4
_MOST_FRUITLESS = 30  # Starts in a row that resume nothing.


def kill_until_complete(
  name: str,
  action: Callable[[pathlib.Path], int],
  directory: pathlib.Path,
  *,
  kills: int,
  progress: Callable[[pathlib.Path], Any],
  resumes: str,
  compare: Callable[[pathlib.Path, pathlib.Path], str | None],
  rng: random.Random,
) -> forks.Result:
  """Kills an action again and again, and compares what it makes.

  Args:
    name: What it is.
    action: Makes the directory that it is given; returns its status.
    directory: An empty directory.
    kills: How many in all; the action is begun anew where it completes.
    progress: Says how far the directory is; most kills come a little after
      it has changed.
    resumes: What it prints when it continues another's.
    compare: Says in what two directories differ, or None.
    rng: Chooses the moments.

  Returns:
    What was found.
  """
  log = directory / 'log'
  whole = directory / 'whole'
  if forks.wait(forks.call(lambda: action(whole), log), 600) != 0:
    raise RuntimeError(f'{name} fails by itself:\n{forks.read(log)}')
  counts: collections.Counter = collections.Counter()
  failed: list[str] = []
  done = number = 0
  while done < kills:
    number += 1
    fruitless = 0
    out = directory / f'torn{number}'
    while True:
      before = progress(out)
      pid = forks.call(lambda out=out: action(out), log)
      status = None
      if done < kills and fruitless < _MOST_FRUITLESS:
        delay = rng.uniform(0, _SPREAD_SECONDS)
        if rng.random() < 0.1:  # At its start.
          delay *= 5
        else:
          while status is None and progress(out) == before:
            status = forks.wait(pid, 0.002)
        if status is None:
          status = forks.wait(pid, delay)
        if status is None:
          os.killpg(pid, signal.SIGKILL)
          status = forks.wait(pid, 60)
          done += 1
      else:
        status = forks.wait(pid, 600)
      resumed = resumes in forks.read(log)
      counts['resumed'] += resumed
      counts['nothing to resume yet'] += not resumed
      fruitless = 0 if resumed else fruitless + 1
      if status == -signal.SIGKILL:
        continue
      if before and not resumed:
        failed.append(f'begun again in spite of {before}')
      if status != 0:
        failed.append(f'status {status}: {forks.read(log)[-300:]}')
      break
    counts['completed'] += 1
    if difference := compare(whole, out):
      failed.append(difference)
    else:
      counts['bit-identical'] += 1
    shutil.rmtree(out, ignore_errors=True)
  return forks.Result(name, done, dict(counts), failed)


def _compare_data(whole: pathlib.Path, torn: pathlib.Path) -> str | None:
  from tests.support import corpora

  try:
    a, b = corpora.files(whole), corpora.files(torn)
  except OSError as error:
    return f'incomplete: {error}'
  return next((f'{n} differs' for n in a | b if a.get(n) != b.get(n)), None)


def kill_trainer(
  recipe: str, data: pathlib.Path, directory: pathlib.Path, kills: int
) -> forks.Result:
  """Kills training runs that save every third step, synchronously."""
  from tests.support import runs
  from train import main

  directory.mkdir()

  def train(workdir):
    options = [
      f'optimizer.recipe={recipe}',
      'optimizer.learning_rate=0.003',
      'train.steps=120',
      'checkpoint.every=3',
      'checkpoint.async_=false',
      'eval.every=30',
      f'log.compilation_cache={directory.parent / "cache"}',
    ]
    return main.main(['main', *runs.command(data, workdir, *options)])

  return kill_until_complete(
    f'training, {recipe}',
    train,
    directory,
    kills=kills,
    progress=lambda out: sorted(
      p.name for p in out.glob('checkpoints/*') if p.name.isdecimal()
    ),
    resumes='Resuming from the checkpoint',
    compare=forks.compare_runs,
    rng=random.Random(recipe),
  )


def kill_preparation(
  directory: pathlib.Path, kills: int, workers: int
) -> forks.Result:
  """Kills preparations that commit twenty times a second."""
  from tests.support import corpora
  from train import prepare
  from train.data import readers, streaming

  directory.mkdir()
  tokenizer = corpora.bpe(directory / 'tokenizer.json')
  for i in range(3):
    lines = corpora.lines(corpora.records(6000))
    (directory / f'{i}.jsonl.zst').write_bytes(corpora.compress('zst', lines))

  def make(output):
    readers._BLOCK = 2**13
    streaming._COMMIT_SECONDS = 0.05
    return prepare.main(
      [
        f'--input={directory}/*.jsonl.zst',
        f'--tokenizer={tokenizer}',
        f'--output={output}',
        f'--workers={workers}',
      ]
    )

  return kill_until_complete(
    f'preparation, {workers} workers',
    make,
    directory,
    kills=kills,
    progress=_commits,
    resumes='esuming after',
    compare=_compare_data,
    rng=random.Random(workers),
  )


def _commits(output: pathlib.Path) -> float:
  with contextlib.suppress(OSError):
    record = output.with_name(f'{output.name}.partial') / 'progress.json'
    return record.stat().st_mtime_ns
  return 0


def flip_bits(directory: pathlib.Path, flips: int) -> forks.Result:
  """Flips bits of a checkpoint, each in a copy of its own."""
  import jax
  import numpy as np

  from tests.support import runs
  from train import checkpoint, config, program

  compiled = program.build(config.load(str(runs.CONFIG)), jax.devices()[:1])
  state = compiled.init(0)
  original = directory / 'original'
  checkpoints = checkpoint.Checkpoints(original, {}, asynchronous=False)
  checkpoints.save(state, 7)
  checkpoints.close()
  files = sorted(p for p in original.rglob('*') if p.is_file())
  sizes = [path.stat().st_size for path in files]
  rng = random.Random(0)
  counts: collections.Counter = collections.Counter()
  failed = []
  for i in range(flips):
    # Half where most bytes are, half in any file.
    path = rng.choices(files, sizes if i % 2 else None)[0]
    content = bytearray(path.read_bytes())
    if not content:
      continue
    bit = rng.randrange(len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    copy = directory / f'copy{i}'
    shutil.copytree(original, copy)
    name = path.relative_to(original)
    (copy / name).write_bytes(content)
    torn = checkpoint.Checkpoints(copy, {}, asynchronous=False)
    try:
      restored = torn.restore(compiled.abstract, 7)
    except checkpoint.Damaged:
      counts['detected'] += 1
    except Exception as error:
      failed.append(f'{name}, bit {bit}: {type(error).__name__}')
    else:
      same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
        restored,
        state,
      )
      if all(jax.tree.leaves(same)):
        counts['restored with every number the same'] += 1
      else:
        failed.append(f'{name}, bit {bit}: another number was restored')
    torn.close()
    shutil.rmtree(copy)
  return forks.Result('flips in a checkpoint', flips, dict(counts), failed)


def main(argv: list[str] | None = None) -> int:
  """Runs the drills; the status is 1 if anything was lost or undetected."""
  parser = argparse.ArgumentParser(prog='python -m tests.drill')
  parser.add_argument('--kills', type=int, default=10, help='of each kind')
  parser.add_argument('--flips', type=int, default=200)
  parser.add_argument(
    '--process-kills', type=int, default=20, help='one of several processes'
  )
  parser.add_argument('--recipes', default=','.join(RECIPES))
  parser.add_argument('--no-prepare', action='store_true')
  parser.add_argument('--markdown', type=pathlib.Path, help='document to edit')
  args = parser.parse_args(argv)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
  # Imported before the forks, which then start at once.
  from tests.drill import process_kills
  from tests.support import runs
  from train import loop, main, prepare

  del loop, main, prepare
  results = []

  def report(result: forks.Result) -> None:
    print(result.row(), flush=True)
    results.append(result)

  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    data = runs.write_data(directory / 'data')
    if args.kills:
      for recipe in filter(None, args.recipes.split(',')):
        report(kill_trainer(recipe, data, directory / recipe, args.kills))
      for workers in () if args.no_prepare else (0, 2):
        report(kill_preparation(directory / f'p{workers}', args.kills, workers))
    if args.process_kills:
      rng = random.Random(0)
      target = directory / 'processes'
      report(
        process_kills.kill_processes(data, target, args.process_kills, rng)
      )
    # Last: a process that has used JAX cannot be forked.
    if args.flips:
      (directory / 'flips').mkdir()
      report(flip_bits(directory / 'flips', args.flips))
  if args.markdown:
    _write(args.markdown, results)
  return int(any(result.failed for result in results))


def _write(path: pathlib.Path, results: list[forks.Result]) -> None:
  from train import files

  rows = [
    '| drill | tries | outcomes | lost or undetected |',
    '|---|---|---|---|',
    *(result.row() for result in results),
  ]
  old = path.read_text(encoding='utf-8')
  new = files.replace_block(old, 'drill', 'last run', '\n'.join(rows))
  path.write_text(new, encoding='utf-8')


if __name__ == '__main__':
  sys.exit(main())
