"""The files to prepare, and how their documents are divided."""

import dataclasses
import glob
import importlib.util
import os
import pathlib
from collections.abc import Callable

from train.data import readers
from train.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
  """A user's text files.

  Attributes:
    pattern: Glob of files whose suffix is one of `readers.SUFFIXES`; `**`
      stands for any directories.
    validation_pattern: Glob of the validation files. They, and copies of their
      documents, are left out of the training split even if `pattern` matches
      them.
    validation_fraction: Without a validation_pattern, the approximate share of
      documents to hold out, chosen by hash, up to
      `documents.MAX_HELD_OUT_BYTES`.
    max_bad_lines: Number of lines without a document to skip.
    instructions: Whether documents may be prompts with their responses, where
      only the responses are targets; see `documents.parse`.
  """

  pattern: str
  validation_pattern: str | None = None
  validation_fraction: float = 0.02
  max_bad_lines: int = 1000
  instructions: bool = False

  def check(self) -> None:
    """Raises UserError if a number is out of range."""
    if not 0 < self.validation_fraction < 1:
      raise UserError(
        f'--validation_fraction is {self.validation_fraction}, but must be '
        'between 0 and 1.'
      )
    if self.max_bad_lines < 0:
      raise UserError(
        f'--max_bad_lines is {self.max_bad_lines}, but must not be negative.'
      )

  def find(
    self, log: Callable[[str], None]
  ) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Finds the files.

    Args:
      log: Receives messages.

    Returns:
      The validation files and the others, each sorted.

    Raises:
      UserError: If no file matches a pattern, a file has an unknown type, or
        every file is a validation file.
    """
    held_out: list[pathlib.Path] = []
    if self.validation_pattern:
      held_out = find(self.validation_pattern)
    unwanted = {path.resolve() for path in held_out}
    found = find(self.pattern)
    files = [path for path in found if path.resolve() not in unwanted]
    if not files:
      raise UserError(
        '--validation matches every file of --input: no file is left for '
        'training.'
      )
    if len(files) < len(found):
      log(
        f'{len(found) - len(files)} files of --input are held out for '
        'validation.'
      )
    return held_out, files


def identities(files: list[pathlib.Path]) -> list[list[str | int]]:
  """Returns properties of files that change when they are edited."""
  stats = [(f.name, f.stat()) for f in files]
  return [[name, s.st_size, s.st_mtime_ns] for name, s in stats]


def find(pattern: str) -> list[pathlib.Path]:
  """Returns the files that match a pattern, sorted."""
  files = sorted(
    path
    for name in glob.glob(
      str(pathlib.Path(pattern).expanduser()), recursive=True
    )
    if (path := pathlib.Path(name)).is_file()
  )
  if not files:
    hint = 'quote the pattern and check the path'
    if os.path.isdir(os.path.expanduser(pattern)):
      hint = f'it is a directory; use {os.path.join(pattern, "*")!r}'
    raise UserError(f'No file matches {pattern!r}: {hint}.')
  for path in files:
    if not path.name.endswith(readers.SUFFIXES):
      raise UserError(
        f'{path} has an unknown type; expected {", ".join(readers.SUFFIXES)}.'
      )
    if path.name.endswith(readers.PARQUET) and not importlib.util.find_spec(
      'pyarrow'
    ):
      raise UserError(
        f"To read {path} install pyarrow: pip install -e '.[train,parquet]'."
      )
  return files
