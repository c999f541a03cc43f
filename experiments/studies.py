"""The studies as data, and the order of their trials."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments import trial, tuning
from experiments.arms import ARMS, RECIPE_ARMS, TABLE_ARMS, Arm
from experiments.trial import Trial

_TABLE = tuple(arm.name for arm in TABLE_ARMS)
_RECIPES = tuple(arm.name for arm in RECIPE_ARMS)
# They decide the questions; the larger toys have no others.
_FIRST = (
  'adamw', 'sage', 'sinkgd', 'row_rms', 'factored', 'lion', 'lion_mean_h',
  'sage_shuffled',
)  # fmt: skip
# They differ in the damper only, and also try each other's best options.
_SIGNS = ('sage', 'lion', 'lion_mean_h', 'sage_shuffled')
_DOSE = ('adamw', 'sage', 'sinkgd', 'lion')
_RECIPES_FIRST = tuple(
  f'recipe_{name}'
  for name in (
    'adamw', 'rms_muon', 'sage_hybrid', 'lion_hybrid', 'sinkgd', 'muon',
  )
)  # fmt: skip
_UNTIED = ('recipe_adamw', 'recipe_rms_muon', 'recipe_sage_hybrid')


@dataclasses.dataclass(frozen=True)
class Study:
  """Cells times arms, all tuned in the same way.

  Attributes:
    name: name of the study and of its file of results.
    blocks: (cell, arms) in the order in which they are run.
    seeds: fresh seeds for the tuned arms; tuning uses seed 0.
    budget: smallest number of tuning trials per arm.
    start: options that replace those of `Arm.start`.
    starts: the same for single arms.
    tunes_beta: whether the arms' betas are tuned; if not, defaults are used.
    after: study whose tuned options start the search, which then tunes only the
      rates and `again`; '' for none.
    again: other options that such a study tunes, from the first value.
  """

  name: str
  blocks: tuple[tuple[str, tuple[str, ...]], ...]
  seeds: tuple[int, ...]
  budget: int = 14
  start: Mapping[str, float] = dataclasses.field(default_factory=dict)
  starts: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  tunes_beta: bool = True
  after: str = ''
  again: tuple[str, ...] = ()

  def arm(self, name: str) -> Arm:
    """An arm as this study tunes it."""
    arm = ARMS[name]
    if self.tunes_beta:
      return arm
    start = {k: v for k, v in arm.start.items() if k != 'beta'}
    return dataclasses.replace(arm, start=start, betas=())


def _by_importance(
  cell: str, first: tuple[str, ...], arms: tuple[str, ...]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
  """All arms in one cell, with `first` before the others."""
  return ((cell, (*first, *(name for name in arms if name not in first))),)


# The toy has larger rates: few steps, and rows of norm 1.
_TOY_START = {'embedding_rate': 16e-3, 'matrix_rate': 4e-3}
# What SAGE and AdamW chose in `small_tied`, and rules that chose similar rates
# in the toy.
_SIGN_DECAY = {'weight_decay': 0.1, 'beta': 0.95}
_SMALL_SIGN = {'embedding_rate': 8e-3, 'matrix_rate': 4e-3}
_SMALL_SAGE = {**_SMALL_SIGN, **_SIGN_DECAY}
_SMALL_ADAM = {'embedding_rate': 32e-3, 'matrix_rate': 4e-3}
_LIKE_ADAM = (
  'factored', 'coupled_adam', 'adafactor', 'adafactor_momentum', 'adam_mini',
)  # fmt: skip
_LIKE_SAGE = ('row_momentum', 'row_norm', 'column_norm', 'column_momentum')
_TWENTY = tuple(range(1, 21))
_FIVE = tuple(range(1, 6))
_THREE = tuple(range(1, 4))

STUDIES = {
  study.name: study
  for study in (
    Study(
      'toy',
      (
        *((f'toy_v{v}', _TABLE) for v in (1024, 512, 2048)),
        ('toy_v4096', _FIRST),
      ),
      _TWENTY,
      start=_TOY_START,
    ),
    Study(
      'toy_dose',
      tuple((f'toy_v1024_t{t}', _FIRST) for t in ('0.125', '2', '8')),
      _TWENTY,
      start=_TOY_START,
    ),
    Study(
      'toy_large',
      (('toy_v16384', _DOSE),),
      _FIVE,
      budget=5,
      after='toy',
    ),
    Study(
      'small_tied',
      _by_importance('small_tied', _FIRST, _TABLE),
      _FIVE,
      starts={
        'lion_mean_h': _SMALL_SAGE,
        'sage_shuffled': _SMALL_SAGE,
        **dict.fromkeys(_LIKE_ADAM, _SMALL_ADAM),
        **dict.fromkeys(_LIKE_SAGE, _SMALL_SIGN),
      },
    ),
    Study(
      'small_untied',
      (('small_untied', _FIRST),),
      _FIVE,
      budget=5,
      after='small_tied',
    ),
    Study(
      'small_recipes',
      _by_importance('small_tied', _RECIPES_FIRST, _RECIPES),
      _FIVE,
      starts={
        **{x: _SIGN_DECAY for x in _RECIPES if 'sage' in x or 'lion' in x},
        'recipe_sage_hybrid': _SMALL_SAGE,
      },
    ),
    Study(
      'small_untied_recipes',
      (('small_untied', _UNTIED),),
      _FIVE,
      budget=5,
      after='small_recipes',
    ),
    # The baseline with half and twice the tokens: what a difference is worth.
    Study(
      'small_tokens',
      tuple((f'small_tied_x{x}', ('recipe_adamw',)) for x in ('0.5', '2')),
      _THREE,
      budget=5,
      after='small_recipes',
    ),
    Study(
      'medium',
      (('medium_tied', _RECIPES_FIRST),),
      _THREE,
      budget=9,
      again=('weight_decay',),
      after='small_recipes',
    ),
    Study(
      'vit',
      (('digits', ('recipe_adamw', 'recipe_sage_hybrid')),),
      _FIVE,
      tunes_beta=False,
    ),
  )
}  # fmt: skip


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
  study: Study, cell: str, arm: Arm, losses: Mapping[str, float]
) -> ArmProgress:
  """Returns which trials of an arm are done, given the losses by key."""
  make = functools.partial(trial.make, cell, arm.name)
  mine = f'["{cell}", "{arm.name}", '
  done = sum(key.startswith(mine) for key in losses)
  if _start(study, arm, losses) is None:
    return ArmProgress(None, [], done, study.budget + len(study.seeds))
  try:
    tuned = _search(study, cell, arm, losses)
    if others := _found_by_others(study, cell, arm, losses):
      tuned = _search(study, cell, arm, losses, others)
  except tuning.Missing as missing:
    trials = [make(dict(point), 0) for point in missing.points]
    left = max(study.budget - done, len(trials)) + len(study.seeds)
    return ArmProgress(None, trials, done, left)
  fresh = [make(tuned.options, seed) for seed in study.seeds]
  trials = [t for t in fresh if t.key not in losses]
  return ArmProgress(tuned, trials, done, len(trials))


def _search(
  study: Study,
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

  return tuning.search(start, lists, loss_of, study.budget, others)


def _found_by_others(
  study: Study, cell: str, arm: Arm, losses: Mapping[str, float]
) -> list[dict[str, float]]:
  """The options that the arms with another damper found on their own."""
  found = []
  here = {name for at, names in study.blocks if at == cell for name in names}
  if arm.name in _SIGNS and not study.after:
    for name in here.intersection(_SIGNS) - {arm.name}:
      with contextlib.suppress(tuning.Missing):
        other = _search(study, cell, study.arm(name), losses)
        found.append(other.options)
  return sorted(found, key=trial.point_of)


def _start(
  study: Study, arm: Arm, losses: Mapping[str, float]
) -> Mapping[str, float] | None:
  """Where a search starts; None while an earlier study is not finished."""
  if not study.after:
    return {**arm.start, **study.start, **study.starts.get(arm.name, {})}
  earlier = STUDIES[study.after]
  *_, cell = (at for at, names in earlier.blocks if arm.name in names)
  found = progress(earlier, cell, earlier.arm(arm.name), losses)
  return found.tuned.options if found.tuned and not found.left else None


def read(study: Study, root: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The lines of a study, and of the one that it starts from, by key."""
  lines = trial.read(trial.path_of(study.name, root))
  return lines | (read(STUDIES[study.after], root) if study.after else {})


def arms_of(
  study: Study,
  only: Sequence[str] | None = None,
  shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[str, Arm]]:
  """The cells and arms of a study, or of a part of it.

  Args:
    study: The study.
    only: Names of arms, or None for all.
    shard: (i, n): every n-th pair, starting with the i-th.
  """
  pairs = [
    (cell, study.arm(name)) for cell, names in study.blocks for name in names
  ]
  for index, (cell, arm) in enumerate(pairs):
    if index % shard[1] == shard[0] and (only is None or arm.name in only):
      yield cell, arm


def missing_trials(
  study: Study, losses: Mapping[str, float], **which: Any
) -> list[Trial]:
  """Trials that can run now, by priority."""
  return [
    trial
    for cell, arm in arms_of(study, **which)
    for trial in progress(study, cell, arm, losses).missing
  ]
