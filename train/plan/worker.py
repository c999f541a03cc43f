"""Runs one planning job in a subprocess, for `train.plan.sweep`.

A subprocess returns its memory, and its compiler output can be discarded.
"""

import dataclasses
import json
import pathlib
import resource
import sys
import traceback
from typing import Any

import jax

from train import config as config_lib
from train.errors import UserError
from train.plan import measure, optimizer_collectives, targets


def run(job: dict[str, Any]) -> dict[str, Any]:
  """Runs a job.

  Args:
    job: 'config', a file; 'overrides', such as 'train.steps=10'; 'topology';
      'what', 'step' or 'collectives'; and 'quick', whether to compile with less
      effort.

  Returns:
    'result', or 'error' (a line for the user) or 'failure' (a traceback).
  """
  try:
    config = config_lib.load(job['config'], *job['overrides'])
    if config.train.dtype == 'float64':
      jax.config.update('jax_enable_x64', True)
    target = targets.parse(job['topology'])
    result: Any
    if job['what'] == 'collectives':
      result = [
        dataclasses.asdict(row)
        for row in optimizer_collectives.rows(config, target)
      ]
    else:
      result = dataclasses.asdict(
        measure.measure(config, target, quick=job['quick'])
      )
    return {'result': result}
  except UserError as error:
    return {'error': str(error)}
  except Exception:  # Compilers raise all kinds of exceptions.
    return {'failure': traceback.format_exc()}


def main(job_path: str, answer_path: str) -> None:
  """Reads a job, runs it, and writes the answer."""
  answer = run(json.loads(pathlib.Path(job_path).read_text()))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  pathlib.Path(answer_path).write_text(json.dumps({**answer, 'memory': peak}))


if __name__ == '__main__':
  main(*sys.argv[1:])
