"""One writer per working directory."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from train import errors

FILE = '.lock'


@contextlib.contextmanager
def hold(workdir: str | os.PathLike[str]) -> Iterator[None]:
  """Holds `workdir`, creating it if need be, until the context is left.

  The kernel drops the lock with the process, however it dies, so a lock file
  left behind never blocks a later run. What the file says is only for people.

  Args:
    workdir: Directory of one run.

  Yields:
    Nothing.

  Raises:
    UserError: If a live process holds the directory, or it cannot be written.
  """
  path = pathlib.Path(workdir) / FILE
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise errors.UserError(
      f'cannot write to the working directory {workdir} ({error.strerror}): '
      'choose another with --config.workdir'
    ) from error
  with os.fdopen(descriptor, 'r+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EAGAIN, errno.EACCES):
        raise
      raise errors.UserError(
        f'{workdir} is being written by another run ({_holder(file.read())}): '
        'wait for it, stop it, or choose another --config.workdir'
      ) from error
    file.truncate()
    json.dump(
      {
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'since': datetime.datetime.now().isoformat(timespec='seconds'),
      },
      file,
    )
    file.flush()
    yield


def _holder(text: str) -> str:
  """Who holds the lock, as far as its file tells."""
  try:
    holder = json.loads(text)
    return 'process {pid} on {host}, since {since}'.format(**holder)
  except (ValueError, KeyError, TypeError):
    return 'it has only just started'
