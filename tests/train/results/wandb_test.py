"""Records at Weights & Biases, by a stand-in for the package."""

import json
import shutil
import sys

import pytest

from tests.support import runs
from train.results import run_log

# It writes down its calls, in the order in which they come.
_STAND_IN = """
import json, os, pathlib

class Error(Exception):
  pass

def _record(*call):
  with open(os.environ['WANDB_CALLS'], 'a') as file:
    file.write(json.dumps(call) + chr(10))

class _Run:
  step = int(os.environ.get('WANDB_STEP', 0))  # that comes next

  def log(self, values, step):
    _record('log', step, values)

  def finish(self):
    _record('finish')

def init(**kwargs):
  if os.environ.get('WANDB_MODE') != 'offline':
    raise Error('No API key configured.\\nMore lines.')
  _record('init', kwargs)
  return _Run()
"""


@pytest.fixture(name='calls')
def _calls(tmp_path, monkeypatch):
  """Puts the stand-in in the way; returns a function that gives its calls."""
  (tmp_path / 'wandb.py').write_text(_STAND_IN)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'wandb', raising=False)
  path = tmp_path / 'calls.jsonl'
  monkeypatch.setenv('WANDB_CALLS', str(path))
  monkeypatch.setenv('WANDB_MODE', 'offline')
  yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
  sys.modules.pop('wandb', None)


def test_a_run_records_what_its_file_holds(calls, tmp_path):
  data = runs.write_data(tmp_path / 'data')
  workdir = tmp_path / 'run'
  overrides = ('train.steps=3', 'eval.every=2', 'log.wandb=mine')
  assert runs.call(*runs.command(data, workdir, *overrides)) == 0
  (first, started), *logs, last = calls()
  assert first == 'init'
  assert last == ['finish']
  assert started['project'] == 'mine'
  assert started['name'] == 'tiny'
  assert started['dir'] == str(workdir)
  identity = json.loads((workdir / 'run.json').read_text())['run']
  assert started['config'] == identity
  records = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  assert [step for _, step, _ in logs] == [r['step'] for r in records]
  assert {1, 2, 3} <= {step for _, step, _ in logs}
  for (_, _, values), record in zip(logs, records, strict=True):
    del record['step']
    assert values == record | record.pop('timing')


def test_a_resumed_run_is_the_same_run(calls, tmp_path):
  for name in ('a', 'a', 'b'):
    (tmp_path / name).mkdir(exist_ok=True)
    run_log.WeightsAndBiases('p', 'n', tmp_path / name, {}).close()
  # A directory that is made anew is another run.
  shutil.rmtree(tmp_path / 'a')
  (tmp_path / 'a').mkdir()
  run_log.WeightsAndBiases('p', 'n', tmp_path / 'a', {}).close()
  started = [kwargs for call, *(kwargs,) in calls()[::2]]
  assert all(kwargs['resume'] == 'allow' for kwargs in started)
  ids = [kwargs['id'] for kwargs in started]
  assert ids[0] == ids[1]
  assert len(set(ids)) == 3


def test_steps_that_are_recorded_are_not_recorded_again(
  calls, tmp_path, monkeypatch
):
  monkeypatch.setenv('WANDB_STEP', '3')
  run = run_log.WeightsAndBiases('p', 'n', tmp_path, {})
  for step in (2, 3, 4):
    run.write({'step': step, 'loss': 1.0, 'timing': {}})
  run.close()
  assert [step for call, step, *_ in calls()[1:-1]] == [3, 4]


def test_without_a_login(calls, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('WANDB_MODE', 'online')
  data = runs.write_data(tmp_path / 'data')
  args = runs.command(data, tmp_path / 'run', 'log.wandb=mine')
  assert runs.call(*args) == 2
  error = capsys.readouterr().err
  assert 'No API key configured.' in error
  assert 'WANDB_MODE=offline' in error
  assert error.count('\n') == 1
  del calls


def test_without_the_package(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  args = runs.command(tmp_path / 'none', tmp_path / 'run', 'log.wandb=mine')
  assert runs.call(*args) == 2
  assert "pip install -e '.[train,wandb]'" in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()
