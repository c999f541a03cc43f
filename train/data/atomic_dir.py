"""Creates a directory of shards atomically: complete, or not at all.

The shards are written to `<output>.partial/data`, which is renamed at the end.
Beside it, `progress.json` is the resume state of an interrupted preparation.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from train import errors, files
from train.data import shards
from train.errors import UserError

RESUME_STATE = 'progress.json'
_FORMAT = 4
# A directory with another lock, or with files but no lock, was not created by
# this module.
_LOCK = 'lock'
_MARK = 'The directory of an unfinished preparation by train.prepare.\n'


def partial_of(output: pathlib.Path) -> pathlib.Path:
  """Returns the path where a directory is built; UserError if it has none."""
  output = _target(output)
  return output.with_name(f'{output.name}.partial')


def _target(output: pathlib.Path) -> pathlib.Path:
  """The directory that a path stands for, which a rename can replace."""
  if output.is_symlink():
    output = pathlib.Path(os.path.realpath(output))
  if output.name in ('', '..') or output.is_mount():
    raise UserError(
      f'{str(output)!r} cannot be created: give the path of a new directory, '
      'such as data/mine.'
    )
  return output


def prepare(
  output: pathlib.Path,
  settings: dict[str, Any],
  build: Callable[[pathlib.Path], None],
  *,
  resumes: bool = False,
) -> dict[str, Any]:
  """Builds a directory of shards unless it exists.

  Args:
    output: The directory, or a symbolic link to it.
    settings: The settings of the preparation, recorded in the manifest.
    build: Fills a directory with shards and their manifest. The directory is
      empty, or was left by an interrupted build and has a resume state beside
      it.
    resumes: Whether `build` can resume.

  Returns:
    The manifest.

  Raises:
    UserError: If `output` exists with other content, cannot be written, or
      another process is preparing it.
  """
  output = _target(output)
  partial = partial_of(output)
  if _exists(output):
    manifest = _check_same(output, settings)
    if _is_ours(partial):  # Left by a killed preparation.
      _remove(partial)
    return manifest
  with _locked(partial):
    if _exists(output):  # Another process finished it before we had the lock.
      return _check_same(output, settings)
    work = partial / 'data'
    if not (partial / RESUME_STATE).exists():
      shutil.rmtree(work, ignore_errors=True)  # Left by a killed preparation.
    elif not resumes:
      raise cannot_resume(partial, 'it is of other text')
    work.mkdir(parents=True, exist_ok=True)
    build(work)
    work.rename(output)
    (partial / RESUME_STATE).unlink(missing_ok=True)
  return shards.read_manifest(output)


def save_state(partial: pathlib.Path, state: dict[str, Any]) -> None:
  """Replaces the resume state atomically.

  Args:
    partial: The result of `partial_of`.
    state: JSON.
  """
  content = {'format': _FORMAT, **state}
  text = json.dumps({**content, 'crc': files.crc(content)})
  files.write_text(partial / RESUME_STATE, text)
  files.sync_directory(partial)


def load_state(partial: pathlib.Path) -> dict[str, Any] | None:
  """Returns the resume state, if any; raises UserError if it is unreadable."""
  try:
    state = json.loads(files.read_text(partial / RESUME_STATE))
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    reason = errors.first_line(error)
    raise cannot_resume(
      partial, f'its {RESUME_STATE} cannot be read ({reason})'
    ) from error
  if not isinstance(state, dict) or state.get('format') != _FORMAT:
    raise cannot_resume(
      partial, f'its {RESUME_STATE} is not of format {_FORMAT}'
    )
  if state.get('crc') != files.crc(state):
    raise cannot_resume(partial, f'the checksum of its {RESUME_STATE} differs')
  return state


def cannot_resume(partial: pathlib.Path, reason: str) -> UserError:
  """An error for an unfinished preparation that cannot be resumed."""
  return UserError(
    f'{partial} is an unfinished preparation that cannot be resumed: {reason}. '
    'Use the inputs, options and version of sage-optax that it was started '
    'with, delete it to start from scratch, or choose another --output.'
  )


@contextlib.contextmanager
def _locked(partial: pathlib.Path) -> Iterator[None]:
  """Locks a directory; the lock ends with the process."""
  try:
    partial.mkdir(parents=True, exist_ok=True)
    if not _is_ours(partial):
      raise UserError(
        f'{partial} is needed to prepare {partial.with_suffix("")}, but has '
        'other content: move it away, or choose another --output.'
      )
    lock = open(partial / _LOCK, 'a', encoding='utf-8')  # noqa: SIM115
  except OSError as error:
    raise UserError(
      f'Cannot write {partial}: {error.strerror}. Choose another --output.'
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(
        f'Another process is preparing {partial.with_suffix("")}: wait for it.'
      ) from error
    if not lock.tell():
      lock.write(_MARK)
      lock.flush()
    try:
      yield
    finally:
      if not (partial / RESUME_STATE).exists():
        _remove(partial)


def _remove(partial: pathlib.Path) -> None:
  """Removes the lock last, so that the rest is recognized after a kill."""
  shutil.rmtree(partial / 'data', ignore_errors=True)
  with contextlib.suppress(OSError):
    (partial / f'{RESUME_STATE}.part').unlink(missing_ok=True)
  shutil.rmtree(partial, ignore_errors=True)


def _is_ours(partial: pathlib.Path) -> bool:
  """Whether a directory was created by a preparation, or is empty."""
  try:
    names = os.listdir(partial)
  except OSError:
    return False
  with contextlib.suppress(OSError, ValueError):
    text = files.read_text(partial / _LOCK)
    # The process may have been killed while it wrote the mark.
    return text == _MARK or (_MARK.startswith(text) and names == [_LOCK])
  return not names


def _check_same(
  output: pathlib.Path, settings: dict[str, Any]
) -> dict[str, Any]:
  if not (output / shards.MANIFEST).exists():
    raise UserError(
      f'{output} exists and has no prepared data: choose another directory.'
    )
  manifest = shards.read_manifest(output)
  found = manifest.get('settings', {})
  for name in settings | found:
    was, now = found.get(name), settings.get(name)
    if was != now:
      # A list of files is too long to print.
      what = (
        f'other {name} (names, sizes or modification times differ)'
        if isinstance(was, list) and isinstance(now, list)
        else f'{name}={was}, not {now}'
      )
      raise UserError(
        f'{output} has data prepared with {what}: choose another directory or '
        'delete it.'
      )
  return manifest


def _exists(output: pathlib.Path) -> bool:
  # An empty directory may have been created by hand; a rename replaces it.
  return output.exists() and not (output.is_dir() and not any(output.iterdir()))
