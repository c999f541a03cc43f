"""Trains, and sends itself a signal at a certain moment.

python -m tests.interrupted MOMENT SIGNAL FLAGS..., where MOMENT is

  compile     when the training step is about to be compiled,
  step:N      when step N is logged, and the checkpoint due before it is there,
  save:N      when the checkpoint of step N is written, but not yet in place,
  evaluate:N  when the N-th evaluation of the process is about to begin.
"""

import os
import pathlib
import signal
import sys
import time

from train import evaluate, main, metrics, program, signals

_STOPS: list[signals.Stop] = []
_EVERY = 10  # checkpoint.every of the configuration


class _Stop(signals.Stop):
  """Known to `_send`."""

  def __init__(self):
    super().__init__()
    _STOPS.append(self)


def _send(number):
  os.kill(os.getpid(), number)
  while not _STOPS[-1]():  # Never with SIGKILL.
    time.sleep(0.001)


def _before(owner, name, action):
  """Makes a method call `action` first, with its own arguments."""
  method = getattr(owner, name)

  def both(*args, **kwargs):
    action(*args)
    return method(*args, **kwargs)

  setattr(owner, name, both)


def _plan(moment, number, checkpoints):
  name, _, count = moment.partition(':')
  calls = []

  def at_record(_, record):
    if 'loss' in record and record['step'] == int(count):
      due = (record['step'] - 1) // _EVERY * _EVERY
      while not (checkpoints / str(due)).exists():
        time.sleep(0.001)
      _send(number)

  def at_rename(event, args):
    if event == 'os.rename' and str(args[1]) == str(checkpoints / count):
      os.kill(os.getpid(), number)

  def at_evaluation(*_):
    calls.append(1)
    if len(calls) == int(count):
      _send(number)

  if name == 'compile':
    _before(program.Program, 'compile_train_step', lambda *_: _send(number))
  elif name == 'step':
    _before(metrics.JsonLines, 'write', at_record)
  elif name == 'save':
    sys.addaudithook(at_rename)
  else:
    _before(evaluate.Validation, 'score', at_evaluation)


def _main(moment, name, *flags):
  flag = '--config.workdir='
  (workdir,) = (f.removeprefix(flag) for f in flags if f.startswith(flag))
  signals.Stop = _Stop
  number = signal.Signals[name]
  _plan(moment, number, pathlib.Path(workdir) / 'checkpoints')
  return main.main(['main', *flags])


if __name__ == '__main__':
  sys.exit(_main(*sys.argv[1:]))
