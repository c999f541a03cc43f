"""Which trials of a study are done, and which are next."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import studies, trial, tuning
from experiments.arms import Arm
from experiments.trial import Trial


@dataclasses.dataclass(frozen=True)
class ArmProgress:
  """Which trials of an arm in a cell are done.

  Attributes:
    tuned: The result of the search; None while it is not finished.
    missing: Trials that can run now.
    done: Number of trials that have results.
    left: Number of trials still to run; an estimate during the search.
  """

  tuned: tuning.Tuned | None
  missing: list[Trial]
  done: int
  left: int


def progress(
  study: studies.Study, cell: str, arm: Arm, losses: Mapping[str, float]
) -> ArmProgress:
  """Returns which trials of an arm are done, given the losses by key."""
  make = functools.partial(trial.make, cell, arm.name)
  mine = f'["{cell}", "{arm.name}", '
  done = sum(key.startswith(mine) for key in losses)
  budget = study.budget_of(arm.name)
  if _start(study, arm, losses) is None:
    return ArmProgress(None, [], done, budget + len(study.seeds))
  try:
    tuned = _search(study, cell, arm, losses)
    if others := _found_by_others(study, cell, arm, losses):
      tuned = _search(study, cell, arm, losses, others)
  except tuning.Missing as missing:
    trials = [make(dict(point), 0) for point in missing.points]
    left = max(budget - done, len(trials)) + len(study.seeds)
    return ArmProgress(None, trials, done, left)
  fresh = [make(tuned.options, seed) for seed in study.seeds]
  trials = [t for t in fresh if t.key not in losses]
  return ArmProgress(tuned, trials, done, len(trials))


def _search(
  study: studies.Study,
  cell: str,
  arm: Arm,
  losses: Mapping[str, float],
  others: Sequence[Mapping[str, float]] = (),
) -> tuning.Tuned:
  """Tunes an arm whose start is known; see `tuning.search`."""
  start = _start(study, arm, losses)
  assert start is not None
  lists = {'weight_decay': tuning.WEIGHT_DECAYS, 'beta': arm.betas}
  if study.after:
    lists = {name: lists[name] for name in study.again}
    start = {**start, **{name: lists[name][0] for name in study.again}}

  def loss_of(point: trial.Point) -> float | None:
    return losses.get(trial.make(cell, arm.name, dict(point), 0).key)

  return tuning.search(
    start, lists, loss_of, study.budget_of(arm.name), others, arm.one_rate
  )


def _found_by_others(
  study: studies.Study, cell: str, arm: Arm, losses: Mapping[str, float]
) -> list[dict[str, float]]:
  """The options that the arms with another damper found on their own."""
  found = []
  here = {name for at, names in study.blocks if at == cell for name in names}
  if arm.name in studies.SIGNS and not study.after:
    for name in here.intersection(studies.SIGNS) - {arm.name}:
      with contextlib.suppress(tuning.Missing):
        other = _search(study, cell, study.arm(name), losses)
        found.append(other.options)
  return sorted(found, key=trial.point_of)


def _start(
  study: studies.Study, arm: Arm, losses: Mapping[str, float]
) -> Mapping[str, float] | None:
  """Where a search starts; None while an earlier study is not finished."""
  if not study.after:
    return {**arm.start, **study.start, **study.starts.get(arm.name, {})}
  earlier = studies.STUDIES[study.after]
  *_, cell = (at for at, names in earlier.blocks if arm.name in names)
  found = progress(earlier, cell, earlier.arm(arm.name), losses)
  return found.tuned.options if found.tuned and not found.left else None


def read(study: studies.Study, root: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The lines of a study, and of the one that it starts from, by key."""
  lines = trial.read(trial.path_of(study.name, root))
  if study.after:
    lines |= read(studies.STUDIES[study.after], root)
  return lines


def missing_trials(
  study: studies.Study, losses: Mapping[str, float], **which: Any
) -> list[Trial]:
  """Trials that can run now, by priority."""
  return [
    trial
    for cell, arm in studies.arms_of(study, **which)
    for trial in progress(study, cell, arm, losses).missing
  ]
