"""Results, the choice of trials, and the command, interrupted and resumed."""

import argparse
import ast
import dataclasses
import json
import math
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments import rerun, run, schedule, studies, trial, tuning
from experiments.arms import ARMS
from tests.support import runs

_STUDY = studies.STUDIES['toy']


def _line(one, loss=1.0, **more):
  return {
    'cell': one.cell,
    'arm': one.arm,
    'options': dict(one.options),
    'seed': one.seed,
    'loss': loss,
    'diverged': not math.isfinite(loss),
    **more,
  }


def test_lines_survive_a_torn_end(tmp_path):
  path = tmp_path / 'results' / 'study.jsonl'
  first, second, third = (
    trial.make('cell', 'arm', {'b': 2.0, 'a': 1}, seed) for seed in range(3)
  )
  trial.append(path, _line(first))
  with path.open('a') as file:
    file.write(json.dumps(_line(second))[:30])  # killed while writing
  trial.append(path, _line(third, math.nan))
  trial.append(path, _line(first, 9.0))  # of another machine
  lines = trial.read(path)
  assert list(lines) == [first.key, third.key]
  assert trial.losses(lines.values()) == {first.key: 1.0, third.key: math.inf}
  assert [trial.of_line(line) for line in lines.values()] == [first, third]


def test_numbers_of_a_line_keep_eight_digits(tmp_path):
  path = tmp_path / 'study.jsonl'
  one = trial.make('cell', 'arm', {'rate': 2e-3 / 3}, 0)
  trial.append(path, _line(one, 1 / 3, curve=[[1, 2 / 3]]))
  (line,) = trial.read(path).values()
  assert line['curve'] == [[1, 0.66666667]]
  # Options are as they were, or the trial would not be found again.
  assert trial.of_line(line) == one


def _bowl(one):
  options = dict(one.options)
  return (
    3
    + sum(math.log2(options[name] / 4e-3) ** 2 for name in tuning.RATES) * 0.01
    + one.seed * 0.1
  )


def test_a_study_is_run_to_its_end_without_repetition():
  study = dataclasses.replace(
    _STUDY, blocks=(('toy_v512', ('sage', 'sinkgd')),)
  )
  losses, order = {}, []
  while ready := schedule.missing_trials(study, losses):
    assert ready[0].key not in losses
    losses[ready[0].key] = _bowl(ready[0])
    order.append(ready[0])
  assert len(order) == len(losses) == 2 * (14 + 20)
  for cell, arm in studies.arms_of(study):
    progress = schedule.progress(study, cell, arm, losses)
    assert progress.left == 0
    assert progress.done == 34
    assert progress.tuned.options['embedding_rate'] == 4e-3
  # The first arm is finished before the second one begins.
  assert [t.arm for t in order] == ['sage'] * 34 + ['sinkgd'] * 34


def test_a_later_study_starts_from_tuned_options_and_moves_the_rates():
  later = studies.Study(
    'later', (('medium_tied', ('sage',)),), (1, 2), 5, after='small_tied'
  )
  losses = {}
  before = dataclasses.replace(
    studies.STUDIES['small_tied'], blocks=(('small_tied', ('sage',)),)
  )
  while ready := schedule.missing_trials(before, losses):
    assert not schedule.missing_trials(later, losses)
    losses |= {t.key: _bowl(t) - dict(t.options)['weight_decay'] for t in ready}
  (pair,) = studies.arms_of(before)
  start = schedule.progress(before, *pair, losses).tuned.options
  assert start['weight_decay'] == tuning.WEIGHT_DECAYS[-1]
  found = []
  while ready := schedule.missing_trials(later, losses):
    found += ready
    losses |= {t.key: _bowl(t) for t in ready}
  # The best point, its four neighbors, and two fresh seeds of it.
  assert len(found) == 5 + 2
  assert dict(found[-1].options) == start
  assert {dict(t.options)['weight_decay'] for t in found} == {1.0}
  assert {dict(t.options)['beta'] for t in found} == {start['beta']}


