"""Times the steps of a cell's arms, in turns.

  python -m experiments.times [--cell small_tied] [--rounds 5]

The trials of a study run at different times, beside other work and with
different versions of the code, so their times cannot be compared. Here the arms
take turns of ten steps in one process with one thread. Steps that renew a
projection, every 200th, are not among them. Writes results/times_CELL.jsonl, a
line for each arm.
"""

import argparse
import os
import pathlib
import statistics
import sys

from experiments import run, studies, trial, worker
from experiments.arms import ARMS
from experiments.cells import CELLS


def arms_in(cell: str) -> list[str]:
  """Names of the arms of a cell, over all studies."""
  return list(
    dict.fromkeys(
      name
      for study in studies.STUDIES.values()
      for at, names in study.blocks
      if at == cell
      for name in names
    )
  )


def measure(cell: str, arms: list[str], rounds: int) -> dict[str, float]:
  """Returns the core-seconds of a step by arm: the median over rounds."""
  from experiments.text.llama import LlamaRunner

  steppers = {}
  for name in arms:
    runner = LlamaRunner(CELLS[cell], ARMS[name])
    steppers[name] = runner.stepper(trial.make(cell, name, ARMS[name].start, 0))
    steppers[name]()  # a warm-up
    print(f'{name} is compiled', flush=True)
  found: dict[str, list[float]] = {name: [] for name in arms}
  for _ in range(rounds):
    for name, take in steppers.items():
      found[name].append(take())
  return {name: statistics.median(values) for name, values in found.items()}


def main(argv: list[str] | None = None) -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(prog='python -m experiments.times')
  llamas = [name for name, cell in CELLS.items() if cell.kind == 'llama']
  parser.add_argument('--cell', choices=llamas, default='small_tied')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--results', type=pathlib.Path, default=trial.RESULTS)
  args = parser.parse_args(argv)
  commit = run.commit_of(allow_changes=False)
  os.environ.update(worker.ENVIRONMENT)
  worker.one_thread()
  found = measure(args.cell, arms_in(args.cell), args.rounds)
  path = trial.times_of(args.cell, args.results)
  new = path.with_suffix('.new')
  new.unlink(missing_ok=True)
  for arm, seconds in found.items():
    line = {
      'cell': args.cell,
      'arm': arm,
      'step_core_seconds': seconds,
      'commit': commit,
      'versions': worker.versions(),
    }
    trial.append(new, line)
  new.replace(path)
  return 0


if __name__ == '__main__':
  sys.exit(main())
