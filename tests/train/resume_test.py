"""A run that is killed again and again ends as one that never was."""

import json
import os
import random
import signal

import chex
import orbax.checkpoint as ocp
import pytest

from tests.support import runs
from train import workdir
from train.results import report, run_log

_STEPS = 60

pytestmark = pytest.mark.slow


def _trace(workdir):
  """The metrics without what is measured with a clock."""
  records = list(run_log.read(workdir / run_log.FILE))
  return [{k: v for k, v in r.items() if k != 'timing'} for r in records]


def _parameters(workdir):
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(
      (workdir / 'checkpoints' / str(_STEPS) / 'state').absolute()
    )


def _end(process):
  try:
    out, err = process.communicate(timeout=600)
  finally:
    process.kill()
    process.wait()
  return process.returncode, out, err


def _complete(args):
  status, out, err = _end(runs.start(args))
  assert (status, err) == (0, ''), out + err
  return out


def test_interrupted_runs_end_bit_for_bit_as_an_uninterrupted_one(tmp_path):
  data = runs.write_data(tmp_path / 'data')
  whole, torn = tmp_path / 'whole', tmp_path / 'torn'
  args = runs.command(data, torn)
  checkpoints = torn / 'checkpoints'
  rng = random.Random(0)
  _complete(runs.command(data, whole))

  def stop(moment, number, restored):
    """Returns what a run said that had to stop there; checks what it left."""
    process = runs.start(
      ['train', moment, number.name, *args], module='tests.support.interrupted'
    )
    status, out, err = _end(process)
    killed = number == signal.SIGKILL
    assert status == (-number if killed else 128 + number), out + err
    assert (err == '') == killed, err
    assert ('Rerun the same command to resume' in out) != killed
    going_on = f'Resuming from the checkpoint of step {restored}.'
    assert (going_on in out) == (restored > 0), out
    assert 'rounding' not in out
    assert not (torn / report.RESULTS).exists()
    return out

  def kept():
    return sorted(os.listdir(checkpoints))

  # There is nothing to save yet.
  stop('compile', signal.SIGINT, restored=0)
  assert kept() == []

  stop(f'step:{rng.randint(11, 18)}', signal.SIGKILL, restored=0)
  assert kept() == ['10']

  # While it evaluates at step 20, which is done again.
  out = stop('evaluate:1', signal.SIGTERM, restored=10)
  assert 'The state of step 20 is in' in out
  assert _trace(torn)[-1] == _trace(whole)[19]

  # The middle of a save leaves what is ignored, and then removed.
  stop('save:30', signal.SIGKILL, restored=20)
  assert kept()[:2] == ['10', '20']
  assert [name.startswith('30.') for name in kept()[2:]] == [True]

  stop(f'step:{rng.randint(41, 48)}', signal.SIGKILL, restored=20)
  assert '40' in kept()  # Which are removed at the same time varies.

  # The step that the signal meets is saved, whatever its number.
  out = stop('step:53', signal.SIGTERM, restored=40)
  saved = _trace(torn)[-1]['step']
  assert f'The state of step {saved} is in' in out
  assert saved in (53, 54)  # One step is dispatched ahead.
  assert {'50', str(saved)} < set(kept())

  # After the last step, in both of the last evaluations.
  stop('evaluate:1', signal.SIGTERM, restored=saved)
  assert len(_trace(torn)) == _STEPS + 2
  stop('evaluate:2', signal.SIGTERM, restored=_STEPS)
  assert len(_trace(torn)) == _STEPS + 3

  # A claim that another version began this changes what it says, no more.
  path = torn / workdir.RUN_FILE
  content = json.loads(path.read_text())
  content['rounding']['jax'] = '0.0.1'
  path.write_text(json.dumps(content))
  out = _complete(args)
  assert f'Resuming from the checkpoint of step {_STEPS}.' in out
  assert "jax was '0.0.1' and is" in out
  assert len(_trace(torn)) == _STEPS + 3  # evaluations at 20, 40 and the end
  assert _trace(torn) == _trace(whole)
  chex.assert_trees_all_equal(_parameters(torn), _parameters(whole))
