"""What the drills share: forked runs, their ends, and comparisons."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable


@dataclasses.dataclass
class Result:
  """What a drill found.

  Attributes:
    name: What was drilled.
    tries: Kills or flips.
    counts: Outcome -> how often.
    failed: What must not happen, in words.
  """

  name: str
  tries: int
  counts: dict[str, int]
  failed: list[str]

  def row(self) -> str:
    counts = ', '.join(f'{n} {name}' for name, n in self.counts.items())
    failed = '; '.join(self.failed) or 'none'
    return f'| {self.name} | {self.tries} | {counts} | {failed} |'


def call(action: Callable[[], int], log: pathlib.Path) -> int:
  """Runs an action in a forked process; returns its id."""
  sys.stdout.flush()
  pid = os.fork()
  if pid:
    return pid
  status = 70
  try:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, 'w', buffering=1)
    status = action()
  except BaseException:
    import traceback

    traceback.print_exc()
  finally:
    sys.stdout.flush()
    os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
  """The status of a process, or None if it still runs after so long."""
  end = time.monotonic() + seconds
  while True:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      return os.waitstatus_to_exitcode(status)
    if time.monotonic() > end:
      return None
    time.sleep(0.002)


def read(path: pathlib.Path) -> str:
  with contextlib.suppress(OSError):
    return path.read_text(errors='replace')
  return ''


def compare_runs(whole: pathlib.Path, torn: pathlib.Path) -> str | None:
  """Compares checksums of the last state, metrics and results."""

  def content(workdir):
    from train.results import run_log

    last = max(
      (workdir / 'checkpoints').glob('[0-9]*'), key=lambda p: int(p.name)
    )
    described = json.loads((last / 'run' / 'metadata').read_text())
    records = [
      {k: v for k, v in r.items() if k != 'timing'}
      for r in run_log.read(workdir / run_log.FILE)
    ]
    results = json.loads((workdir / 'results.json').read_text())
    return {
      'state': (described['step'], described['checksums']),
      'metrics': records,
      'results': results['validation'],
      'sample': (workdir / 'sample.txt').read_text(),
    }

  try:
    a, b = content(whole), content(torn)
  except (OSError, ValueError, KeyError) as error:
    return f'incomplete: {error}'
  return next((f'{name} differs' for name in a if a[name] != b[name]), None)