def test_a_later_study_can_tune_the_decay_from_0():
  earlier = studies.STUDIES['small_tied']
  later = studies.Study(
    'later',
    (('medium_tied', ('sage',)),),
    (1,),
    5,
    after='small_tied',
    again=('weight_decay',),
  )
  before = dataclasses.replace(earlier, blocks=(('small_tied', ('sage',)),))
  losses = {}
  while ready := schedule.missing_trials(before, losses):
    losses |= {t.key: _bowl(t) - dict(t.options)['weight_decay'] for t in ready}
  tried = []
  while ready := schedule.missing_trials(later, losses):
    tried += [dict(t.options)['weight_decay'] for t in ready]
    losses |= {t.key: _bowl(t) - dict(t.options)['weight_decay'] for t in ready}
  assert tried[:5] == [0.0] * 5  # The rates come first.
  assert tried[-1] == tuning.WEIGHT_DECAYS[-1]


def test_similar_arms_try_each_others_options():
  study = dataclasses.replace(
    _STUDY, blocks=(('toy_v512', ('sage', 'lion', 'adamw')),), seeds=(1,)
  )
  hidden = {'embedding_rate': 0.5, 'matrix_rate': 0.5}

  def loss(trial):
    options = dict(trial.options)
    found = options.items() >= hidden.items()
    return -1.0 if found else _bowl(trial)

  losses = {}
  # SAGE finds by another start what the search of Lion does not reach.
  study = dataclasses.replace(study, starts={'sage': hidden})
  while ready := schedule.missing_trials(study, losses):
    losses |= {t.key: loss(t) for t in ready}
  for name, finds in (('sage', True), ('lion', True), ('adamw', False)):
    options = schedule.progress(
      study, 'toy_v512', study.arm(name), losses
    ).tuned.options
    assert (options['embedding_rate'] == 0.5) == finds, name


def test_a_study_can_start_single_arms_elsewhere():
  study = dataclasses.replace(
    _STUDY,
    blocks=(('toy_v512', ('sage', 'lion')),),
    start={'embedding_rate': 0.5, 'matrix_rate': 0.25},
    starts={'lion': {'embedding_rate': 2.0, 'beta': 0.95}},
  )
  for arm, rate, beta in (('sage', 0.5, 0.99), ('lion', 2.0, 0.95)):
    first = schedule.missing_trials(study, {}, only=[arm])
    options = [dict(trial.options) for trial in first]
    assert {o['embedding_rate'] for o in options} == {
      rate / 2, rate, rate * 2,
    }  # fmt: skip
    assert {(o['matrix_rate'], o['beta']) for o in options} == {(0.25, beta)}


def test_shards_are_a_partition():
  parts = [
    list(studies.arms_of(_STUDY, shard=(index, 3))) for index in range(3)
  ]
  everything = list(studies.arms_of(_STUDY))
  assert sum(map(len, parts)) == len(everything)
  assert all(pair in everything for part in parts for pair in part)
  assert len({(c, a.name) for part in parts for c, a in part}) == len(
    everything
  )


def test_workers_get_different_trials_and_batches_of_one_arm():
  losses = {}
  ready = schedule.missing_trials(_STUDY, losses)
  first = run.choose(ready, set(), None, 1)
  second = run.choose(ready, {first[0].key}, None, 1)
  assert first != second
  batch = run.choose(ready, set(), 'sage', 8)
  assert len({(t.cell, t.arm) for t in batch}) == 1
  assert len({t.key for t in batch}) == len(batch) > 1
  assert run.choose(ready, {t.key for t in ready}, None, 1) == []


def test_every_block_names_known_arms_and_cells():
  from experiments.cells import CELLS, config_of

  for study in studies.STUDIES.values():
    for cell, arms in study.blocks:
      if CELLS[cell].kind != 'vit':
        config_of(CELLS[cell])
      assert set(arms) <= set(ARMS)
    names = {arm.name for _, arm in studies.arms_of(study)}
    assert set(study.starts) <= names
    assert all(study.budget_of(name) <= study.budget for name in names)


def test_arms_that_decide_no_question_may_have_fewer_trials():
  study = studies.STUDIES['small_recipes']
  assert study.budget_of('recipe_sage_hybrid') == 14
  counts = []
  for name in ('recipe_sage_hybrid', 'recipe_apollo'):
    losses = {}
    start = ARMS[name].start | study.starts.get(name, {})
    while ready := schedule.missing_trials(study, losses, only=[name]):
      if any(one.seed for one in ready):
        break  # The search is over.
      for one in ready:
        losses[one.key] = 1.0 + (dict(one.options) != start)
    counts.append(len(losses))
  assert counts[0] >= 14 > counts[1] >= 9


