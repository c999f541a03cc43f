"""Tests of train.lock and train.distributed.signals with real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from train import errors, lock
from train.distributed import signals

_ROOT = pathlib.Path(__file__).parents[2]
_HOLDER = """
import sys, time
from train import lock
with lock.hold(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""
_BUSY = """
import hashlib
from train import signals
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
  workdir = tmp_path / 'run'
  process = _start(_HOLDER, workdir)
  before = (workdir / lock.FILE).read_text()
  try:
    with (
      pytest.raises(errors.UserError, match=f'process {process.pid} on'),
      lock.hold(workdir),
    ):
      pass
  finally:
    _end(process)  # SIGKILL: its lock file stays
  assert (workdir / lock.FILE).read_text() == before
  with lock.hold(workdir):
    assert f'"pid": {os.getpid()},' in (workdir / lock.FILE).read_text()


def test_lock_is_free_after_the_context(tmp_path):
  for _ in range(2):
    with lock.hold(tmp_path):
      pass


def test_unwritable_place_is_a_user_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(errors.UserError, match=r'--config\.workdir'),
    lock.hold(tmp_path / 'file' / 'run'),
  ):
    pass


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_sets_the_flag_and_handlers_return(number):
  before = signal.getsignal(number)
  with signals.catch() as stop:
    assert list(stop.watch([1, 2])) == [1, 2]
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 10
    while not stop() and time.monotonic() < deadline:
      time.sleep(0.01)
    assert stop.status == 128 + number
    with pytest.raises(errors.Interrupted):
      list(stop.watch([1, 2]))
  assert signal.getsignal(number) is before


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
    assert process.wait(timeout=10) == 130
  finally:
    _end(process)
