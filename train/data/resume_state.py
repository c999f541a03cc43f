"""The record of an unfinished preparation, by which it is resumed."""

import json
import os
import pathlib
from typing import Any

from train import files
from train.data import writer
from train.errors import UserError

FILE = 'progress.json'
_FORMAT = 1


def save(partial: pathlib.Path, state: dict[str, Any]) -> None:
  """Replaces the record of a directory; a kill leaves the old or the new.

  Args:
    partial: The directory.
    state: JSON.
  """
  new = partial / f'{FILE}.new'
  with open(new, 'w', encoding='utf-8') as file:
    json.dump({'format': _FORMAT, **state}, file)
    file.flush()
    os.fsync(file.fileno())
  new.replace(partial / FILE)
  writer.sync_directory(partial)


def load(partial: pathlib.Path) -> dict[str, Any] | None:
  """Returns the record, or None if there is none; UserError if it is bad."""
  try:
    state = json.loads(files.read_text(partial / FILE))
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise unusable(partial, f'its {FILE} cannot be read ({error})') from error
  if not isinstance(state, dict) or state.get('format') != _FORMAT:
    raise unusable(partial, f'its {FILE} is not of format {_FORMAT}')
  return state


def unusable(partial: pathlib.Path, reason: str) -> UserError:
  """An error for an unfinished preparation that cannot be resumed."""
  return UserError(
    f'{partial} holds an unfinished preparation that cannot be resumed: '
    f'{reason}. Give what it began with, or delete it to start afresh, or '
    'choose another --output.'
  )
