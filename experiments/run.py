"""Runs the missing trials of studies.

  python -m experiments.run STUDY [STUDY ...] [--workers 2] [--minutes N]
    [--only ARM ...] [--shard I/N] [--batch N]

Every finished trial is one line of results/STUDY.jsonl. The command can be
stopped at any time; rerun it to resume. Unfinished trials are run again.
Several machines can share a study with --shard; concatenate their files
afterwards.
"""

import argparse
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from experiments import schedule, studies, trial, worker
from experiments.trial import Trial

SOURCES = (
  'experiments', 'sage_optax', 'models', 'train', 'configs', 'examples',
)  # fmt: skip


class WorkerPool:
  """Worker processes; each runs one batch of trials at a time."""

  def __init__(self, count: int):
    os.environ.update(
      {k: v for k, v in worker.ENVIRONMENT.items() if k not in os.environ}
    )
    context = multiprocessing.get_context('spawn')
    self._processes: dict[Connection, Any] = {}
    self.running: dict[Connection, list[Trial]] = {}
    self.arms: dict[Connection, str] = {}
    for _ in range(count):
      here, there = context.Pipe()
      process = context.Process(target=worker.serve, args=(there,), daemon=True)
      process.start()
      there.close()
      self._processes[here] = process

  @property
  def idle(self) -> list[Connection]:
    return [c for c in self._processes if c not in self.running]

  def start(self, channel: Connection, trials: list[Trial]) -> None:
    channel.send(trials)
    self.running[channel] = trials
    self.arms[channel] = trials[0].arm

  def finished(self) -> list[tuple[list[Trial], Any]]:
    """Waits for a worker; returns its trials and their outcomes."""
    results = []
    for channel in wait(list(self.running)):
      assert isinstance(channel, Connection)
      try:
        answer = channel.recv()
      except EOFError:
        answer = 'A worker was killed.'
      results.append((self.running.pop(channel), answer))
    return results

  def close(self) -> None:
    for channel, process in self._processes.items():
      channel.close()
      process.terminate()
      process.join()


def choose(
  ready: list[Trial], busy: set[str], last_arm: str | None, size: int
) -> list[Trial]:
  """Returns the next batch for a worker: trials of one arm, in order.

  Args:
    ready: Trials that can run, by priority.
    busy: Keys of running trials.
    last_arm: The arm that the worker has compiled; preferred if its trials are
      among the first few.
    size: The largest number of trials.
  """
  free = [t for t in ready if t.key not in busy]
  if not free:
    return []
  first = next((t for t in free[:4] if t.arm == last_arm), free[0])
  same = [t for t in free if (t.cell, t.arm) == (first.cell, first.arm)]
  return same[:size] if first in same[:size] else [first]


