"""SIGTERM and Ctrl-C set a flag, which a run checks between steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from train import errors

_T = TypeVar('_T')


class Stop:
  """Whether the run was asked to stop, by the signal `signum`."""

  takes: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)

  def __init__(self) -> None:
    self.signum: int | None = None

  def __call__(self) -> bool:
    return self.signum is not None

  @property
  def status(self) -> int:
    """Exit status of a process that the signal ended."""
    return 128 + (self.signum or signal.SIGTERM)

  def receive(self, number: int) -> None:
    """Records the first signal."""
    self.signum = self.signum or number

  def check(self) -> None:
    """Raises `Interrupted` if the run was asked to stop."""
    if self():
      raise errors.Interrupted


class SharedStop(Stop):
  """Whether any process received SIGTERM or Ctrl-C; the same in all processes.

  JAX's preemption service numbers the calls, and agrees on a number that no
  process has reached yet. So all processes must make the same number of calls,
  except in an action that is passed with this object to `processes.first_does`
  or `together`.
  """

  takes = (signal.SIGINT,)  # JAX handles SIGTERM.

  def __init__(self) -> None:
    super().__init__()
    self.calls = 0

  def __call__(self) -> bool:
    from jax.experimental import multihost_utils

    if self.signum is None:
      self.calls += 1
      if multihost_utils.reached_preemption_sync_point(self.calls):
        self.signum = signal.SIGTERM
    return self.signum is not None

  def receive(self, number: int) -> None:
    del number
    os.kill(os.getpid(), signal.SIGTERM)


def watch(
  iterable: Iterable[_T], should_stop: Callable[[], bool]
) -> Iterator[_T]:
  """Yields from `iterable`; raises `Interrupted` when should_stop is True."""
  for item in iterable:
    if should_stop():
      raise errors.Interrupted
    yield item
  if should_stop():
    raise errors.Interrupted


def quit_at_once() -> None:
  """Makes Ctrl-C exit silently, while there is nothing to save."""
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def catch(stop: Stop | None = None) -> Iterator[Stop]:
  """Passes SIGTERM and Ctrl-C to a `Stop` inside the context.

  A Python signal handler waits for the running bytecode, which may be a
  compilation of a minute. Therefore the C handler writes the signal's number to
  a pipe, and a thread reads it: the message appears immediately, and a second
  Ctrl-C ends the process even while XLA compiles.
  """
  stop = stop or Stop()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  old_descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  # Signals that are ignored (nohup, background jobs) stay ignored.
  old_handlers = {
    number: signal.signal(number, lambda *_: None)
    for number in stop.takes
    if signal.getsignal(number) is not signal.SIG_IGN
  }
  thread = threading.Thread(target=_listen, args=(reader, stop), daemon=True)
  thread.start()
  try:
    yield stop
  finally:
    for number, handler in old_handlers.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(old_descriptor)
    os.close(writer)
    thread.join()
    os.close(reader)


def _listen(reader: int, stop: Stop) -> None:
  """Reads signal numbers until the pipe is closed."""
  first = True
  while byte := os.read(reader, 1):
    number = byte[0]
    if number not in stop.takes:
      continue
    if first:
      first = False
      stop.receive(number)
      name = signal.Signals(number).name
      with contextlib.suppress(OSError):
        text = f'\n{name}: stopping cleanly (Ctrl-C now: exit at once)\n'
        os.write(2, text.encode())
    elif number == signal.SIGINT:
      # Not for SIGTERM, which make and timeout may pass on twice.
      os._exit(128 + number)
