"""Checks files by size and SHA-256, and hashes only changed files."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping

from train import files as files_lib
from train.errors import Interrupted

_VERIFIED = 'verified.json'
_READ_BYTES = 2**24
_SAY_FROM = 10**9  # Bytes that take long enough to hash for a message.

Stamps = dict[str, list]


class DamagedFile(Exception):
  """A file is damaged; the message names it and the damage."""


def verify(
  root: pathlib.Path,
  files: Mapping[str, tuple[int, str]],
  *,
  should_stop: Callable[[], bool],
  say: Callable[[str], None],
) -> None:
  """Compares files with their recorded checksums, and remembers valid ones.

  Args:
    root: The directory of the files.
    files: Name -> size in bytes and SHA-256.
    should_stop: Polled while files are hashed.
    say: Receives a line if this takes long.

  Raises:
    DamagedFile: If a file is missing, has another size or another hash.
    Interrupted: If should_stop returned True.
  """
  stamps: Stamps = {}
  with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
    stamps = dict(json.loads(files_lib.read_text(root / _VERIFIED)))
  unknown: Stamps = {}
  for name, (size, sha256) in files.items():
    with _readable(root / name):
      found = stamp(root / name, sha256)
    if found[1] != size:
      raise DamagedFile(f'{root / name} has {found[1]} bytes, expected {size}')
    if stamps.get(name) != found:
      unknown[name] = found
  total = sum(files[name][0] for name in unknown)
  if total >= _SAY_FROM:
    say(f'Checking {total / 1e9:.1f} GB of {root}; this is done once.')
  try:
    for name, found in unknown.items():
      with _readable(root / name):
        sha256 = _hash(root / name, should_stop)
      if sha256 != files[name][1]:
        raise DamagedFile(f'{root / name} is corrupt (its checksum differs)')
      stamps[name] = found
  finally:
    if unknown:  # Remember the files that were valid before an error.
      save(root, stamps)


def stamp(path: pathlib.Path, sha256: str) -> list:
  """Returns a stamp; a file with an equal stamp has not changed."""
  stat = path.stat()
  # A copy may keep the modification time, but not the status-change time.
  return [sha256, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def save(root: pathlib.Path, stamps: Stamps) -> None:
  """Remembers valid files, by name."""
  # The directory may be read-only; then each start verifies the files again.
  with contextlib.suppress(OSError):
    part = root / f'.{_VERIFIED}.{os.getpid()}'
    part.write_text(json.dumps(stamps), encoding='utf-8')
    part.replace(root / _VERIFIED)


def _hash(path: pathlib.Path, should_stop: Callable[[], bool]) -> str:
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while data := file.read(_READ_BYTES):
      if should_stop():
        raise Interrupted
      digest.update(data)
  return digest.hexdigest()


@contextlib.contextmanager
def _readable(path: pathlib.Path):
  try:
    yield
  except OSError as error:
    raise DamagedFile(f'{path} cannot be read ({error.strerror})') from error
