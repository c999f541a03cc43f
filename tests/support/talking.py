"""One of several processes that talk, without a run.

python -m tests.support.talking DIRECTORY COUNT SCENARIO INDEX; SCENARIO is one
of the functions below. DIRECTORY is where they meet.
"""

import os
import pathlib
import signal
import sys
import time

from train import errors
from train.distributed import processes, signals


def share(own, directory):
  """All get what the first one makes, in order, even if it takes time."""
  got = [own.share(lambda: {'a': [1, None]}), own.share(lambda: time.sleep(1))]
  got.extend(own.share(lambda i=i: i) for i in range(1000))
  assert got == [{'a': [1, None]}, None, *range(1000)]
  (directory / 'file').write_text('x') if own.first else None
  own.see(directory / 'file', 'the file')
  return 7


def _die(own, index):
  if own.index == index:
    os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(100)


def first_dies(own, directory):
  _die(own, 0)


def last_dies(own, directory):
  _die(own, own.count - 1)


def one_refuses(own, directory):
  if own.index == 1:
    raise errors.UserError('no such data: make it')
  own.share(lambda: time.sleep(100))


def all_refuse(own, directory):
  raise errors.UserError('no such option: leave it out')


def one_fails(own, directory):
  if own.index == 1:
    raise OSError('no space left\non the disk')
  try:
    # As a collective does, whose connection the other has closed.
    time.sleep(4)
    raise RuntimeError('connection reset by peer')
  except RuntimeError as error:
    own.fail(error)


def one_has_another_command(own, directory):
  steps = 10 if own.index == 1 else 20
  own.check_same(['config.name=a', f'config.train.steps={steps}'])
  time.sleep(100)


def one_does_not_see(own, directory):
  processes.SEEN_SECONDS = 1
  path = directory / f'file{own.index}'
  path.write_text(str(own.index))
  own.see(path, 'the working directory')
  time.sleep(100)


def one_is_signalled(own, directory):
  with signals.catch() as own.stop:
    own.share(lambda: None)
    if own.index == 1:
      os.kill(os.getpid(), signal.SIGTERM)

    def work():
      while True:
        own.stop.check()
        time.sleep(0.01)

    own.share(work)


def _main(directory, count, scenario, index):
  directory = pathlib.Path(directory)
  address = directory / 'address'

  def exchange(text):
    if index == '0':
      part = directory / 'part'
      part.write_text(text)
      part.rename(address)
    while not address.exists():
      time.sleep(0.01)
    return address.read_text()

  own = processes.Processes(int(index), int(count))
  own.connect(exchange)
  return own.run(lambda: globals()[scenario](own, directory))


if __name__ == '__main__':
  sys.exit(_main(*sys.argv[1:]))
