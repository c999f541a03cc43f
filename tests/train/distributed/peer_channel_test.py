"""Several processes hear of each other's words, errors and deaths."""

import signal

import pytest

from tests.support import runs

_COUNT = 3


def _talk(directory, scenario):
  """Statuses, standard outputs and errors of three processes."""
  args = [str(directory), str(_COUNT), scenario]
  started = [
    runs.start([*args, str(i)], module='tests.support.talking')
    for i in range(_COUNT)
  ]
  return runs.ends(started)


def test_share(tmp_path):
  statuses, outs, errs = _talk(tmp_path, 'share')
  assert (statuses, outs, errs) == ([7] * 3, [''] * 3, [''] * 3)


@pytest.mark.parametrize(
  ('scenario', 'dead'), [('first_dies', 0), ('last_dies', 2)]
)
def test_death_is_named(tmp_path, scenario, dead):
  statuses, _, errs = _talk(tmp_path, scenario)
  for index in range(_COUNT):
    if index == dead:
      assert statuses[index] == -signal.SIGKILL
    else:
      assert statuses[index] == 3
      assert errs[index].startswith(f'error: process {dead} of 3 (on ')
      assert ') died. Start all processes again' in errs[index]
      assert errs[index].count('\n') == 1


def test_error_of_one_that_the_user_can_mend(tmp_path):
  statuses, _, errs = _talk(tmp_path, 'one_refuses')
  assert statuses == [2] * 3
  assert errs[0].startswith('error: process 1 of 3 (on ')
  assert errs[0].endswith('): no such data: make it\n')
  assert errs[1:] == [errs[0], '']


def test_error_of_all_is_told_once(tmp_path):
  statuses, _, errs = _talk(tmp_path, 'all_refuse')
  assert statuses == [2] * 3
  assert errs == ['error: no such option: leave it out\n', '', '']


def test_failure_of_one_comes_before_what_it_causes(tmp_path):
  statuses, _, errs = _talk(tmp_path, 'one_fails')
  assert statuses == [3, 1, 3]
  line = ') failed (OSError: no space left). Start all'
  for err in errs:
    assert line in err
    assert 'error: process 1 of 3 (on ' in err
    assert 'connection reset' not in err
  assert [err.count('Traceback') for err in errs] == [0, 1, 0]


def test_command_of_one_differs(tmp_path):
  statuses, _, errs = _talk(tmp_path, 'one_has_another_command')
  assert statuses == [2] * 3
  message = 'has config.train.steps=10, and process 0 has config.train.steps=20'
  assert message in errs[0]


def test_file_that_one_does_not_see(tmp_path):
  statuses, _, errs = _talk(tmp_path, 'one_does_not_see')
  assert statuses == [2] * 3
  assert (
    'is not what process 0 has there: the working directory must' in errs[0]
  )


def test_signal_of_one_stops_the_first(tmp_path):
  statuses, outs, errs = _talk(tmp_path, 'one_is_signalled')
  assert statuses == [143] * 3
  assert outs == ['Stopped. The same command goes on.\n', '', '']
  assert errs[1].strip().startswith('SIGTERM: stopping')
  assert errs[::2] == ['', '']
