"""The working directory of a run: which run it belongs to, and a lock.

A directory belongs to a run if it has a `run.json` or a checkpoint; both
describe the run. The trainer writes only to such directories and empty ones.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from train import errors, files

LOCK = '.lock'
RUN_FILE = 'run.json'
CHECKPOINTS = 'checkpoints'
DAMAGED = 'damaged'
_DESCRIPTION = ('run', 'metadata')  # Where Orbax writes the item `run`.

_DIRECTORIES = (CHECKPOINTS, DAMAGED, 'tensorboard', 'profile')
_FILES = (
  *(LOCK, RUN_FILE, 'results.json', 'metrics.jsonl', 'optimizer.txt'),
  *('optimizer.json', 'sample.txt', 'loss.png', 'wandb_id'),
)
CONFIG_FILE = 'config.py'
# Left by a start that was rejected or killed early, or written by
# `train.hf import`.
_UNCLAIMED = {LOCK, f'{RUN_FILE}.part', CONFIG_FILE}
_ELSEWHERE = 'choose another --config.workdir'


def check_same(
  saved: Mapping[str, Any],
  now: Mapping[str, Any],
  where: str,
  unknown: Collection[str] = (),
) -> None:
  """Raises UserError if two descriptions differ.

  Args:
    saved: The description in a working directory or a checkpoint.
    now: The description of this run.
    where: Where `saved` comes from.
    unknown: Fields that are not known yet, and therefore not in `now`.

  Raises:
    UserError: With the name of the first different field and both values. None
      and a missing field both mean "not set".
  """
  if _names_parts(now) and not _names_parts(saved):
    raise errors.UserError(
      f'{where} belongs to a run of an earlier version, which did not record '
      "the arguments of its recipe's methods, so they may have changed: choose "
      'another --config.workdir, or resume it with that version'
    )
  for name, (before, value) in _differences(saved, now).items():
    if name not in unknown:
      raise errors.UserError(
        f'{where} belongs to another run: its {_short(name)} is '
        f'{_words(before)}, now it is {_words(value)}; choose another '
        '--config.workdir, set the old value, or remove that directory'
      )


def _names_parts(description: Mapping[str, Any]) -> bool:
  """Whether a description has entries of `optimizer.resolved_parts`."""
  return any(name.startswith('recipe.') for name in description)


def _differences(
  saved: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  # Read back from JSON, which has lists instead of tuples.
  now = json.loads(json.dumps(now))
  return {
    name: (saved.get(name), now.get(name))
    for name in {**now, **saved}
    if saved.get(name) != now.get(name)
  }


def _words(value: Any) -> str:
  return 'not set' if value is None else _short(repr(value))


def _short(text: str) -> str:
  return text if len(text) <= 100 else f'{text[:97]}...'


def check(
  workdir: pathlib.Path,
  description: Mapping[str, Any],
  unknown: Collection[str] = (),
) -> None:
  """Raises UserError unless this run may write to the directory.

  This writes nothing. The directory may be empty or missing.

  Args:
    workdir: The directory of a run.
    description: What identifies the run; see `check_same`.
    unknown: As in `check_same`.
  """
  try:
    names = set(os.listdir(workdir))
  except FileNotFoundError:
    return
  except OSError as error:
    raise errors.UserError(
      f'cannot use the working directory {workdir} ({error.strerror}): '
      f'{_ELSEWHERE}'
    ) from error
  _check_kinds(workdir, names)
  if not names - _UNCLAIMED:
    return
  if RUN_FILE in names:
    saved = _load(workdir / RUN_FILE)['run']
  else:
    saved = _of_newest_checkpoint(workdir)
  check_same(saved, description, str(workdir), unknown)


def _check_kinds(workdir: pathlib.Path, names: set[str]) -> None:
  for wanted, kind, is_kind in (
    (_DIRECTORIES, 'directory', pathlib.Path.is_dir),
    (_FILES, 'file', pathlib.Path.is_file),
  ):
    for name in sorted(names.intersection(wanted)):
      if not is_kind(workdir / name):
        raise errors.UserError(
          f'{workdir / name} is not a {kind}, and a run needs a {kind} of that '
          f'name: move it away, or {_ELSEWHERE}'
        )


def _of_newest_checkpoint(workdir: pathlib.Path) -> dict[str, Any]:
  """The description of a run without run.json, from its newest checkpoint."""
  for path in checkpoints(workdir / CHECKPOINTS):
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      return dict(read_description(path)['run'])
  raise errors.UserError(
    f'{workdir} is not empty and is not the directory of a run (it has no '
    f'{RUN_FILE}): {_ELSEWHERE}, or restore that file'
  )


def checkpoints(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the directories of complete checkpoints, newest first."""
  found = [p for p in directory.glob('*') if p.name.isdecimal()]
  return sorted(found, key=lambda path: -int(path.name))


