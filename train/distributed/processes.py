"""The processes of a run, of which the first prepares, writes and prints."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train import errors
from train.distributed import signals
from train.distributed.peer_channel import Line

SEEN_SECONDS = 60.0
_ADDRESS_BYTES = 1024
_STOPPED = 'Stopped. The same command goes on.'


class Processes:
  """The processes of a run, of which this is one; maybe the only one.

  Attributes:
    index: Which this is.
    count: How many there are.
    stop: The signals of this process; those of others are added in process 0.
  """

  def __init__(self, index: int = 0, count: int = 1):
    self.index = index
    self.count = count
    self._stop: signals.Stop | None = None
    self._line: Line | None = None

  @property
  def stop(self) -> signals.Stop:
    return self._stop or signals.Stop()

  @stop.setter
  def stop(self, stop: signals.Stop) -> None:
    self._stop = stop
    if self._line is not None:
      self._line.stop = stop

  @property
  def first(self) -> bool:
    """Whether this is the one that writes and prints."""
    return self.index == 0

  def connect(self, exchange: Callable[[str], str] | None = None) -> None:
    """Connects process 0 with the others, if there are others.

    Args:
      exchange: Returns in every process the text that process 0 passes it; a
        collective if None.

    Raises:
      UserError: If process 0 cannot be reached.
    """
    if self.count > 1:
      self._line = Line(self.index, self.count, exchange or _broadcast)

  def say(self, text: str) -> None:
    """Prints, in one process."""
    if self.first:
      print(text, flush=True)

  def share(self, make: Callable[[], Any]) -> Any:
    """Calls `make` in process 0, and returns its result in all.

    The others wait for as long as it takes, outside of any collective.

    Args:
      make: Returns what can be written as JSON.

    Returns:
      What it returned.
    """
    if self._line is None:
      return make()
    if self.first:
      value = make()
      self._line.tell_all({'share': value})
      return value
    return self._line.shared.get()

  def check_same(self, settings: Sequence[str]) -> None:
    """Raises UserError if process 0 has other settings than this one."""
    theirs = self.share(lambda: list(settings))
    for ours, other in zip(settings, theirs, strict=False):
      if ours != other:
        raise errors.UserError(
          f'process {self.index} has {ours}, and process 0 has {other}: start '
          'all processes with the same command'
        )

  def see(self, path: pathlib.Path, what: str) -> None:
    """Checks that all processes have a file of process 0.

    Args:
      path: The file, with text.
      what: What it belongs to, for the message.

    Raises:
      UserError: If this one has none, or another.
    """
    content = self.share(path.read_text)
    # A network's file system may show a new file only after a while.
    end = time.monotonic() + SEEN_SECONDS
    while not self.first:
      with contextlib.suppress(OSError, ValueError):
        if path.read_text() == content:
          return
      if time.monotonic() > end:
        raise errors.UserError(
          f'{path.absolute()} is not what process 0 has there: {what} must be '
          'on a file system that all hosts share'
        )
      time.sleep(0.2)

  def run(self, action: Callable[[], int]) -> int:
    """Runs the command, and ends all processes if one fails.

    Args:
      action: Returns the exit status.

    Returns:
      The exit status; with several processes this does not return if one of
      them fails: all of them end, with word of it.
    """
    try:
      status = action()
    except Exception as error:
      self.fail(error)
      if isinstance(error, errors.UserError):
        print(f'error: {error}', file=sys.stderr)
        return 2
      if isinstance(error, errors.Interrupted):
        print(_STOPPED, flush=True)
        return self.stop.status
      raise
    if self._line is not None:
      self._line.tell_all({'bye': True})
    return status

  def fail(self, error: Exception) -> None:
    """Ends all processes because of an error; does nothing in one alone.

    What comes after it may wait for the others, so this is to be called first.

    Args:
      error: What happened here.
    """
    if self._line is None:
      return
    if isinstance(error, errors.UserError):
      self._line.fail(2, str(error))
    elif isinstance(error, errors.Interrupted):
      self._line.fail(self.stop.status, _STOPPED)
    else:
      self._line.fail(1, _summary(error), error)


def _summary(error: Exception) -> str:
  lines = str(error).strip().splitlines() or ['']
  return f'failed ({type(error).__name__}: {lines[0][:200]})'


def _broadcast(text: str) -> str:
  """Process 0's text, in all."""
  data = np.zeros(_ADDRESS_BYTES, np.uint8)
  encoded = np.frombuffer(text.encode(), np.uint8)
  data[: len(encoded)] = encoded
  data = np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)
  return data.tobytes().rstrip(b'\0').decode()


def connected() -> Processes:
  """The processes that JAX has joined, connected."""
  # Asking for the number starts the backends, which a bad configuration need
  # not wait for.
  if not jax.distributed.is_initialized():
    return Processes()
  processes = Processes(jax.process_index(), jax.process_count())
  processes.connect()
  return processes
