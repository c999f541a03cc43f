"""One run of a study, and the file of its results."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

RESULTS = pathlib.Path('results')

Point = tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run.

  Attributes:
    cell: name of the model and data.
    arm: name of the optimizer.
    options: sorted pairs of the options that are tuned.
    seed: seed of the initial weights and the data order.
  """

  cell: str
  arm: str
  options: Point
  seed: int

  @property
  def key(self) -> str:
    """Identifies the trial; trials with the same key are the same run."""
    return json.dumps([self.cell, self.arm, dict(self.options), self.seed])


def make(cell: str, arm: str, options: Mapping[str, float], seed: int) -> Trial:
  """Returns a trial with a mapping of options."""
  return Trial(cell, arm, point_of(options), seed)


def point_of(options: Mapping[str, float]) -> Point:
  """Converts a mapping of options to a point, rounded as in a file."""
  pairs = ((name, _rounded(value)) for name, value in options.items())
  return tuple(sorted(pairs))


def of_line(line: Mapping[str, Any]) -> Trial:
  """The trial that a line of results belongs to."""
  return make(line['cell'], line['arm'], line['options'], line['seed'])


def path_of(study: str, root: pathlib.Path = RESULTS) -> pathlib.Path:
  """The file of a study."""
  return root / f'{study}.jsonl'


def times_of(cell: str, root: pathlib.Path = RESULTS) -> pathlib.Path:
  """The file of the arms' step times in a cell."""
  return root / f'times_{cell}.jsonl'


def append(path: pathlib.Path, line: Mapping[str, Any]) -> None:
  """Appends one line, which then survives a kill."""
  text = json.dumps(_plain(line), allow_nan=False) + '\n'
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('ab+') as file:
    # Keep this line separate from an incomplete last line of a crash.
    if file.tell():
      file.seek(-1, os.SEEK_END)
      if file.read(1) != b'\n':
        text = '\n' + text
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The lines of a study by key: the first of each key, without torn lines."""
  lines: dict[str, dict[str, Any]] = {}
  if not path.exists():
    return lines
  for text in path.read_text().splitlines():
    try:
      line = json.loads(text)
    except ValueError:
      continue
    lines.setdefault(of_line(line).key, line)
  return lines


def losses(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
  """Final losses by key; infinite if the run diverged."""
  return {
    of_line(line).key: math.inf if line['diverged'] else line['loss']
    for line in lines
  }


def _plain(value: Any) -> Any:
  """Rounds floats; NaN and infinity, which JSON lacks, become None."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, float):
    return _rounded(value) if math.isfinite(value) else None
  return value


def _rounded(value: float) -> float:
  return float(f'{value:.8g}')