def read_description(path: pathlib.Path) -> dict[str, Any]:
  """Returns the item `run` of a checkpoint; raises OSError or ValueError."""
  return json.loads(files.read_text(path.joinpath(*_DESCRIPTION)))


def claim(
  workdir: pathlib.Path,
  description: Mapping[str, Any],
  rounding: Mapping[str, Any],
) -> str | None:
  """Checks and records which run the directory belongs to.

  Args:
    workdir: The directory of a run.
    description: What identifies the run; see `check_same`.
    rounding: Settings that affect rounding and may differ when a run is
      resumed; the file keeps those of the first start.

  Returns:
    A warning if `rounding` differs from that of the first start, else None.
  """
  check(workdir, description)
  path = workdir / RUN_FILE
  if path.exists() and checkpoints(workdir / CHECKPOINTS):
    return _warning(_load(path)['rounding'], rounding)
  content = {'run': dict(description), 'rounding': dict(rounding)}
  files.write_text(path, json.dumps(content, indent=2) + '\n')
  return None


def _warning(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
  differences = _differences(before, now)
  if not differences:
    return None
  changes = ', '.join(
    f'{_short(name)} was {_words(old)} and is {_words(new)}'
    for name, (old, new) in differences.items()
  )
  order = ' and in data order' if 'grain' in differences else ''
  return (
    f'Since the run started, {changes}: from now on, results may differ in '
    f'rounding{order}.'
  )


def _load(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  try:
    content = json.loads(files.read_text(path))
    return {name: dict(content[name]) for name in ('run', 'rounding')}
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise errors.UserError(
      f'{path} cannot be read as the description of a run '
      f'({errors.first_line(error)}): {_ELSEWHERE}, or remove that file to use '
      'the description in a checkpoint'
    ) from error


@contextlib.contextmanager
def hold(workdir: str | os.PathLike[str]) -> Iterator[None]:
  """Locks `workdir` inside the context; creates it if necessary.

  The kernel releases the lock when the process ends, so a leftover lock file
  never blocks a later run. Its text is for people only.

  Args:
    workdir: Directory of one run.

  Yields:
    Nothing.

  Raises:
    UserError: If another process has the lock, or it cannot be written.
  """
  path = pathlib.Path(workdir) / LOCK
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
  except OSError as error:
    raise errors.UserError(
      f'cannot write to the working directory {workdir} ({error.strerror}): '
      f'{_ELSEWHERE}'
    ) from error
  with open(descriptor, 'r+', encoding='utf-8', errors='replace') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EAGAIN, errno.EACCES):
        raise errors.UserError(
          f'cannot lock {path} ({error.strerror}): choose a --config.workdir '
          'on a file system that supports locks'
        ) from error
      raise errors.UserError(
        f'{workdir} is in use by another run ({_holder(file.read())}): wait '
        'for it, stop it, or choose another --config.workdir'
      ) from error
    text = file.read()
    if text and not (text.startswith('{"pid": ') and len(text) < 1000):
      raise errors.UserError(
        f'{path} is not the lock file of a run: move it away, or {_ELSEWHERE}'
      )
    file.seek(0)
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
  """Describes the process that has the lock."""
  try:
    holder = json.loads(text)
    return 'process {pid} on {host}, since {since}'.format(**holder)
  except (ValueError, KeyError, TypeError):
    return 'it has only just started'
