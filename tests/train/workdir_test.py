"""Tests of train.workdir and train.distributed.signals with real processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from train import errors, workdir
from train.distributed import signals

_RUN = {'model.hidden_size': 8, 'optimizer.recipe': 'sage', 'mesh': (1, 2)}
_ROOT = pathlib.Path(__file__).parents[2]
_HOLDER = """
import sys, time
from train import workdir
with workdir.hold(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""
_BUSY = """
import hashlib
from train.distributed import signals
signals.quit_at_once()
with signals.catch() as stop:
  print('ready', flush=True)
  # One C call that no Python handler interrupts, as a compilation.
  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
"""


def _start(script, *args):
  process = subprocess.Popen(
    [sys.executable, '-c', script, *map(str, args)],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.readline()
  return process


def _end(process):
  process.kill()
  process.communicate()


def test_live_holder_refuses_and_a_killed_one_does_not(tmp_path):
  path = tmp_path / 'run'
  process = _start(_HOLDER, path)
  before = (path / workdir.LOCK).read_text()
  try:
    with (
      pytest.raises(errors.UserError, match=f'process {process.pid} on'),
      workdir.hold(path),
    ):
      pass
  finally:
    _end(process)  # SIGKILL: its lock file stays
  assert (path / workdir.LOCK).read_text() == before
  with workdir.hold(path):
    assert f'"pid": {os.getpid()},' in (path / workdir.LOCK).read_text()


def test_lock_is_free_after_the_context(tmp_path):
  for _ in range(2):
    with workdir.hold(tmp_path):
      pass


def test_unwritable_place_is_a_user_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(errors.UserError, match=r'--config\.workdir'),
    workdir.hold(tmp_path / 'file' / 'run'),
  ):
    pass


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_sets_the_flag_and_handlers_return(number):
  before = signal.getsignal(number)
  with signals.catch() as stop:
    assert list(signals.watch([1, 2], stop)) == [1, 2]
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 120
    while not stop() and time.monotonic() < deadline:
      time.sleep(0.01)
    assert stop.status == 128 + number
    with pytest.raises(errors.Interrupted):
      list(signals.watch([1, 2], stop))
  assert signal.getsignal(number) is before


def test_where_ctrl_c_is_ignored_sigterm_is_not():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with signals.catch() as stop:
      assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGTERM)
      deadline = time.monotonic() + 100
      while not stop() and time.monotonic() < deadline:
        time.sleep(0.01)
      assert stop.signum == signal.SIGTERM
  finally:
    signal.signal(signal.SIGINT, before)


def test_second_ctrl_c_ends_a_process_inside_a_long_c_call():
  process = _start(_BUSY)
  try:
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == '\n'
    assert 'SIGINT: stopping cleanly' in process.stderr.readline()
    process.send_signal(signal.SIGTERM)  # passed on twice by make: no matter
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
  finally:
    _end(process)


def test_workdir_of_another_run(tmp_path):
  path = tmp_path / 'run'
  workdir.check(path, _RUN)
  assert not path.exists()
  path.mkdir()
  workdir.claim(path, _RUN, {})
  assert [p.name for p in path.iterdir()] == [workdir.RUN_FILE]
  workdir.check(path, _RUN)
  for other, message in (
    (_RUN | {'model.hidden_size': 9}, r'model\.hidden_size is 8, now it is 9'),
    (_RUN | {'new': 1}, 'new is not set, now it is 1'),
    ({**_RUN, 'mesh': None}, r'mesh is \[1, 2\], now it is not set'),
    (
      {k: v for k, v in _RUN.items() if k != 'optimizer.recipe'},
      r"optimizer\.recipe is 'sage', now it is not set",
    ),
  ):
    with pytest.raises(errors.UserError, match=message):
      workdir.check(path, other)
  early = {k: v for k, v in _RUN.items() if k != 'mesh'}
  workdir.check(path, early, unknown=('mesh',))
  workdir.check(path, _RUN | {'option': None})
  (path / workdir.RUN_FILE).write_text(json.dumps(_RUN)[:-1])
  with pytest.raises(errors.UserError, match='cannot be read'):
    workdir.check(path, _RUN)


def test_warns_if_sums_are_rounded_otherwise_than_when_the_run_began(tmp_path):
  def claim(**rounding):
    return workdir.claim(tmp_path, _RUN, rounding)

  assert claim(jax='1', remat='full') is None
  # Nothing was computed yet, so the run begins here.
  assert claim(jax='2', remat='none') is None
  (tmp_path / workdir.CHECKPOINTS / '10').mkdir(parents=True)
  assert claim(jax='2', remat='none') is None
  for _ in range(2):  # What the run began with stays written down.
    line = claim(jax='3', remat='none')
    assert "jax was '2' and is '3'" in line
    assert 'remat' not in line
    assert 'rounding' in line
    assert 'data order' not in line
  assert claim(jax='2', remat='none') is None


def test_another_grain_may_change_the_data_order(tmp_path):
  workdir.claim(tmp_path, _RUN, {'grain': '1'})
  (tmp_path / workdir.CHECKPOINTS / '10').mkdir(parents=True)
  assert 'data order' in workdir.claim(tmp_path, _RUN, {'grain': '2'})


def test_a_run_that_recorded_no_arguments_of_methods_is_refused(tmp_path):
  now = _RUN | {'recipe.matrix.num_iters': 5}
  workdir.check_same(json.loads(json.dumps(now)), now, 'here')
  with pytest.raises(errors.UserError, match='run of an earlier version'):
    workdir.check_same(_RUN, now, str(tmp_path))
