"""What a run does when the system fails it, by the real command line."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from tests.support import runs

pytestmark = pytest.mark.slow


def _limited(megabytes):
  """Options of Python that start the trainer with a limit on files' sizes."""
  size = int(megabytes * 2**20)
  return f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {resource.RLIM_INFINITY}))
from train import main
sys.exit(main.main(['main', *sys.argv[1:]]))
"""


def _start(script, args):
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  return subprocess.Popen(
    [sys.executable, '-c', script, *args],
    cwd=runs.ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize('asynchronous', [True, False])
def test_a_file_that_may_not_grow_is_one_line(asynchronous, tmp_path):
  data = runs.write_data(tmp_path / 'data')
  args = runs.command(
    data,
    tmp_path / 'run',
    f'checkpoint.async_={str(asynchronous).lower()}',
    'train.steps=40',
    'checkpoint.every=5',
    'eval.every=0',
  )
  process = _start(_limited(0.02), args)
  (status,), (out,), (err,) = runs.ends([process])
  assert status == 2, out + err
  assert err.startswith('error: ')
  assert err.count('\n') == 1, err
  assert 'ulimit -f' in err
  # Noticed at once, and not ten saves later.
  assert 'step 40/40' not in out
  process = runs.start(args)
  (status,), _, (err,) = runs.ends([process])
  assert (status, err) == (0, '')


def test_a_reader_that_leaves_stops_the_run_with_its_state_saved(tmp_path):
  data = runs.write_data(tmp_path / 'data')
  args = runs.command(
    data, tmp_path / 'run', 'train.steps=100000', 'checkpoint.every=100000'
  )
  process = _start(
    "import sys; from train import main; sys.exit(main.main(['main', "
    '*sys.argv[1:]]))',
    args,
  )
  with process:
    while 'validation' not in process.stdout.readline():
      pass
    process.stdout.close()
    err = process.stderr.read()
  assert process.returncode == 128 + signal.SIGPIPE, err
  assert 'Traceback' not in err
  assert any((tmp_path / 'run' / 'checkpoints').iterdir())


def test_output_that_cannot_be_shown_is_replaced(tmp_path):
  args = runs.command(tmp_path / 'd\u00e4ta', tmp_path / 'run')
  environment = os.environ | {'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C'}
  process = subprocess.run(
    [sys.executable, '-m', 'train.main', *args],
    cwd=runs.ROOT,
    env=environment,
    capture_output=True,
    timeout=120,
    check=False,
  )
  assert process.returncode == 2
  assert b'Traceback' not in process.stderr
  assert process.stderr.startswith(b'error: ')
