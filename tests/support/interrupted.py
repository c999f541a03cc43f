"""Runs a command, and sends it a signal at a certain moment.

python -m tests.support.interrupted train MOMENT SIGNAL FLAGS..., with flags of
train.main, where MOMENT is

  compile     when the training step is about to be compiled,
  step:N      when step N is logged, and the checkpoint due before it is there,
  save:N      when the checkpoint of step N is written, but not yet in place,
  evaluate:N  when the N-th evaluation of the process is about to begin,
  never,

and MOMENT@I is so in process I of several only. With BATCHES in the
environment, a directory, each batch that a process places is written there.

python -m tests.support.interrupted prepare MOMENT SIGNAL FLAGS..., with flags
of train.prepare. Blocks are small, and each is committed. MOMENT is

  commit:N  when the N-th commit of the process is complete,
  add:N     when the N-th document is in its shard, on the disk,
  rename    when the output is complete, but for its name,
  never.
"""

import os
import pathlib
import signal
import sys
import threading
import time

from train.distributed import signals

BLOCK = 300  # Bytes of a block of `prepare`.
_EVERY = 10  # checkpoint.every of the configuration.
_received = threading.Event()


def _note_signals():
  method = signals.Stop.receive

  def receive(*args):
    method(*args)
    _received.set()

  signals.Stop.receive = receive


def _wrap(owner, name, before=None, after=None):
  """Makes a function call others before or after, with its own arguments."""
  function = getattr(owner, name)

  def wrapped(*args, **kwargs):
    if before:
      before(*args, **kwargs)
    result = function(*args, **kwargs)
    if after:
      after(*args, **kwargs)
    return result

  setattr(owner, name, wrapped)


def _kill_and_wait(number):
  os.kill(os.getpid(), number)
  assert _received.wait(300)  # Never with SIGKILL.


def _send(number):
  import jax

  from train.results import recorder

  if jax.process_count() == 1:
    _kill_and_wait(number)
    return
  os.kill(os.getpid(), number)
  # JAX looks for signals once a second, while steps take milliseconds.
  _wrap(recorder.Recorder, 'train', lambda *_, **__: time.sleep(0.5))


def _plan_training(moment, number, checkpoints):
  from train import program
  from train.results import evaluate, recorder

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
    _wrap(program.Program, 'compile_train_step', lambda *_: _send(number))
  elif name == 'step':
    _wrap(recorder.Recorder, 'train', at_record)
  elif name == 'save':
    sys.addaudithook(at_rename)
  elif name == 'evaluate':
    _wrap(evaluate.Validation, 'score', at_evaluation)


def _write_batches(directory):
  """Writes down which rows of which step this process gives the devices."""
  import jax
  import numpy as np

  from train import mesh
  from train.data import loader

  steps = []

  def at_batch(iterator):
    steps.append(iterator.step + 1)

  def at_placing(batch, _, rows, batch_size):
    path = directory / f'{steps[-1]}-{jax.process_index()}.npz'
    np.savez(path, batch=batch, rows=rows, batch_size=batch_size)

  _wrap(loader.TrainIterator, '__next__', at_batch)
  _wrap(mesh, 'put_batch', at_placing)


def _value(flags, name, default=None):
  start = f'--{name}='
  return next((f[len(start) :] for f in flags if f.startswith(start)), default)


def _train(moment, number, flags):
  from train import main
  from train.distributed import cluster

  cluster.HEARTBEAT_SECONDS = 10
  moment, _, index = moment.partition('@')
  if index == _value(flags, 'process_id', ''):
    workdir = pathlib.Path(_value(flags, 'config.workdir'))
    _plan_training(moment, number, workdir / 'checkpoints')
  if 'BATCHES' in os.environ:
    _write_batches(pathlib.Path(os.environ['BATCHES']))
  return main.main(['main', *flags])


def _prepare(moment, number, flags):
  from train import prepare
  from train.data import atomic_dir, readers, streaming, writer

  readers._BLOCK = BLOCK
  streaming._COMMIT_SECONDS = 0
  kind, _, count = moment.partition(':')
  calls = []

  def send(*_):
    calls.append(1)
    if kind == 'rename' or len(calls) == int(count):
      _kill_and_wait(number)

  def at_rename(event, args):
    if event == 'os.rename' and str(args[0]).endswith('partial/data'):
      send()

  if kind == 'commit':
    _wrap(atomic_dir, 'save_state', after=send)
  elif kind == 'add':
    _wrap(writer.Writer, 'add', after=lambda w, *_: w.sync())
    _wrap(writer.Writer, 'add', after=send)
  elif kind == 'rename':
    sys.addaudithook(at_rename)
  return prepare.main(flags)


def _main(command, moment, name, *flags):
  _note_signals()
  run = {'train': _train, 'prepare': _prepare}[command]
  return run(moment, signal.Signals[name], list(flags))


if __name__ == '__main__':
  sys.exit(_main(*sys.argv[1:]))