class StudyRunner:
  """Runs studies one after the other, and appends their results."""

  def __init__(self, args: argparse.Namespace, commit: str):
    self._args = args
    self._commit = commit
    self._end = time.monotonic() + 60 * args.minutes if args.minutes else None
    self._which = {'only': args.only, 'shard': args.shard}
    self._seconds: list[float] = []
    self._failed: set[tuple[str, str]] = set()

  def run(self, study: studies.Study, pool: WorkerPool) -> bool:
    """Runs a study; returns whether it is complete."""
    path = trial.path_of(study.name, self._args.results)
    losses = trial.losses(schedule.read(study, self._args.results).values())
    while True:
      self._fill(study, pool, losses)
      if not pool.running:
        break
      for trials, answer in pool.finished():
        if isinstance(answer, str):
          print(f'{trials[0]} failed; its arm is skipped:\n{answer}')
          self._failed.add((trials[0].cell, trials[0].arm))
          continue
        outcomes, versions = answer
        for one, outcome in zip(trials, outcomes, strict=True):
          line = self._line(study, one, outcome, versions)
          trial.append(path, line)
          losses |= trial.losses([line])
          self._say(study, one, line, losses)
    left = self._left(study, losses)
    if left and not schedule.missing_trials(study, losses, **self._which):
      print(f'{study.name}: the other arms wait for {study.after}.')
    return not left

  def _left(self, study: studies.Study, losses: dict[str, float]) -> int:
    """The number of trials still to run, about."""
    return sum(
      schedule.progress(study, cell, arm, losses).left
      for cell, arm in studies.arms_of(study, **self._which)
    )

  def _fill(self, study, pool, losses):
    """Sends trials to idle workers until time is up."""
    for channel in pool.idle:
      if self._end is not None and time.monotonic() > self._end:
        return
      ready = [
        t
        for t in schedule.missing_trials(study, losses, **self._which)
        if (t.cell, t.arm) not in self._failed
      ]
      busy = {t.key for trials in pool.running.values() for t in trials}
      last = pool.arms.get(channel)
      if batch := choose(ready, busy, last, self._args.batch):
        pool.start(channel, batch)

  def _line(self, study, one, outcome, versions):
    return {
      'study': study.name,
      'cell': one.cell,
      'arm': one.arm,
      'options': dict(one.options),
      'seed': one.seed,
      'commit': self._commit,
      'versions': versions,
      **outcome,
    }

  def _say(self, study, one, line, losses):
    self._seconds.append(line['core_seconds'] + line['compile_core_seconds'])
    left = self._left(study, losses)
    recent = self._seconds[-20:]
    hours = left * sum(recent) / len(recent) / 3600
    options = ' '.join(f'{k}={v:g}' for k, v in one.options)
    print(
      f'{time.strftime("%H:%M:%S")} {one.cell} {one.arm} seed {one.seed} '
      f'{options}: {line["loss"]:.4f}{" diverged" * line["diverged"]}, '
      f'{line["core_seconds"]:.0f} core-s; about {left} trials and '
      f'{hours:.1f} core-hours left in {study.name}',
      flush=True,
    )


def commit_of(allow_changes: bool) -> str:
  """Returns the commit of the code.

  Raises:
    SystemExit: If sources differ from the commit and `allow_changes` is False.
  """

  def git(*args):
    return subprocess.run(
      ['git', *args], capture_output=True, text=True, check=True
    ).stdout.strip()

  commit = git('rev-parse', 'HEAD')
  if git('status', '--porcelain', '--', *SOURCES):
    if not allow_changes:
      sys.exit(
        'The sources differ from the commit to be recorded: commit them, or '
        'pass --changed to record that they differ.'
      )
    commit += '-changed'
  return commit


def _shard(text: str) -> tuple[int, int]:
  index, count = map(int, text.split('/'))
  if not 0 <= index < count:
    raise ValueError(text)
  return index, count


def parser() -> argparse.ArgumentParser:
  """The command line."""
  result = argparse.ArgumentParser(
    prog='python -m experiments.run',
    description='Runs the missing trials of studies.',
  )
  add = result.add_argument
  names = sorted(studies.STUDIES)
  add(
    'studies', nargs='+', choices=names, metavar='STUDY', help=', '.join(names)
  )
  add('--workers', type=int, default=2, help='processes, one thread each')
  add('--minutes', type=float, help='start no trial after this time')
  add('--only', nargs='+', metavar='ARM', help='run only these arms')
  add('--shard', type=_shard, default=(0, 1), help='I/N: the I-th of N parts')
  add('--batch', type=int, default=1, help='trials of an arm under one vmap')
  add('--results', type=pathlib.Path, default=trial.RESULTS, help='folder')
  add('--changed', action='store_true', help='allow uncommitted sources')
  return result


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns 0 if the studies are complete, else 1."""
  args = parser().parse_args(argv)
  runner = StudyRunner(args, commit_of(args.changed))
  pool = WorkerPool(args.workers)
  try:
    done = [runner.run(studies.STUDIES[name], pool) for name in args.studies]
  except KeyboardInterrupt:
    print('Interrupted: rerun the same command to resume.')
    return 1
  finally:
    pool.close()
  return 0 if all(done) else 1


if __name__ == '__main__':
  sys.exit(main())
