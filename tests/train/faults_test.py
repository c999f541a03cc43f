"""What a run does when the system fails it, by the real command line."""

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import sys

import pytest

from tests.support import corpora, runs

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
  return subprocess.Popen(
    [sys.executable, '-c', script, *args],
    cwd=runs.ROOT,
    env=runs.environment(cache=False),  # Its files may not grow either.
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize(
  'asynchronous', [True, pytest.param(False, marks=pytest.mark.nightly)]
)
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


def _can_mount():
  command = ['unshare', '-m', 'mount', '-t', 'tmpfs', 'none', '/mnt']
  with contextlib.suppress(FileNotFoundError):
    return not subprocess.run(
      command, capture_output=True, check=False
    ).returncode
  return False


@pytest.mark.nightly
@pytest.mark.parametrize('limit', ['size=700k', 'nr_inodes=50'])
@pytest.mark.parametrize('module', ['train.main', 'train.prepare'])
def test_a_full_file_system_is_one_line(module, limit, tmp_path):
  """And with space the same command resumes."""
  if not _can_mount():
    pytest.skip('may not mount a file system')
  mounted = tmp_path / 'mounted'
  mounted.mkdir()
  if module == 'train.main':
    data = runs.write_data(tmp_path / 'data')
    options = ('train.steps=40', 'checkpoint.every=5', 'eval.every=0')
    args = runs.command(data, mounted / 'run', *options)
  else:
    for i in range(60):  # Each has a subset, and so files, of its own.
      record = {'text': f'{i} ' * 4000, 'meta': {'pile_set_name': str(i)}}
      lines = corpora.lines([record, {**record, 'text': f'of {i}'}])
      (tmp_path / f'{i:03}.jsonl').write_bytes(lines)
    bpe = corpora.bpe(tmp_path / 'tokenizer.json')
    args = [f'--input={tmp_path}/*.jsonl', f'--tokenizer={bpe}']
    args += [f'--output={mounted}/out', '--workers=0']
  command = shlex.join([sys.executable, '-m', module, *args])
  script = f"""
    mount -t tmpfs -o {limit} none {mounted}
    {command}; echo status $?
    mount -o remount,size=100m,nr_inodes=0 none {mounted}
    {command}; echo status $?
  """
  process = subprocess.run(
    ['unshare', '-m', 'sh', '-c', script],
    cwd=runs.ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  out, err = process.stdout, process.stderr
  first, _, rest = out.partition('status 2\n')
  assert rest.endswith('status 0\n'), out + err
  assert 'step 40/40' not in first
  lines = [line for line in err.splitlines() if line.startswith('error: ')]
  assert len(lines) == 1, err
  assert 'free space, or inodes' in lines[0]
  assert 'Traceback' not in err
  # The preparation has committed nothing in so short a time.
  assert module == 'train.prepare' or 'Resuming' in rest
