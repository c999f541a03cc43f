"""Encodes blocks in several processes, and returns them in order.

A worker is a new Python process connected by a pipe. It stores nothing and ends
when its pipe closes, so none outlives this process.
"""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

from train.data import documents, encoding
from train.data import tokenizer as tokenizer_lib
from train.distributed import signals
from train.errors import Interrupted, UserError

_AT_ONCE = 2  # Blocks per worker: one being encoded, one waiting.
_AHEAD = 8  # Blocks per worker that may wait for a slow block.
# Bytes of text in flight per worker above which no block is read. With long
# lines, this allows fewer blocks.
_BYTES_AHEAD = 2**24
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # Of linux/prctl.h.


class InputBlock(NamedTuple):
  """A block of the input.

  Attributes:
    file: Index of its file.
    number: Its number in the file, from 1.
    checksum: Checksum of the file's blocks up to this one.
    read: Bytes of the file read so far.
    content: The content to encode.
  """

  file: int
  number: int
  checksum: int
  read: int
  content: documents.Content


class WorkerDied(UserError):
  """A worker process ended; the message names it and the reason."""


def encode(
  blocks: Iterator[InputBlock],
  encoder: encoding.Encoder,
  count: int,
  should_stop: Callable[[], bool],
) -> Generator[tuple[InputBlock, encoding.EncodedBlock], None, None]:
  """Encodes blocks; memory use does not grow with their number.

  Args:
    blocks: The blocks to encode.
    encoder: The encoder; workers create a copy.
    count: Number of worker processes; 0 encodes in this process.
    should_stop: Polled.

  Yields:
    Each block, in order, with its encoding.

  Raises:
    Interrupted: If should_stop returned True.
    WorkerDied: If a worker process ended.
  """
  if not count:
    for block in signals.watch(blocks, should_stop):
      yield block, encoder.encode_block(block.content)
    return
  with _pool(encoder, count) as pool:
    yield from _in_order(blocks, pool, should_stop)


def _in_order(blocks, pool: '_Pool', should_stop):
  waiting: dict[int, InputBlock] = {}
  done: dict[int, encoding.EncodedBlock] = {}
  sizes: dict[int, int] = {}
  sent = given = 0
  more = True
  while True:
    while (
      more
      and sent - given < pool.window
      and sum(sizes.values()) < pool.bytes
      and (worker := pool.free())
    ):
      if should_stop():
        raise Interrupted
      block = next(blocks, None)
      if block is None:
        more = False
        break
      worker.send(sent, block)
      waiting[sent] = block._replace(content=None)
      sizes[sent] = _size(block.content)
      sent += 1
    if given in done:
      del sizes[given]
      yield waiting.pop(given), done.pop(given)
      given += 1
    elif given < sent:
      if should_stop():
        raise Interrupted
      done.update(pool.receive(_POLL_SECONDS))
    else:
      return


def _size(content: documents.Content) -> int:
  """Bytes of lines, or characters of records."""
  if isinstance(content, bytes):
    return len(content)
  return documents.characters(content or [])


class _Worker:
  """A process and this end of its pipe."""

  def __init__(self, number: int, encoder: encoding.Encoder):
    context = multiprocessing.get_context('spawn')
    self.number = number
    self.pending = 0
    self.connection, theirs = context.Pipe()
    self.process = context.Process(
      target=_work,
      args=(
        theirs,
        str(encoder.model.path),
        encoder.instructions,
        os.getpid(),
      ),
      name=f'prepare-{number}',
      daemon=True,
    )
    self.process.start()
    theirs.close()

  def send(self, serial: int, block: InputBlock) -> None:
    try:
      self.connection.send((serial, block.content))
    except OSError:
      raise self._death() from None
    self.pending += 1

  def receive(self) -> tuple[int, encoding.EncodedBlock]:
    try:
      result = self.connection.recv()
    except (EOFError, OSError):
      raise self._death() from None
    self.pending -= 1
    return result

  def _death(self) -> WorkerDied:
    self.process.join()
    code = self.process.exitcode or 0
    if code < 0:
      how = f'was killed by {signal.Signals(-code).name}'
    else:
      how = f'ended with status {code} (see above)'
    return WorkerDied(
      f'Worker {self.number} (process {self.process.pid}) {how}. Rerun the '
      'same command to resume; if memory is short, pass fewer --workers.'
    )

  def close(self) -> None:
    self.process.kill()  # It stores nothing.
    self.process.join()
    self.connection.close()


class _Pool:
  """Worker processes.

  Attributes:
    window: Largest number of blocks in flight.
    bytes: Bytes of text in flight above which no block is read.
  """

  def __init__(self, workers: list[_Worker]):
    self.window = _AHEAD * len(workers)
    self.bytes = _BYTES_AHEAD * len(workers)
    self._workers = {worker.connection: worker for worker in workers}

  def free(self) -> _Worker | None:
    """The worker with the fewest blocks, or None if all are full."""
    worker = min(self._workers.values(), key=lambda w: w.pending)
    return worker if worker.pending < _AT_ONCE else None

  def receive(self, timeout: float) -> list[tuple[int, encoding.EncodedBlock]]:
    """The blocks encoded so far, with their serial numbers."""
    ready: list[Any] = multiprocessing.connection.wait(self._workers, timeout)
    return [self._workers[connection].receive() for connection in ready]


@contextlib.contextmanager
def _pool(encoder: encoding.Encoder, count: int) -> Iterator[_Pool]:
  with contextlib.ExitStack() as stack:
    # Ctrl-C reaches all processes of a terminal; only this one handles it.
    # Children inherit the signal mask. The resource tracker is started first,
    # because its start would reset the mask.
    resource_tracker.ensure_running()
    held = {signal.SIGINT, signal.SIGTERM}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
      workers = []
      for number in range(1, count + 1):
        worker = _Worker(number, encoder)
        stack.callback(worker.close)
        workers.append(worker)
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    yield _Pool(workers)


def _work(connection, path: str, instructions: bool, parent: int) -> None:
  """Encodes blocks until the pipe closes."""
  _die_with(parent)
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  model = tokenizer_lib.load(path, threads=1)
  encoder = encoding.Encoder(model, instructions)
  # A thread empties the pipe, so that the two ends cannot deadlock.
  tasks: queue.SimpleQueue = queue.SimpleQueue()
  threading.Thread(
    target=_listen, args=(connection, tasks), daemon=True
  ).start()
  with contextlib.suppress(OSError):
    while True:
      serial, content = tasks.get()
      connection.send((serial, encoder.encode_block(content)))


def _listen(connection, tasks: queue.SimpleQueue) -> None:
  with contextlib.suppress(EOFError, OSError):
    while True:
      tasks.put(connection.recv())
  # Immediately: the current block may take long, and nobody waits for it.
  os._exit(0)


def _die_with(parent: int) -> None:
  """Asks Linux to kill this process when its parent dies."""
  with contextlib.suppress(OSError, AttributeError):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  if os.getppid() != parent:  # The parent has already died.
    os._exit(0)
