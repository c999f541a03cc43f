"""Trains, and sends itself a signal at a certain moment.

python -m tests.support.interrupted MOMENT SIGNAL FLAGS..., where MOMENT is

  compile     when the training step is about to be compiled,
  step:N      when step N is logged, and the checkpoint due before it is there,
  save:N      when the checkpoint of step N is written, but not yet in place,
  evaluate:N  when the N-th evaluation of the process is about to begin,
  never,

and MOMENT@I is so in process I of several only. With BATCHES in the
environment, a directory, each batch that a process places is written there.
"""

import os
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np

from train import main, mesh, program
from train.data import loader
from train.distributed import cluster, signals
from train.results import evaluate, recorder

_received = threading.Event()
_EVERY = 10  # checkpoint.every of the configuration


def _send(number):
  os.kill(os.getpid(), number)
  if jax.process_count() > 1:
    # JAX looks for signals once a second, while steps take milliseconds.
    _before(recorder.Recorder, 'train', lambda *_, **__: time.sleep(0.5))
  else:
    assert _received.wait(300)  # Never with SIGKILL.


def _note_signals():
  method = signals.Stop.receive

  def receive(*args):
    method(*args)
    _received.set()

  signals.Stop.receive = receive


def _before(owner, name, action):
  """Makes a method call `action` first, with its own arguments."""
  method = getattr(owner, name)

  def both(*args, **kwargs):
    action(*args, **kwargs)
    return method(*args, **kwargs)

  setattr(owner, name, both)


def _plan(moment, number, checkpoints):
  name, _, count = moment.partition(':')
  calls = []

  def at_record(_, step, *args, **kwargs):
    if step == int(count):
      due = (step - 1) // _EVERY * _EVERY
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
    _before(recorder.Recorder, 'train', at_record)
  elif name == 'save':
    sys.addaudithook(at_rename)
  elif name == 'evaluate':
    _before(evaluate.Validation, 'score', at_evaluation)


def _write_batches(directory):
  """Writes down which rows of which step this process gives the devices."""
  steps = []

  def at_batch(iterator):
    steps.append(iterator.step + 1)

  def at_placing(batch, _, rows, batch_size):
    path = directory / f'{steps[-1]}-{jax.process_index()}.npz'
    np.savez(path, batch=batch, rows=rows, batch_size=batch_size)

  _before(loader.TrainIterator, '__next__', at_batch)
  _before(mesh, 'put_batch', at_placing)


def _value(flags, name, default=None):
  start = f'--{name}='
  return next((f[len(start) :] for f in flags if f.startswith(start)), default)


def _main(moment, name, *flags):
  _note_signals()
  cluster.HEARTBEAT_SECONDS = 10
  number = signal.Signals[name]
  moment, _, index = moment.partition('@')
  if index == _value(flags, 'process_id', ''):
    workdir = pathlib.Path(_value(flags, 'config.workdir'))
    _plan(moment, number, workdir / 'checkpoints')
  if 'BATCHES' in os.environ:
    _write_batches(pathlib.Path(os.environ['BATCHES']))
  return main.main(['main', *flags])


if __name__ == '__main__':
  sys.exit(_main(*sys.argv[1:]))
