"""The text of a cell."""

import fcntl

from experiments import worker
from experiments.cells import Cell, config_of
from train import inputs
from train.distributed import signals


def open_text(cell: Cell) -> inputs.Inputs:
  """Opens the text of a cell, and prepares it the first time.

  `train` refuses data that another process is preparing. The processes of a
  study wait for each other.
  """
  worker.CACHE.mkdir(parents=True, exist_ok=True)
  with (worker.CACHE / 'text.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    return inputs.open_inputs(config_of(cell), signals.Stop(), lambda _: None)
