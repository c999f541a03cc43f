"""Errors that end a run early, and their conversion to one line."""

import argparse
import errno
import sys
from typing import NoReturn


class UserError(Exception):
  """Bad input, status 2; the message is one line that states what to do."""


class Interrupted(Exception):
  """SIGTERM or Ctrl-C arrived, and everything possible has been saved."""


class NonFinite(Exception):
  """A loss or a norm is not a finite number."""

  def __init__(self, step: int, name: str, value: float):
    super().__init__(f'{name} is {value} at step {step}')


class Parser(argparse.ArgumentParser):
  """A command-line parser that reports errors in one line."""

  def error(self, message: str) -> NoReturn:
    print(f'error: {message} (see --help)', file=sys.stderr)
    sys.exit(2)


_ADVICE = {
  errno.ENOSPC: 'free space, or inodes (`df -i`), on that file system',
  errno.EDQUOT: 'free some of your quota',
  errno.EFBIG: 'raise the limit on the size of files (`ulimit -f`)',
  errno.EROFS: 'it is mounted read-only: make it writable again',
  errno.EACCES: 'change its permissions',
  errno.EPERM: 'change its permissions',
  errno.EMFILE: 'raise the limit on open files (`ulimit -n`)',
  errno.EIO: 'check the disk',
  errno.ENAMETOOLONG: 'give a shorter path',
  errno.ELOOP: 'fix the symbolic links that form a loop',
}

# Texts that libraries quote.
_QUOTED = {
  'No space left on device': _ADVICE[errno.ENOSPC],
  'Disk quota exceeded': _ADVICE[errno.EDQUOT],
  'File too large': _ADVICE[errno.EFBIG],
  'Read-only file system': _ADVICE[errno.EROFS],
  'Permission denied': _ADVICE[errno.EACCES],
  'Too many open files': _ADVICE[errno.EMFILE],
  'Input/output error': _ADVICE[errno.EIO],
}


def first_line(error: BaseException) -> str:
  """The first line of what caused an error, or its type if it has none."""
  while error.__cause__ is not None:
    error = error.__cause__
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]


def of_system(error: BaseException) -> UserError | None:
  """Converts an error of the operating system into a UserError.

  Args:
    error: An OSError, or an error of a library that was caused by an OSError or
      quotes its text, as Orbax and TensorStore do.

  Returns:
    The error to raise instead; None for any other error.
  """
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, OSError) and cause.errno in _ADVICE:
      names = f'{cause.filename}: ' if cause.filename else ''
      return UserError(
        f'{names}{cause.strerror}; {_ADVICE[cause.errno]}, then run the same '
        'command again to resume'
      )
    cause = cause.__cause__ or cause.__context__
  for number, advice in _QUOTED.items():
    if number in str(error):
      return UserError(
        f'a file cannot be read or written ({number}); {advice}, then run '
        'the same command again to resume'
      )
  return None
