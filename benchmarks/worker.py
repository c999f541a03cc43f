"""The processes that take training steps on request.

Imports neither JAX nor PyTorch: a worker has one of them.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[int], float]


def serve(make: Callable[[dict[str, Any]], tuple[Step, Any]]) -> None:
  """Answers requests from standard input until it ends.

  Args:
    make: Receives the job; returns a function that takes a step and returns
      its loss, and the versions of its libraries.
  """
  job = json.loads(sys.argv[1])
  # Set before the library starts its threads, so that it starts as many.
  cores = sorted(os.sched_getaffinity(0))[: job['threads']]
  os.sched_setaffinity(0, cores)
  # Output printed by libraries must not be read as an answer.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  step, versions = make(job)
  print(json.dumps(versions), file=answers, flush=True)
  for line in sys.stdin:
    began = time.perf_counter()
    loss = step(int(line))
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, loss]), file=answers, flush=True)


class Worker:
  """A process that takes a step on request.

  Attributes:
    versions: Name -> version of its libraries.
  """

  def __init__(self, python: str, module: str, job: dict[str, Any]):
    self._module = module
    self._process = subprocess.Popen(
      [python, '-m', module, json.dumps(job)],
      cwd=pathlib.Path(__file__).parent.parent,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    self.versions: dict[str, str] = self._answer()

  def step(self, index: int) -> tuple[float, float]:
    """Takes step `index`, the next one; returns its seconds and its loss."""
    assert self._process.stdin is not None
    self._process.stdin.write(f'{index}\n'.encode())
    self._process.stdin.flush()
    seconds, loss = self._answer()
    return seconds, loss

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()

  def _answer(self) -> Any:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    raise RuntimeError(
      f'{self._module} ended with status {self._process.wait()}: see above'
    )
