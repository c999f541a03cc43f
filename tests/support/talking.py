"""One of several processes that talk, without a run.

python -m tests.support.talking DIRECTORY COUNT SCENARIO PORT INDEX; SCENARIO is
one of the functions below.
"""

import os
import pathlib
import signal
import sys
import time

import jax
import pytest

from train import errors
from train.distributed import processes, signals

HEARTBEAT_SECONDS = 10


def _index():
  return jax.process_index()


def _refuse(text, where=None):
  if where is None or _index() == where:
    raise errors.UserError(text)


def agree(directory):
  """What all of them find together, whichever it comes from."""
  shared = [processes.first_does(lambda i=i: {'a': [i, None]}) for i in (1, 2)]
  assert shared == [{'a': [1, None]}, {'a': [2, None]}]
  assert processes.together(lambda: _index() + 5) == _index() + 5

  steps = 10 if _index() == 1 else 20
  with pytest.raises(
    processes.Agreed, match=r'process 1 of 3 \(on .*\): it has b=10, but proc'
  ):
    processes.check_same(['a=1', f'b={steps}'])

  (directory / str(_index())).write_text(str(_index() // 2))
  processes.check_shared(directory / '0', 'the file')
  processes.SEEN_SECONDS = 0.5
  with pytest.raises(
    processes.Agreed, match=r'process 2 .* differs from the file in'
  ):
    processes.check_shared(directory / str(_index()), 'the file')
  with pytest.raises(processes.Agreed, match=r'^no option$'):
    processes.together(lambda: _refuse('no option'))
  with pytest.raises(processes.Agreed, match=r'^no data$'):
    processes.first_does(lambda: _refuse('no data'))

  with signals.catch(signals.SharedStop()) as stop:

    def work():
      # The number of calls in one process is not that of the others.
      if _index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
      while _index() == 0:
        stop.check()
        time.sleep(0.01)

    assert not stop()
    with pytest.raises(errors.Interrupted):
      processes.together(work, stop)
    assert stop.calls > 1
    assert stop.status == 128 + signal.SIGTERM
    with pytest.raises(errors.Interrupted):
      stop.check()

  processes.together(lambda: _refuse('no such data', where=1))


def first_dies(directory):
  if _index() == 0:
    os.kill(os.getpid(), signal.SIGKILL)
  processes.first_does(lambda: None)


def all_refuse(directory):
  _refuse('no checkpoint')


def one_fails(directory):
  if _index() == 1:
    raise OSError('no space left\non the disk')
  processes.first_does(lambda: time.sleep(100))


def _main(directory, count, scenario, port, index):
  jax.distributed.initialize(
    f'127.0.0.1:{port}',
    int(count),
    int(index),
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    cluster_detection_method='deactivate',
  )
  return processes.run(lambda: globals()[scenario](pathlib.Path(directory)))


if __name__ == '__main__':
  sys.exit(_main(*sys.argv[1:]))