def test_rerun_chooses_the_same_lines_whatever_their_order(tmp_path):
  trials = [trial.make('toy_v512', 'sage', {'a': i}, 0) for i in range(20)]
  for folder, order in (('a', trials), ('b', trials[::-1])):
    for one in order:
      trial.append(trial.path_of('toy', tmp_path / folder), _line(one))
  chosen = [rerun.choose(tmp_path / f, 5, 1, None) for f in 'ab']
  assert chosen[0] == chosen[1]
  assert len(chosen[0]) == 5
  line = chosen[0][0]
  assert rerun.compare(line, {**line, 'loss': line['loss'] + 1}) == 1
  assert rerun.compare(line, {**line, 'diverged': True}) == math.inf


def test_sources_are_all_that_the_studies_import():
  ours = {path.parent.name for path in runs.ROOT.glob('*/__init__.py')}
  found, todo = set(), ['experiments']
  while todo:
    folder = todo.pop()
    found.add(folder)
    for path in (runs.ROOT / folder).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
          names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
          names = [node.module]
        roots = {name.partition('.')[0] for name in names}
        todo += (roots & ours) - found - set(todo)
  assert set(run.SOURCES) == found


@pytest.fixture
def tiny_study(tmp_path, monkeypatch):
  """A file that defines a study of a second, for `run` and `rerun`."""
  runs.write_data(tmp_path / 'data')
  script = tmp_path / 'tiny.py'
  script.write_text(f"""
import dataclasses, sys
from experiments import cells, rerun, run, studies
cells.CELLS['tiny'] = dataclasses.replace(
  cells.CELLS['toy_v512'], name='tiny', vocab_size=300, width=4, tokens=32,
  steps=40, evaluations=2, data={str(tmp_path / 'data')!r})
studies.STUDIES['toy'] = studies.Study(
  'toy', (('tiny', ('sage', 'lion')),), (1, 2), budget=5,
  start={{'embedding_rate': 0.03, 'matrix_rate': 0.03}})
if __name__ == '__main__':
  if sys.argv[1] == 'rerun':
    sys.exit(rerun.main(sys.argv[2:]))
  sys.exit(run.main(['toy', '--changed', '--workers', '2', *sys.argv[1:]]))
""")
  return script


@pytest.mark.slow
def test_a_killed_study_resumes(tiny_study, tmp_path):
  command = [sys.executable, tiny_study, '--results', tmp_path / 'results']
  environment = {**run.os.environ, 'PYTHONPATH': str(runs.ROOT)}
  kwargs = {'env': environment, 'cwd': runs.ROOT}
  path = trial.path_of('toy', tmp_path / 'results')
  process = subprocess.Popen(command, start_new_session=True, **kwargs)
  deadline = time.monotonic() + 120
  while len(trial.read(path)) < 3 and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  before = path.read_bytes()
  assert before.count(b'\n') >= 3
  subprocess.run(command, check=True, timeout=200, **kwargs)
  after = path.read_bytes()
  assert after.startswith(before)
  lines = trial.read(path)
  assert after.count(b'\n') == len(lines)  # nothing twice
  for line in lines.values():
    assert not line['diverged']
    assert {'commit', 'versions', 'tokens', 'curve', 'spikes'} <= line.keys()
  again = subprocess.run(
    [*command[:2], 'rerun', '--count', '2', *command[2:]],
    check=True,
    capture_output=True,
    text=True,
    timeout=200,
    **kwargs,
  )
  gaps = re.findall(r'difference (\S+)', again.stdout)
  assert len(gaps) == 2
  assert max(map(float, gaps)) < 1e-7  # Lines keep eight digits.
  assert '2 of 2 agree' in again.stdout


class _Idle:
  idle, running, arms = [object()], {}, {}

  def start(self, channel, trials):
    raise AssertionError('started a trial')


def _runner(tmp_path, minutes):
  args = argparse.Namespace(
    minutes=minutes, only=None, shard=(0, 1), results=tmp_path, batch=1
  )
  return run.StudyRunner(args, 'commit')


def test_minutes_end_a_run(tmp_path):
  assert not _runner(tmp_path, 1e-9).run(_STUDY, _Idle())


def test_a_study_that_waits_for_another_is_not_complete(tmp_path, capsys):
  later = studies.STUDIES['medium']
  assert not _runner(tmp_path, None).run(later, _Idle())
  assert 'wait for small_recipes' in capsys.readouterr().out
