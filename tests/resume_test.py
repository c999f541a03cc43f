"""A run that is killed again and again ends as one that never was."""

import os
import random
import signal
import time

import chex
import orbax.checkpoint as ocp
import pytest

from tests import runs
from train import metrics, report

# Steps of some 30 ms, so that a signal meets the step it is meant for.
_SLOWER = (
  'model.hidden_size=64',
  'train.batch_size=16',
  'train.seq_len=128',
  'train.microbatch=2',
)
_STEPS = 60
_PATIENCE = 120  # seconds

pytestmark = pytest.mark.slow


def _trace(workdir):
  """The metrics without what is measured with a clock."""
  records = list(metrics.read(workdir / metrics.FILE))
  return [{k: v for k, v in r.items() if k != 'timing'} for r in records]


def _last_step(workdir):
  """The last step that the metrics tell of, whole lines only."""
  path = workdir / metrics.FILE
  records = list(metrics.read(path)) if path.exists() else []
  return max((record['step'] for record in records), default=0)


def _parameters(workdir):
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(
      (workdir / 'checkpoints' / str(_STEPS) / 'state').absolute()
    )


def _interrupt(args, number, condition):
  """Starts a run, sends it a signal once `condition()`; returns its end."""
  process = runs.start(args)
  try:
    deadline = time.monotonic() + _PATIENCE
    while not condition() and process.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=_PATIENCE)
  finally:
    process.kill()
    process.wait()
  return process.returncode, out, err


def _complete(args):
  process = runs.start(args)
  out, err = process.communicate(timeout=_PATIENCE)
  assert (process.returncode, err) == (0, ''), out + err
  return out


def test_interrupted_runs_end_bit_for_bit_as_an_uninterrupted_one(tmp_path):
  data = runs.write_data(tmp_path / 'data')
  whole, torn = tmp_path / 'whole', tmp_path / 'torn'
  args = runs.command(data, torn, *_SLOWER)
  checkpoints = torn / 'checkpoints'
  rng = random.Random(0)
  _complete(runs.command(data, whole, *_SLOWER))

  # While it compiles: nothing to save.
  status, out, err = _interrupt(
    args, signal.SIGINT, (torn / 'optimizer.txt').exists
  )
  assert status == 130, out + err
  assert 'SIGINT' in err
  assert 'The same command goes on' in out
  assert not os.listdir(checkpoints)

  # At random steps after the first checkpoint, and in the middle of one.
  def passed(step):
    first = (checkpoints / '10').exists
    return lambda: _last_step(torn) >= step and (step > 20 or first())

  def saving():
    return any(p.name.startswith('30.') for p in checkpoints.iterdir())

  moments = (
    passed(rng.randint(11, 18)),
    saving,
    passed(rng.randint(37, 46)),
  )
  for i, moment in enumerate(moments):
    status, out, err = _interrupt(args, signal.SIGKILL, moment)
    assert (status, err) == (-signal.SIGKILL, '')
    assert ('Going on from the checkpoint' in out) == (i > 0)
    assert _last_step(torn) < _STEPS

  # SIGTERM saves the step it meets, whatever its number.
  status, out, err = _interrupt(
    args, signal.SIGTERM, passed(rng.randint(48, 53))
  )
  assert status == 143, out + err
  saved = max(map(int, os.listdir(checkpoints)))
  assert 48 <= saved == _last_step(torn) < _STEPS
  assert f'The state of step {saved} is in' in out

  # During what comes after the last step.
  status, out, err = _interrupt(
    args, signal.SIGTERM, (checkpoints / str(_STEPS)).exists
  )
  assert status == 143, out + err
  assert f'Going on from the checkpoint of step {saved}' in out
  assert not (torn / report.RESULTS).exists()

  _complete(args)
  assert len(_trace(torn)) == _STEPS + 3  # evaluations at 20, 40 and the end
  assert _trace(torn) == _trace(whole)
  chex.assert_trees_all_equal(_parameters(torn), _parameters(whole))
