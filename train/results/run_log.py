"""The log of a run: JSON lines, TensorBoard, Weights & Biases."""

import importlib.util
import json
import math
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from train import errors, files

FILE = 'metrics.jsonl'

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]


class _Timing(msgspec.Struct):
  seconds: _Number


class _Record(msgspec.Struct):
  """The fields of a record that are read again."""

  step: _Count
  tokens: _Count
  timing: _Timing
  loss: _Number | str = 0
  eval_loss: _Number | str = msgspec.field(name='eval/loss', default=0)
  eval_tokens: _Count = msgspec.field(name='eval/tokens', default=0)


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the records of a file of JSON lines, except a partial last line.

  Args:
    path: The file; it may not exist.

  Yields:
    The records.

  Raises:
    UserError: If the file was not written by `JsonLines`.
  """
  if not path.exists():
    return
  try:
    lines = files.read_text(path).split('\n')
    for line in lines[:-1]:
      record = json.loads(line)
      msgspec.convert(record, _Record)
      yield record
  except (
    *(OSError, ValueError, RecursionError),
    msgspec.ValidationError,
  ) as error:
    raise errors.UserError(
      f'{path} cannot be read as the records of a run '
      f'({errors.first_line(error)}): move it away to resume without the '
      'records of the steps so far'
    ) from error


class JsonLines:
  """Appends records to a file, after truncating it to the restored step.

  Steps are repeated bit for bit after a restart, so the file is the same as
  that of an uninterrupted run, except for the key 'timing'.

  Attributes:
    seconds: Duration of the run until the restored step.
    evaluated: The last step that was evaluated.
    complete: Whether the file has the records of all previous steps.
  """

  def __init__(self, path: pathlib.Path, restored_step: int):
    """Opens the file.

    Args:
      path: The file; it may exist.
      restored_step: Records of later steps are removed.
    """
    kept = [r for r in read(path) if r['step'] <= restored_step]
    self.seconds = max((r['timing']['seconds'] for r in kept), default=0.0)
    self.evaluated = max(
      (r['step'] for r in kept if 'eval/loss' in r), default=0
    )
    self.complete = bool(kept) or not restored_step
    if path.exists():
      files.write_text(path, ''.join(map(_line, kept)))
    self._file = path.open('a', encoding='utf-8')

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends a record, which then survives a kill of the process."""
    self._file.write(_line(record))
    self._file.flush()
    if 'eval/loss' in record:
      self.evaluated = record['step']

  def sync(self) -> None:
    """Flushes to disk, so that the records survive a crash of the machine."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()


def _line(record: Mapping[str, Any]) -> str:
  finite = {k: _finite(v) for k, v in record.items()}
  return json.dumps(finite, allow_nan=False) + '\n'


def _finite(value: Any) -> Any:
  """Converts NaN and infinity, which JSON lacks, to strings."""
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


class TensorBoard:
  """Scalars for TensorBoard; does nothing without a directory."""

  def __init__(self, directory: pathlib.Path | None, restored_step: int):
    self._writer = None
    if directory is not None:
      import tensorboardX  # Slow to import, and optional.

      self._writer = tensorboardX.SummaryWriter(
        str(directory), purge_step=restored_step + 1
      )

  def write(self, record: Mapping[str, Any]) -> None:
    if self._writer is None:
      return
    for name, value in _scalars(record).items():
      self._writer.add_scalar(name, value, record['step'])

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


def check_wandb(project: str | None) -> None:
  """Raises UserError if a project is given but the package is missing."""
  spec = importlib.util.find_spec('wandb') if project is not None else None
  # A directory that an uninstalled package left behind has no loader.
  if project is not None and (spec is None or spec.loader is None):
    raise errors.UserError(
      f'config.log.wandb={project!r} needs the package wandb: pip install -e '
      "'.[train,wandb]', or omit it"
    )


class WeightsAndBiases:
  """Scalars for Weights & Biases, in a run per working directory."""

  def __init__(
    self,
    project: str,
    name: str,
    workdir: pathlib.Path,
    identity: Mapping[str, Any],
  ):
    """Starts a run, or continues the run of the working directory.

    Args:
      project: Name of the project.
      name: Name of the run.
      workdir: The working directory; the package keeps its files there, and
        the file `wandb_id` contains the identifier of the run.
      identity: The configuration to show for the run.

    Raises:
      UserError: If the package cannot start one.
    """
    import wandb  # Slow to import, and optional.

    identifier = workdir / 'wandb_id'
    if not (identifier.exists() and files.read_text(identifier).strip()):
      files.write_text(identifier, uuid.uuid4().hex)
    try:
      self._run = wandb.init(
        project=project,
        name=name,
        id=files.read_text(identifier).strip(),
        resume='allow',
        dir=str(workdir),
        config=dict(identity),
      )
    except wandb.Error as error:
      raise errors.UserError(
        f'wandb cannot start a run ({errors.first_line(error)}): run `wandb '
        'login`, set WANDB_MODE=offline, or omit --config.log.wandb'
      ) from error

  def write(self, record: Mapping[str, Any]) -> None:
    # Steps after the checkpoint were already sent, with the same numbers.
    if record['step'] >= self._run.step:
      self._run.log(_scalars(record), step=record['step'])

  def close(self) -> None:
    self._run.finish()


def _scalars(record: Mapping[str, Any]) -> dict[str, int | float]:
  """Returns the numbers of a record, including timings but not the step."""
  rest = {k: v for k, v in record.items() if k not in ('step', 'timing')}
  return {
    name: value
    for name, value in {**rest, **record['timing']}.items()
    if isinstance(value, int | float)
  }
