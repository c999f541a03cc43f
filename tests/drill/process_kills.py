"""Kills one of several processes that train together, again and again."""

import collections
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import time

from tests.drill import forks
from tests.support import runs

COUNTS = (2, 3, 4)  # Processes, in turn.
SECONDS = 60  # In which the others must have ended.
_MESH = {2: (2, 1), 3: (3, 1), 4: (2, 2)}
_BATCH = 12  # All of these divide it.
_SPREAD_SECONDS = 4.0
# By `processes`, or by JAX, which may end a process first.
_NAMED = r'error: process {0} of {1} \(on '
_NAMED_BY_JAX = {
  True: r'leader|coordination service',
  False: r'task:{0}\b|unhealthy[^\n]*:\n(?:\d+\n)*{0}\n',
}


class _Group:
  """The processes of a run."""

  def __init__(self, count: int, data: pathlib.Path, workdir: pathlib.Path):
    """Starts them."""
    self.count = count
    self._logs = [
      workdir.with_name(f'{workdir.name}.log{i}') for i in range(count)
    ]
    replicas, shards = _MESH[count]
    arguments = runs.command(
      data,
      workdir,
      *(f'train.batch_size={_BATCH}', f'eval.batch_size={_BATCH}'),
      *(f'mesh.data={replicas}', f'mesh.fsdp={shards}'),
      *('train.steps=120', 'checkpoint.every=3', 'checkpoint.async_=false'),
    )
    address = f'127.0.0.1:{runs.free_port()}'
    arguments += [f'--coordinator={address}', f'--num_processes={count}']
    self._pids = [
      forks.call(lambda i=i: runs.call(*arguments, f'--process_id={i}'), log)
      for i, log in enumerate(self._logs)
    ]
    self.statuses: dict[int, int] = {}

  def ends(self, index: int, seconds: float) -> bool:
    """Whether a process has ended, after at most so long."""
    if index not in self.statuses:
      status = forks.wait(self._pids[index], seconds)
      if status is None:
        return False
      self.statuses[index] = status
    return True

  def kill(self, index: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._pids[index], signal.SIGKILL)

  def read(self, index: int) -> str:
    return forks.read(self._logs[index])


def kill_processes(
  data: pathlib.Path, directory: pathlib.Path, kills: int, rng: random.Random
) -> forks.Result:
  """Kills processes of runs that save every third step, synchronously.

  Args:
    data: Prepared data.
    directory: A directory to make.
    kills: How many in all; runs of other numbers of processes take turns.
    rng: Chooses the process and the moment.

  Returns:
    What was found.
  """
  directory.mkdir()
  counts: collections.Counter = collections.Counter()
  failed: list[str] = []
  slowest = 0.0
  done = number = 0
  while done < kills:
    count = COUNTS[number % len(COUNTS)]
    whole, out = directory / f'whole{count}', directory / f'torn{number}'
    number += 1
    if not whole.exists():
      _complete(_Group(count, data, whole))
    # Each run is killed a few times, and then completed.
    for _ in range(min(max(kills // len(COUNTS), 1), kills - done)):
      group = _Group(count, data, out)
      victim = _kill_one(group, out, rng)
      if victim is None:
        break
      done += 1
      began = time.monotonic()
      outcomes = [
        _outcome(group, victim, index, began + SECONDS)
        for index in range(count)
        if index != victim
      ]
      slowest = max(slowest, time.monotonic() - began)
      for outcome, is_good in outcomes:
        if is_good:
          counts[outcome] += 1
        failed += [] if is_good else [f'{victim} of {count}: {outcome}']
      counts['resumed'] += 'Resuming from' in group.read(0)
    before = _saved(out)
    group = _Group(count, data, out)
    _complete(group)
    if before and 'Resuming from' not in group.read(0):
      failed.append(f'{count} processes: begun again in spite of {before}')
    counts['completed'] += 1
    if difference := forks.compare_runs(whole, out):
      failed.append(f'{count} processes: {difference}')
    else:
      counts['bit-identical'] += 1
    shutil.rmtree(out)
  counts['s until the last has ended'] = round(slowest)
  return forks.Result('one of 2 to 4 processes', done, dict(counts), failed)


def _saved(out: pathlib.Path) -> list[str]:
  """The steps of the complete checkpoints."""
  names = (path.name for path in out.glob('checkpoints/*'))
  return sorted(name for name in names if name.isdecimal())


def _kill_one(
  group: _Group, out: pathlib.Path, rng: random.Random
) -> int | None:
  """Kills one at a random moment; None if the run was complete before."""
  victim = rng.randrange(group.count)

  before = _saved(out)
  # Before that they may still wait for each other to start.
  while not group.read(0).strip() and not group.ends(0, 0.01):
    pass
  if rng.random() < 0.75:
    while _saved(out) == before and not group.ends(0, 0.01):
      pass
  if group.ends(victim, rng.uniform(0, _SPREAD_SECONDS)):
    _complete(group)
    return None
  group.kill(victim)
  group.ends(victim, 60)
  return victim


def _outcome(
  group: _Group, victim: int, index: int, end: float
) -> tuple[str, bool]:
  """How one of the others has ended, and whether that is as promised."""
  if not group.ends(index, max(end - time.monotonic(), 0)):
    group.kill(index)
    group.ends(index, 60)
    return f'process {index} was left', False
  status, text = group.statuses[index], group.read(index)
  if status == 0:
    return 'had completed', True
  if re.search(_NAMED.format(victim, group.count), text):
    # JAX may abort it while it waits for the others to hear.
    return 'ended with a line that names it', status in (3, -signal.SIGABRT)
  by_jax = _NAMED_BY_JAX[victim == 0].format(victim)
  if status == -signal.SIGABRT and re.search(by_jax, text):
    return 'ended by JAX, which names it', True
  lines = [line for line in text.splitlines() if line[:5] != '    @']
  return f'process {index} has status {status}: {lines[-5:]}', False


def _complete(group: _Group) -> None:
  for index in range(group.count):
    if not group.ends(index, 600) or group.statuses[index]:
      raise RuntimeError(f'a run failed by itself:\n{group.read(index)}')
