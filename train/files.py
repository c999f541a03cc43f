"""Reads and writes small files; text is always UTF-8."""

import errno
import json
import os
import pathlib
import stat
import zlib
from collections.abc import Mapping
from typing import Any

from train import errors


def path(text: str) -> pathlib.Path:
  """The path in an argument; a shell leaves the `~` in `--output=~/data`."""
  return pathlib.Path(text).expanduser()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """Reads a file.

  Args:
    path: The file.

  Returns:
    Its content.

  Raises:
    OSError: If it cannot be read or is not a regular file; opening a FIFO
      would wait for a writer.
  """
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  try:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
      raise OSError(errno.EINVAL, 'not a regular file', os.fspath(path))
    with open(descriptor, 'rb', closefd=False) as file:
      return file.read()
  finally:
    os.close(descriptor)


def read_text(path: str | os.PathLike[str]) -> str:
  """As `read_bytes`; ValueError if the file is not UTF-8."""
  return read_bytes(path).decode()


def sync_directory(directory: pathlib.Path) -> None:
  """Waits until the entries of a directory are on disk."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a text file atomically."""
  part = path.with_name(f'{path.name}.part')
  with open(part, 'w', encoding='utf-8', errors='replace') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)


def crc(content: Mapping[str, Any]) -> int:
  """Returns a checksum of JSON, excluding its entry 'crc'."""
  rest = {name: value for name, value in content.items() if name != 'crc'}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def check_crc(content: Mapping[str, Any]) -> None:
  """Raises ValueError if the entry 'crc' is missing or differs from `crc`."""
  if 'crc' not in content:
    raise ValueError('it has no checksum')
  if content['crc'] != crc(content):
    raise ValueError('its checksum differs')


def replace_block(document: str, kind: str, name: str, block: str) -> str:
  """Replaces the block between its markers, or appends it to the document.

  Args:
    document: Text of the document.
    kind: Kind of the block: 'plan', 'benchmark' or 'drill'.
    name: Name of the block.
    block: Text of the block.

  Raises:
    UserError: If the end marker is missing.
  """
  begin, end = f'<!-- {kind}: {name} -->', f'<!-- end of {kind} -->'
  marked = f'{begin}\n{block}\n{end}'
  before, found, after = document.partition(begin)
  if not found:
    return f'{document.rstrip()}\n\n{marked}\n'.lstrip()
  _, found, after = after.partition(end)
  if not found:
    raise errors.UserError(
      f'the document has {begin!r} without {end!r} after it: add the end '
      'marker, or remove the begin marker'
    )
  return f'{before}{marked}{after}'
