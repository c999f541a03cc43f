"""Coordinates the processes of a run, with JAX's coordination service.

Its barrier can wait for hours, and fails when a process dies. Its key-value
store shares values and errors. Its preemption service agrees on the step to
stop at. docs/hosts.md lists what it does not provide.
"""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import platform
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import orbax.checkpoint as ocp

from train import errors, output
from train.distributed import cluster
from train.distributed.signals import SharedStop, Stop

_T = TypeVar('_T')

LOST = 3  # Exit status if another process failed or died.
SEEN_SECONDS = 60.0
LAST_SECONDS = 5.0  # Process 0 exits last, so that the others learn who died.
_FOREVER, _SHORT = 10**11, 10_000  # Milliseconds.
_exchanges = itertools.count()


class Agreed(errors.UserError):
  """A UserError that all processes raise; process 0 prints it."""


def several() -> bool:
  """Whether this process is one of several."""
  # Only then, because `process_count` starts the backends, which takes seconds.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this is process 0, which prepares, prints and writes."""
  return not several() or jax.process_index() == 0


def say(text: str) -> None:
  """Prints in process 0."""
  if is_first():
    print(text, flush=True)


def together(action: Callable[[], _T], stop: Stop | None = None) -> _T:
  """Runs an action in all processes; if one raises an error, all raise it.

  Args:
    action: A function without collectives; it may take hours in one process.
    stop: The `Stop` that `action` polls, if any.

  Returns:
    What `action` returned in this process.
  """
  if not several():
    return action()
  result: list[_T] = []
  _agree(lambda: result.append(action()), stop)
  return result[0]


def first_does(make: Callable[[], Any], stop: Stop | None = None) -> Any:
  """Runs `make` in process 0; all return its value, which must be JSON."""
  if not several():
    return make()
  return _agree(lambda: make() if is_first() else None, stop)[0]


def _agree(action: Callable[[], Any], stop: Stop | None) -> list[Any]:
  """Runs an action in all processes, as `together`, and shares its values."""
  outcome: dict[str, Any] = {}
  try:
    outcome['value'] = action()
  except errors.UserError as error:
    outcome['error'] = str(error)
  except errors.Interrupted:
    outcome['interrupted'] = True
  if isinstance(stop, SharedStop):
    outcome |= {'calls': stop.calls, 'signum': stop.signum or 0}
  outcomes = [json.loads(text) for text in _exchange(json.dumps(outcome))]
  if isinstance(stop, SharedStop):
    # Every process continues with the largest number of calls.
    stop.calls = max(outcome['calls'] for outcome in outcomes)
    stop.signum = max(outcome['signum'] for outcome in outcomes) or None
  for index, outcome in enumerate(outcomes):
    if 'error' in outcome:
      prefix = f'{_name(index)}: ' if index else ''
      raise Agreed(prefix + outcome['error'])
  if any('interrupted' in outcome for outcome in outcomes):
    raise errors.Interrupted
  return [outcome['value'] for outcome in outcomes]


def _barrier(key: str, timeout_ms: int = _FOREVER) -> None:
  """Waits for all processes, without a device collective."""
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _exchange(text: str) -> list[str]:
  """Returns in each process the texts of all, by the key-value store."""
  key = f'exchange {next(_exchanges)}'
  client = ocp.multihost.get_jax_distributed_client()
  client.key_value_set(f'{key}/{jax.process_index()}', text)
  _barrier(key)
  found = dict(client.key_value_dir_get(f'{key}/'))
  return [found[f'{key}/{index}'] for index in range(jax.process_count())]


def check_same(settings: Sequence[str]) -> None:
  """Raises UserError if this process has other settings than process 0."""
  theirs = first_does(lambda: list(settings))

  def check() -> None:
    for ours, other in zip(settings, theirs, strict=False):
      if ours != other:
        raise errors.UserError(
          f'it has {ours}, but process 0 has {other}: start all processes with '
          'the same command'
        )

  together(check)


def check_shared(path: pathlib.Path, what: str) -> None:
  """Raises UserError unless all processes see the same file as process 0."""

  def content() -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

  wanted = first_does(content)

  def check() -> None:
    # A network file system may show a new file with a delay.
    end = time.monotonic() + SEEN_SECONDS
    while not (path.exists() and content() == wanted):
      if time.monotonic() > end:
        raise errors.UserError(
          f'{path.absolute()} differs from the file in process 0: {what} must '
          'be on a file system shared by all hosts'
        )
      time.sleep(0.2)

  together(check)


@functools.cache
def _hosts() -> list[str]:
  return _exchange(platform.node())


def _name(index: int) -> str:
  return f'process {index} of {jax.process_count()} (on {_hosts()[index]})'


def run(action: Callable[[], int]) -> int:
  """Returns the status of `action`; a failure in one process ends all."""
  if not several():
    return action()
  _hosts()
  ended = threading.Event()
  watcher = threading.Thread(target=_watch, args=(ended,), daemon=True)
  watcher.start()
  try:
    status = action()
  except Agreed as error:
    status = 2
    if is_first():
      print(f'error: {error}', file=sys.stderr)
  except BaseException as error:
    fail(error)
    raise
  ended.set()
  jax.distributed.shutdown()
  watcher.join()
  return status


def fail(error: BaseException) -> None:
  """Ends this process, and thereby all, unless all raise the same error.

  Call this before anything that may wait for the other processes.
  """
  if not several() or isinstance(error, Agreed):
    return
  status, text = 1, ''.join(traceback.format_exception(error))
  if isinstance(error, errors.UserError):
    status, text = 2, f'error: {error}'
  try:
    _barrier('fail', _SHORT)
    if not is_first():  # All fail; process 0 reports it.
      os._exit(status)
  except jax.errors.JaxRuntimeError:
    if status == 2:
      text = f'error: {_name(jax.process_index())}: {error}'
    elif may_be_lost(error):
      # If another process died, `_watch` or JAX reports it first.
      time.sleep(cluster.HEARTBEAT_SECONDS)
  _exit(status, text)


def may_be_lost(error: BaseException) -> bool:
  """Whether an error may come from a collective with a process that died."""
  if not several():
    return False
  text = ''.join(traceback.format_exception(error))
  # JAX raises Gloo's errors as ValueError.
  by_jax = 'JaxRuntimeError' in text and 'RESOURCE_EXHAUSTED' not in text
  return by_jax or 'Gloo' in text


def _watch(ended: threading.Event) -> None:
  """Waits at a barrier that is never passed, to learn which process dies."""
  key = 'of the others' if is_first() else 'of the first'
  try:
    _barrier(key)
  except jax.errors.JaxRuntimeError as error:
    if ended.is_set():
      return
    # Without a number, process 0 died, which runs the service.
    found = re.search(r'(?:Task |task:)(\d+)', str(error))
    _exit(
      LOST,
      f'error: {_name(int(found[1]) if found else 0)} ended or cannot be '
      'reached. Rerun the same command in all processes to resume.',
    )


def _exit(status: int, text: str) -> NoReturn:
  """Exits immediately; a normal exit would wait for the other processes."""
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()
  if is_first():  # It runs the service.
    with output.silent_stderr():  # JAX may abort first, with a stack trace.
      time.sleep(LAST_SECONDS)
  os._exit(status)
