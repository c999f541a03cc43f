"""The studies as data, in the order in which they run."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from experiments.arms import ARMS, RECIPE_ARMS, TABLE_ARMS, Arm

_TABLE = tuple(arm.name for arm in TABLE_ARMS)
_RECIPES = tuple(arm.name for arm in RECIPE_ARMS)
# They decide the questions; the larger toys have no others.
_FIRST = (
  'adamw', 'sage', 'sinkgd', 'row_rms', 'factored', 'lion', 'lion_mean_h',
  'sage_shuffled',
)  # fmt: skip
# They differ in the damper only, and also try each other's best options.
SIGNS = ('sage', 'lion', 'lion_mean_h', 'sage_shuffled')
_DOSE = ('adamw', 'sage', 'sinkgd', 'lion')
_RECIPES_FIRST = tuple(
  f'recipe_{name}'
  for name in (
    'adamw', 'rms_muon', 'sage_hybrid', 'lion_hybrid', 'sinkgd', 'muon',
  )
)  # fmt: skip
# The other arms stop when no option moves, without extra points.
_FEWER = {
  name: 9
  for name in (*_TABLE, *_RECIPES)
  if name not in (*_FIRST, *_RECIPES_FIRST, 'recipe_sage_muon')
}
_MEDIUM = (
  'recipe_adamw', 'recipe_rms_muon', 'recipe_sage_hybrid', 'recipe_muon',
  'recipe_sage_muon', 'recipe_lion_hybrid', 'recipe_sinkgd',
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
    budgets: the same for single arms.
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
  budgets: Mapping[str, int] = dataclasses.field(default_factory=dict)
  start: Mapping[str, float] = dataclasses.field(default_factory=dict)
  starts: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  tunes_beta: bool = True
  after: str = ''
  again: tuple[str, ...] = ()

  def budget_of(self, arm: str) -> int:
    """The smallest number of tuning trials of an arm."""
    return self.budgets.get(arm, self.budget)

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
      budgets=_FEWER,
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
      budgets=_FEWER,
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
      (('medium_tied', _MEDIUM),),
      _FIVE,
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
