"""Prepares files, and sends a signal at a certain moment.

python -m tests.support.interrupted_prepare MOMENT SIGNAL FLAGS..., with flags
of train.prepare. Blocks are small, and each is committed. MOMENT is

  commit:N  when the N-th commit of the process is complete,
  add:N     when the N-th document is in its shard, on the disk,
  rename    when the output is complete, but for its name,
  never.
"""

import os
import signal
import sys

from train import prepare
from train.data import readers, resume_state, streaming, writer
from train.distributed import signals

BLOCK = 300
_STOPS: list[signals.Stop] = []


class _Stop(signals.Stop):
  """Known to `_send`."""

  def __init__(self):
    super().__init__()
    _STOPS.append(self)


def _after(owner, name, action):
  """Makes a function call `action`, too."""
  function = getattr(owner, name)

  def both(*args, **kwargs):
    result = function(*args, **kwargs)
    action(*args)
    return result

  setattr(owner, name, both)


def _main(moment, name, *flags):
  readers._BLOCK = BLOCK
  streaming._COMMIT_SECONDS = 0
  signals.Stop = _Stop
  number = signal.Signals[name]
  kind, _, count = moment.partition(':')
  calls = []

  def send(*_):
    calls.append(1)
    if kind == 'rename' or len(calls) == int(count):
      os.kill(os.getpid(), number)
      while not _STOPS[-1]():  # Never with SIGKILL.
        pass

  def at_rename(event, args):
    if event == 'os.rename' and str(args[0]).endswith('partial/data'):
      send()

  if kind == 'commit':
    _after(resume_state, 'save', send)
  elif kind == 'add':
    _after(writer.Writer, 'add', lambda w, *_: w.sync())
    _after(writer.Writer, 'add', send)
  elif kind == 'rename':
    sys.addaudithook(at_rename)
  return prepare.main(list(flags))


if __name__ == '__main__':
  sys.exit(_main(*sys.argv[1:]))
