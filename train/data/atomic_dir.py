"""Makes a directory of shards appear complete or not at all."""

import contextlib
import fcntl
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from train.data import resume_state, shards
from train.errors import UserError


def partial_of(output: pathlib.Path) -> pathlib.Path:
  """Where a directory is built."""
  return output.with_name(f'{output.name}.partial')


def prepare(
  output: pathlib.Path,
  settings: dict[str, Any],
  build: Callable[[pathlib.Path], None],
  *,
  resumes: bool = False,
) -> dict[str, Any]:
  """Builds a directory of shards, unless it is there already.

  Args:
    output: The directory.
    settings: What the data is made of; the manifest's entry 'settings'.
    build: Fills a directory with shards and their manifest. If that has a
      journal beside it, it is as a killed build left it, otherwise empty.
    resumes: Whether build goes on with what a journal tells of.

  Returns:
    The manifest.

  Raises:
    UserError: If output holds something else, cannot be written, or another
      process is preparing it.
  """
  partial = partial_of(output)
  if _exists(output):
    manifest = _check_same(output, settings)
    shutil.rmtree(partial, ignore_errors=True)  # Killed before it did that.
    return manifest
  with _locked(partial):
    if _exists(output):  # Finished by another before we had the lock.
      return _check_same(output, settings)
    work = partial / 'data'
    if not (partial / resume_state.FILE).exists():
      shutil.rmtree(work, ignore_errors=True)  # Of a killed preparation.
    elif not resumes:
      raise resume_state.unusable(partial, 'it is of other text')
    work.mkdir(parents=True, exist_ok=True)
    build(work)
    work.rename(output)
    (partial / resume_state.FILE).unlink(missing_ok=True)
  return shards.read_manifest(output)


@contextlib.contextmanager
def _locked(partial: pathlib.Path) -> Iterator[None]:
  """Holds a directory; the lock of a process that died is free."""
  try:
    partial.mkdir(parents=True, exist_ok=True)
    lock = open(partial / 'lock', 'w')  # noqa: SIM115
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
    try:
      yield
    finally:
      if not (partial / resume_state.FILE).exists():
        shutil.rmtree(partial, ignore_errors=True)


def _check_same(
  output: pathlib.Path, settings: dict[str, Any]
) -> dict[str, Any]:
  if not (output / shards.MANIFEST).exists():
    raise UserError(
      f'{output} exists and holds no prepared data: choose another directory.'
    )
  manifest = shards.read_manifest(output)
  found = manifest.get('settings', {})
  for name in settings | found:
    was, now = found.get(name), settings.get(name)
    if was != now:
      # A list of files is long, and says little in which it differs.
      what = (
        f'other {name} (names, sizes or times of change differ)'
        if isinstance(was, list) and isinstance(now, list)
        else f'{name}={was}, not {now}'
      )
      raise UserError(
        f'{output} holds data prepared with {what}: choose another directory '
        'or delete it.'
      )
  return manifest


def _exists(output: pathlib.Path) -> bool:
  # An empty directory may have been made by hand; a rename replaces it.
  return output.exists() and not (output.is_dir() and not any(output.iterdir()))
