"""Standard output and error of the commands: printing never fails."""

import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from train.distributed.signals import Stop

_stops: list[Stop] = []


class _GuardedStream:
  """A text stream whose failure stops the run instead of raising."""

  def __init__(self, stream: Any):
    self._stream = stream
    self._failed = False

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    try:
      if not self._failed:
        self._stream.write(text)
    except UnicodeEncodeError:
      encoding = self._stream.encoding or 'ascii'
      self.write(text.encode(encoding, 'replace').decode(encoding))
    except OSError:
      self._fail()
    return len(text)

  def flush(self) -> None:
    try:
      if not self._failed:
        self._stream.flush()
    except OSError:
      self._fail()

  def _fail(self) -> None:
    """Stops the runs: the pipe's reader exited (`| head`) or a disk is full."""
    self._failed = True
    for stop in _stops:
      stop.receive(signal.SIGPIPE)
    # Otherwise Python would flush the rest at exit and fail.
    with (
      contextlib.suppress(OSError, ValueError),
      open(os.devnull, 'w') as null,
    ):
      os.dup2(null.fileno(), self._stream.fileno())


@contextlib.contextmanager
def guarded() -> Iterator[None]:
  """Prevents printing from failing, and silences messages of libraries."""
  streams = sys.stdout, sys.stderr
  _silence_libraries()
  sys.stdout, sys.stderr = map(_GuardedStream, streams)  # type: ignore[assignment]
  try:
    yield
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
  """Discards what compiled code writes to standard error."""
  try:
    saved = os.dup(2)
  except OSError:  # It is closed.
    yield
    return
  try:
    with open(os.devnull, 'w') as null:
      os.dup2(null.fileno(), 2)
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)


@functools.cache
def _silence_libraries() -> None:
  """Silences libraries until exit, since TensorStore's threads may be late."""
  # Orbax also logs the errors that it raises.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  print_error, print_ignored = sys.excepthook, sys.unraisablehook

  def excepthook(kind, error, traceback):
    if not _is_late(error):
      print_error(kind, error, traceback)

  def unraisablehook(ignored):
    if not _is_late(ignored.exc_value):
      print_ignored(ignored)

  sys.excepthook, sys.unraisablehook = excepthook, unraisablehook


def _is_late(error: BaseException | None) -> bool:
  """Whether TensorStore reports the end of an abandoned read."""
  return isinstance(error, RuntimeError) and 'loop is closed' in str(error)


@contextlib.contextmanager
def stops(stop: Stop) -> Iterator[None]:
  """Stops a run, which saves its state, if its output cannot be written."""
  _stops.append(stop)
  try:
    yield
  finally:
    _stops.remove(stop)
