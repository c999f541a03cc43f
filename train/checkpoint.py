"""Checkpoints by Orbax, each with a description of the run it belongs to."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from train import errors
from train.state import TrainState

RUN_FILE = 'run.json'

# A killed run leaves these; Orbax ignores them, but they fill the disk.
_UNFINISHED = '*.orbax-checkpoint-tmp*'


def check_same(
  saved: Mapping[str, Any], now: Mapping[str, Any], where: str
) -> None:
  """Raises UserError at the first field in which two descriptions differ.

  Args:
    saved: What a working directory or a checkpoint says of its run.
    now: The same of this run, as far as it is known yet.
    where: Where `saved` comes from.

  Raises:
    UserError: It names the field and both values.
  """
  # As JSON reads them back: tuples are lists there.
  now = json.loads(json.dumps(now))
  for name, value in now.items():
    before = saved.get(name)
    if before != value:
      raise errors.UserError(
        f'{where} belongs to another run: its {name} is {before!r}, now it is '
        f'{value!r}; give another --config.workdir, or the old value, or '
        'remove that directory'
      )


def check_workdir(
  workdir: pathlib.Path, description: Mapping[str, Any]
) -> None:
  """Raises UserError if the directory holds a run that is not this one.

  Nothing is written; a directory without a run is fine.
  """
  path = workdir / RUN_FILE
  if path.exists():
    check_same(_load(path), description, str(workdir))


def claim_workdir(
  workdir: pathlib.Path, description: Mapping[str, Any]
) -> None:
  """Checks, and writes down, which run the directory holds."""
  check_workdir(workdir, description)
  part = workdir / f'{RUN_FILE}.part'
  part.write_text(json.dumps(description, indent=2) + '\n')
  part.replace(workdir / RUN_FILE)


def _load(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
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
  ):
    """Opens the directory, or makes it.

    Args:
      directory: Where they are.
      description: What makes the run what it is, as JSON; see `check_same`.
      keep: How many are kept.
      asynchronous: Whether files are written while training goes on.
    """
    self.directory = directory.absolute()
    self._description = description
    if jax.process_index() == 0:
      for path in self.directory.glob(_UNFINISHED):
        shutil.rmtree(path)
    latest = ocp.checkpoint_managers.LatestN(n=keep)
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=latest,
        enable_async_checkpointing=asynchronous,
      ),
    )

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

  def wait(self) -> None:
    """Returns when all that was saved is complete on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()


def _first_line(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
