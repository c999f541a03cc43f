"""Checkpoints by Orbax, each with a description of the run it belongs to."""

import json
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import orbax.checkpoint as ocp

from train import errors
from train.distributed.processes import Processes
from train.state import TrainState

RUN_FILE = 'run.json'
DIRECTORY = 'checkpoints'

# A killed run leaves these; Orbax ignores them, but they fill the disk.
_UNFINISHED = '*.orbax-checkpoint-tmp*'


def check_same(
  saved: Mapping[str, Any],
  now: Mapping[str, Any],
  where: str,
  unknown: Collection[str] = (),
) -> None:
  """Raises UserError at the first field in which two descriptions differ.

  Args:
    saved: What a working directory or a checkpoint says of its run.
    now: The same of this run.
    where: Where `saved` comes from.
    unknown: Fields that are not in `now` because it is too early to tell.

  Raises:
    UserError: It names the field and both values; None and a field that is
      not there are the same, not set.
  """
  for name, (before, value) in _differences(saved, now).items():
    if name not in unknown:
      raise errors.UserError(
        f'{where} belongs to another run: its {name} is {_words(before)}, now '
        f'it is {_words(value)}; give another --config.workdir, or the old '
        'value, or remove that directory'
      )


def _differences(
  saved: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  # As JSON reads them back: tuples are lists there.
  now = json.loads(json.dumps(now))
  return {
    name: (saved.get(name), now.get(name))
    for name in {**now, **saved}
    if saved.get(name) != now.get(name)
  }


def _words(value: Any) -> str:
  return 'not set' if value is None else repr(value)


def check_workdir(
  workdir: pathlib.Path,
  description: Mapping[str, Any],
  unknown: Collection[str] = (),
) -> None:
  """Raises UserError if the directory holds a run that is not this one.

  Nothing is written; a directory without a run is fine.

  Args:
    workdir: The directory of a run.
    description: What makes the run what it is; see `check_same`.
    unknown: As for `check_same`.
  """
  path = workdir / RUN_FILE
  if path.exists():
    check_same(_load(path)['run'], description, str(workdir), unknown)


def claim_workdir(
  workdir: pathlib.Path,
  description: Mapping[str, Any],
  rounding: Mapping[str, Any],
) -> str | None:
  """Checks, and writes down, which run the directory holds.

  Args:
    workdir: The directory of a run.
    description: What makes the run what it is; see `check_same`.
    rounding: What may change while the run is interrupted, and changes how
      sums are rounded; the values that the run began with are kept.

  Returns:
    A line that warns if `rounding` is not as it was when the run began.
  """
  check_workdir(workdir, description)
  path = workdir / RUN_FILE
  steps = (workdir / DIRECTORY).glob('*')
  if path.exists() and any(step.name.isdigit() for step in steps):
    return _warning(_load(path)['rounding'], rounding)
  part = workdir / f'{RUN_FILE}.part'
  content = {'run': dict(description), 'rounding': dict(rounding)}
  part.write_text(json.dumps(content, indent=2) + '\n')
  part.replace(path)
  return None


def _warning(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
  changes = [
    f'{name} was {_words(old)} and is {_words(new)}'
    for name, (old, new) in _differences(before, now).items()
  ]
  if not changes:
    return None
  return (
    f'Since the run began, {", ".join(changes)}: from here on its numbers may '
    'differ in rounding.'
  )


def _load(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text())
    return {name: dict(content[name]) for name in ('run', 'rounding')}
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(
      f'{path} is not readable ({error}): give another --config.workdir, or '
      'remove that directory'
    ) from error


class Checkpoints:
  """The checkpoints of one run. The step is the position in the data, too."""

  def __init__(
    self,
    directory: pathlib.Path,
    description: Mapping[str, Any],
    *,
    keep: int = 3,
    asynchronous: bool = True,
    processes: Processes | None = None,
  ):
    """Opens the directory, or makes it.

    Args:
      directory: Where they are.
      description: What makes the run what it is, as JSON; see `check_same`.
      keep: How many are kept.
      asynchronous: Whether files are written while training goes on.
      processes: Those that save together; None: this one alone.
    """
    self.directory = directory.absolute()
    self._description = description
    self._processes = processes or Processes()
    self._processes.share(self._remove_unfinished)
    latest = ocp.checkpoint_managers.LatestN(n=keep)
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=latest,
        enable_async_checkpointing=asynchronous,
      ),
    )

  def _remove_unfinished(self) -> None:
    for path in self.directory.glob(_UNFINISHED):
      shutil.rmtree(path)

  @property
  def latest(self) -> int | None:
    """The step of the last checkpoint that is complete, or being written."""
    return self._manager.latest_step()

  def path(self, step: int) -> pathlib.Path:
    return self.directory / str(step)

  def save(self, state: TrainState, step: int) -> None:
    """Saves a state whose loss and norms are known to be finite.

    The arrays are copied before this returns, so the state may be donated.

    Args:
      state: The state after `step` steps.
      step: The number of steps.
    """
    if step == self.latest:
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        description=ocp.args.JsonSave(dict(self._description)),
      ),
    )

  def restore(
    self, abstract: TrainState, step: int | None = None
  ) -> TrainState:
    """Reads a state, each array to the devices where it belongs.

    Args:
      abstract: ShapeDtypeStructs with shardings.
      step: Which; the latest if None.

    Returns:
      The state.

    Raises:
      UserError: If the checkpoint is of another run, or cannot be read.
    """
    step = (self.latest or 0) if step is None else step
    path = self.path(step)
    try:
      saved = self._manager.restore(
        step, args=ocp.args.Composite(description=ocp.args.JsonRestore())
      )
      check_same(saved.description, self._description, f'the checkpoint {path}')
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )
    except errors.UserError:
      raise
    except Exception as error:  # Orbax raises whatever a broken file causes.
      raise errors.UserError(
        f'the checkpoint {path} cannot be read ({_first_line(error)}): remove '
        'that directory to go on from the one before it'
      ) from error
    return restored.state

  @property
  def writing(self) -> bool:
    """Whether files are being written beside what else goes on."""
    return self._manager.is_saving_in_progress()

  def wait(self) -> None:
    """Returns when all that was saved is complete on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()


def _first_line(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
