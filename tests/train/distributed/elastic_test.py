"""Several processes train as one, and go on on other devices and processes."""

import signal

import numpy as np
import pytest

from tests.support import runs
from train.data import loader, shards
from train.results import report, run_log

pytestmark = pytest.mark.slow

# What the devices are, as the configuration says it.
_MESH = 'mesh.data={} --config.mesh.fsdp={} --config.mesh.tensor={}'


def _mesh(*sizes):
  return [f'--config.{o}' for o in _MESH.format(*sizes).split(' --config.')]


def _train(args, count, devices, moment=None):
  """Trains to the end, or to a signal at a moment."""
  if moment is None:
    moment = ('never', 'SIGTERM')
  started = runs.start_all(
    ['train', *moment, *args],
    count,
    devices,
    module='tests.support.interrupted',
  )
  return runs.ends(started, timeout=900)


def _records(workdir):
  """Numbers that were recorded, in order, but those of clocks."""
  return [
    {k: v for k, v in record.items() if k != 'timing'}
    for record in run_log.read(workdir / run_log.FILE)
  ]


def _assert_same(got, wanted, tolerance):
  assert [r['step'] for r in got] == [r['step'] for r in wanted]
  for record, other in zip(got, wanted, strict=True):
    assert set(record) == set(other)
    for name, value in record.items():
      np.testing.assert_allclose(value, other[name], rtol=tolerance)


def _assert_batches(directory, source, seed, seq_len, batch_size, steps):
  """Every row that any process gave its devices is the one it must be."""
  stream = shards.open_split(source, 'train')
  batches = loader.train_iterator(
    stream, seq_len=seq_len, batch_size=batch_size, seed=seed, start_step=0
  )
  for step in range(1, steps + 1):
    batch = next(batches)
    seen = set()
    for path in directory.glob(f'{step}-*.npz'):
      with np.load(path) as part:
        assert part['batch_size'] == batch_size
        np.testing.assert_array_equal(part['batch'], batch[part['rows']])
        seen.update(part['rows'].tolist())
    assert seen == set(range(batch_size)), step


def test_goes_on_elsewhere_after_signals_and_deaths(tmp_path, monkeypatch):
  source = runs.write_data(tmp_path / 'data')
  options = (
    'train.steps=40',
    'train.dtype=float64',
    'optimizer.recipe=adamw',
  )
  whole, moved = tmp_path / 'whole', tmp_path / 'moved'
  args = runs.command(source, whole, *options)
  statuses, _, errs = _train([*args, *_mesh(1, 4, 1)], 1, 4)
  assert statuses == [0], errs
  (tmp_path / 'batches').mkdir()
  monkeypatch.setenv('BATCHES', str(tmp_path / 'batches'))
  args = runs.command(source, moved, *options)

  def go_on(count, devices, mesh, moment=None):
    return _train([*args, *_mesh(*mesh)], count, devices, moment)

  # A signal to one of them stops all after the same step, with the state saved.
  statuses, outs, errs = go_on(4, 1, (1, 2, 2), ('step:13@1', 'SIGTERM'))
  assert statuses == [143] * 4, errs
  saved = _records(moved)[-1]['step']
  assert f'The state of step {saved} is in' in outs[0]
  assert 'Stopped. Rerun the same command' in outs[0]
  assert 13 <= saved < 40
  for text in outs[1:]:
    assert not runs.without_gloo(text)

  # A death ends the other, which says who died; or JAX says it for it.
  at = saved + 1
  statuses, outs, errs = go_on(2, 1, (2, 1, 1), (f'step:{at}@1', 'SIGKILL'))
  assert f'Resuming from the checkpoint of step {saved}' in outs[0]
  assert 'processes was 4 and is 2' in outs[0]
  assert statuses[1] == -signal.SIGKILL
  assert statuses[0] in (3, -signal.SIGABRT)
  assert 'error: process 1 of 2 (on ' in errs[0] or 'unhealthy' in errs[0]

  statuses, outs, errs = go_on(2, 2, (1, 2, 2))
  assert statuses == [0, 0], errs
  assert f'Resuming from the checkpoint of step {saved}' in outs[0]
  assert 'is complete: 40 steps' in outs[0]
  assert (moved / report.RESULTS).exists()
  _assert_same(_records(moved), _records(whole), 1e-9)
  _assert_batches(
    tmp_path / 'batches', source, seed=0, seq_len=32, batch_size=8, steps=40
  )
