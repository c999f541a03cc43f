"""A process that runs trials in one thread."""

import importlib
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

# One thread for products; the pool of threads is limited in `one_thread`.
ENVIRONMENT = {
  'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
  'OMP_NUM_THREADS': '1',
  # Huge pages: on CPU, XLA allocates its temporaries in every step.
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
}
# Kind of cell -> module and class.
_RUNNERS = {
  'bigram': ('experiments.text.bigram', 'BigramRunner'),
  'llama': ('experiments.text.llama', 'LlamaRunner'),
  'vit': ('experiments.vision.runner', 'VitRunner'),
}
# Compiled steps, shared by processes.
CACHE = pathlib.Path(__file__).parent.parent / '.cache' / 'experiments'
# Number of compiled steps that a worker keeps; arms run one after the other.
_KEPT = 4


def one_thread() -> None:
  """Starts JAX with a pool of one thread, which may run on any core."""
  cores = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(cores)})
  import jax

  jax.config.update('jax_compilation_cache_dir', str(CACHE))
  jax.devices()
  for thread in os.listdir('/proc/self/task'):
    os.sched_setaffinity(int(thread), cores)


class Bench:
  """Runs trials, and keeps the compiled steps of the last arms."""

  def __init__(self) -> None:
    self._runners: dict[tuple[str, str], Any] = {}

  def run(self, trials: Sequence[Any]) -> list[dict[str, Any]]:
    """Runs trials of one cell and arm; returns their outcomes."""
    key = trials[0].cell, trials[0].arm
    runner = self._runners.pop(key, None)
    if runner is None:
      runner = _runner(*key)
    self._runners[key] = runner
    while len(self._runners) > _KEPT:
      del self._runners[next(iter(self._runners))]
    return runner.run(trials)


def _runner(cell_name: str, arm_name: str) -> Any:
  """The runner of an arm in a cell; imports what this kind of cell needs."""
  from experiments.arms import ARMS
  from experiments.cells import CELLS

  cell = CELLS[cell_name]
  module, name = _RUNNERS[cell.kind]
  runner = getattr(importlib.import_module(module), name)
  return runner(cell, ARMS[arm_name])


def versions() -> dict[str, str]:
  """Returns the versions that, beside the commit, affect results."""
  import jax
  import numpy as np
  import optax

  return {
    'python': '.'.join(map(str, sys.version_info[:3])),
    'jax': jax.__version__,
    'optax': optax.__version__,
    'numpy': np.__version__,
    'device': jax.devices()[0].device_kind,
  }


def serve(channel: Any) -> None:
  """Runs the batches of trials that arrive, until the channel closes.

  Args:
    channel: A `multiprocessing` connection. It receives lists of trials, and
      sends pairs of outcomes and versions, or the text of an error.
  """
  try:
    one_thread()
    bench = Bench()
    while True:
      trials = channel.recv()
      try:
        channel.send((bench.run(trials), versions()))
      except Exception:
        channel.send(traceback.format_exc())
  except (EOFError, BrokenPipeError, KeyboardInterrupt):
    pass  # The parent has ended.
