"""Orbax checkpoints, each with a description of its run and checksums."""

import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import orbax.checkpoint as ocp

from train import errors, files, workdir
from train.distributed import processes
from train.state import TrainState, checksums

# Left by killed runs. Orbax ignores them, but they fill the disk.
_UNFINISHED = '*.orbax-checkpoint-tmp*'


class Damaged(errors.UserError):
  """A checkpoint differs from what was saved."""


class Unreadable(Damaged):
  """A checkpoint that this process cannot read; others may be able to."""


class _Manager(ocp.CheckpointManager):
  """Leaves the preemption check to `SharedStop`, which numbers its calls."""

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Checkpoints:
  """The checkpoints of a run. The step is also the position in the data."""

  def __init__(
    self,
    directory: pathlib.Path,
    description: Mapping[str, Any],
    *,
    keep: int = 3,
    asynchronous: bool = True,
  ):
    """Opens or creates the directory.

    Args:
      directory: Directory of the checkpoints.
      description: What identifies the run, as JSON; see `workdir.check_same`.
      keep: Number of checkpoints to keep.
      asynchronous: Whether files are written while training continues.
    """
    self.directory = directory.absolute()
    self._description = description
    processes.first_does(self._remove_unfinished)
    latest = ocp.checkpoint_managers.LatestN(n=keep)
    self._manager = _Manager(
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
    """The step of the last checkpoint, which may be incomplete on disk."""
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
    content = {
      'step': step,
      'run': dict(self._description),
      'checksums': checksums(state),
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        run=ocp.args.JsonSave({**content, 'crc': files.crc(content)}),
      ),
    )

  def restore(self, abstract: TrainState, step: int) -> TrainState:
    """Reads a state, each array to the devices of its sharding.

    Args:
      abstract: ShapeDtypeStructs with shardings.
      step: The step of the checkpoint.

    Returns:
      The state, bit for bit as it was saved.

    Raises:
      Damaged: If the checkpoint cannot be read or is not what was saved.
      UserError: If it belongs to another run.
    """
    self.wait()
    path = self.path(step)
    content = self._read_description(path)
    workdir.check_same(
      content['run'], self._description, f'the checkpoint {path}'
    )
    if content['step'] != step:
      raise Damaged(f'the checkpoint {path} holds step {content["step"]}')
    try:
      state = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      ).state
    except Exception as error:  # A broken file may raise anything.
      if processes.may_be_lost(error):
        raise
      if refusal := errors.of_system(error):  # The file is not to blame.
        raise refusal from error
      raise Unreadable(
        f'the checkpoint {path} cannot be read ({errors.first_line(error)})'
      ) from error
    found = checksums(state)
    wrong = [n for n, v in content['checksums'].items() if found.get(n) != v]
    if wrong or len(found) != len(content['checksums']):
      raise Damaged(
        f'the checkpoint {path} is damaged: the checksum of '
        f'{", ".join(wrong[:3]) or "its arrays"} differs'
      )
    return state

  def _read_description(self, path: pathlib.Path) -> dict[str, Any]:
    try:
      content = workdir.read_description(path)
      files.check_crc(content)
      return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      reason = errors.first_line(error)
    raise Damaged(
      f'the checkpoint {path} has no description that can be read ({reason})'
    )

  def restore_newest(
    self,
    abstract: TrainState,
    say: Callable[[str], None],
    *,
    strict: bool = False,
  ) -> tuple[int, TrainState] | None:
    """Reads the newest intact checkpoint.

    Newer checkpoints that are damaged are moved to the directory `damaged`
    beside the checkpoints.

    Args:
      abstract: As for `restore`.
      say: Receives a line for each damaged checkpoint.
      strict: Whether a damaged checkpoint is an error.

    Returns:
      Its step and state; None if there is no checkpoint.

    Raises:
      UserError: If they belong to another run, if none is intact, or if
        `strict` and one is damaged.
    """
    steps = processes.first_does(
      lambda: sorted(self._manager.all_steps(), reverse=True)
    )
    damaged: list[tuple[int, Damaged]] = []
    for step in steps:
      try:
        state = self.restore(abstract, step)
      except Damaged as error:
        damaged.append((step, error))
        # Other processes may have read this one and not tried an older one.
        alone = not processes.several()
        if strict or not (alone or type(error) is Damaged):
          break
        continue
      self._set_aside([step for step, _ in damaged])
      for _, reason in damaged:
        say(f'Warning: {reason}; it was moved to {self._damaged}.')
      return step, state
    if not damaged:
      return None
    older = [step for step in steps if step < damaged[-1][0]]
    advice = (
      f'move that directory away to resume from step {older[0]}'
      if older
      else 'no other is intact: restore a copy, or remove the working '
      'directory to start again'
    )
    raise errors.UserError(f'{damaged[0][1]}: {advice}')

  @property
  def _damaged(self) -> pathlib.Path:
    return self.directory.parent / workdir.DAMAGED

  def _set_aside(self, steps: list[int]) -> None:
    def move() -> None:
      for step in steps:
        self._damaged.mkdir(exist_ok=True)
        target, number = self._damaged / str(step), 0
        while target.exists():
          number += 1
          target = self._damaged / f'{step}.{number}'
        self.path(step).rename(target)

    if steps:
      processes.first_does(move)
      self._manager.reload()

  @property
  def writing(self) -> bool:
    """Whether a checkpoint is being written in the background."""
    return self._manager.is_saving_in_progress()

  def check(self) -> None:
    """Raises the error if a save in the background has failed."""
    self._manager.check_for_errors()

  def wait(self) -> None:
    """Waits until all saves are complete on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()
