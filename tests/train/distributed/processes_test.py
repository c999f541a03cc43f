"""Several processes learn of each other's words, errors and deaths."""

import signal

from tests.support import runs
from train.distributed import processes


def _talk(directory, scenario, count):
  """Statuses, standard outputs and errors of the processes."""
  args = [str(directory), str(count), scenario, str(runs.free_port())]
  started = [
    runs.start([*args, str(i)], module='tests.support.talking')
    for i in range(count)
  ]
  return runs.ends(started)


def _assert_names(status, err, dead):
  """JAX may abort the process before `processes` has ended it."""
  assert status in (processes.LOST, -signal.SIGABRT), err
  words = [f'error: {dead}', 'ended or cannot be reached. Rerun the same']
  by_jax = {'process 0': 'leader', 'process 1': 'unhealthy'}[dead[:9]]
  assert all(word in err for word in words) or by_jax in err, err


def test_alone_there_is_nothing_to_share():
  assert processes.first_does(lambda: 3) == processes.together(lambda: 3) == 3
  assert processes.is_first()


def test_what_all_must_agree_on(tmp_path):
  statuses, outs, errs = _talk(tmp_path, 'agree', 3)
  assert statuses == [2] * 3, errs
  for text in outs + errs[1:]:
    assert 'error' not in text
  (line,) = [line for line in errs[0].splitlines() if 'error' in line]
  assert line.startswith('error: process 1 of 3 (on ')
  assert line.endswith('): no such data')


def test_death_of_the_first(tmp_path):
  statuses, _, errs = _talk(tmp_path, 'first_dies', 2)
  assert statuses[0] == -signal.SIGKILL
  _assert_names(statuses[1], errs[1], 'process 0 of 2 (on ')


def test_error_of_all(tmp_path):
  statuses, _, errs = _talk(tmp_path, 'all_refuse', 2)
  assert statuses == [2, 2]
  assert errs == ['error: no checkpoint\n', '']


def test_failure_of_one(tmp_path):
  statuses, _, errs = _talk(tmp_path, 'one_fails', 3)
  assert statuses[1] == 1
  assert 'OSError: no space left' in errs[1]
  for index in (0, 2):
    _assert_names(statuses[index], errs[index], 'process 1 of 3 (on ')
