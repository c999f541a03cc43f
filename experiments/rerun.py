"""Runs recorded trials again, from their lines, and compares.

  python -m experiments.rerun [--count 10] [--seed 0] [--study NAME]

Prints the recorded and the new loss of each trial, and versions that differ
from the recorded ones. The tolerance allows for float32 rounding, which sign
methods amplify over a run; two runs with the same code, versions and kind of
device should agree in the eight digits that are recorded.
"""

import argparse
import pathlib
import random
import sys
from typing import Any

from experiments import run, studies, trial

# In nats, between versions or devices.
TOLERANCE = 5e-3


def choose(
  results: pathlib.Path, count: int, seed: int, study: str | None
) -> list[dict[str, Any]]:
  """Random lines of the results, which depend only on the seed."""
  names = [study] if study else sorted(studies.STUDIES)
  lines = [
    line
    for name in names
    for line in trial.read(trial.path_of(name, results)).values()
  ]
  # Sorted, so that the order of completion does not matter.
  lines.sort(key=lambda line: trial.of_line(line).key)
  return random.Random(seed).sample(lines, min(count, len(lines)))


def compare(line: dict[str, Any], outcome: dict[str, Any]) -> float:
  """The difference of the final losses; infinite if only one run diverged."""
  if line['diverged'] != outcome['diverged']:
    return float('inf')
  return 0.0 if line['diverged'] else abs(line['loss'] - outcome['loss'])


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns 1 if a loss differs by too much."""
  parser = argparse.ArgumentParser(prog='python -m experiments.rerun')
  parser.add_argument('--count', type=int, default=10)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--study', choices=sorted(studies.STUDIES))
  parser.add_argument('--results', type=pathlib.Path, default=trial.RESULTS)
  args = parser.parse_args(argv)
  lines = choose(args.results, args.count, args.seed, args.study)
  if not lines:
    sys.exit(f'{args.results} has no results: run python -m experiments.run.')
  pool, bad = run.WorkerPool(1), 0
  for line in lines:
    one = trial.of_line(line)
    pool.start(pool.idle[0], [one])
    ((_, answer),) = pool.finished()
    if isinstance(answer, str):
      sys.exit(f'{one} failed:\n{answer}')
    (found,), here = answer
    gap = compare(line, found)
    bad += gap > TOLERANCE
    changed = {
      name: f'{line["versions"][name]} -> {version}'
      for name, version in here.items()
      if line['versions'].get(name) != version
    }
    print(
      f'{one.cell} {one.arm} {line["options"]} seed {one.seed}: '
      f'{line["loss"]:.6f} recorded, {found["loss"]:.6f} now, '
      f'difference {gap:.1e} {changed or ""}',
      flush=True,
    )
  pool.close()
  print(f'{len(lines) - bad} of {len(lines)} agree within {TOLERANCE} nats.')
  return int(bad > 0)


if __name__ == '__main__':
  sys.exit(main())
