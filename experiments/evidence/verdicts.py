"""The answers to the questions of the protocol, and what surprised."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments import trial
from experiments.cells import CELLS
from experiments.evidence import analysis
from experiments.evidence.analysis import Difference, Summary

# Of the baseline's state, and nats above its loss.
PRIZE_STATE, PRIZE_NATS = 0.01, 0.01
# Cells of the last two questions, and studies of the baseline's tokens.
_LLAMAS = ('small_tied', 'medium_tied')
_TOKENS = ('small_recipes', 'small_tokens')
_OTHERS = ('sinkgd', 'lion', 'lion_mean_h', 'sage_shuffled')
_NOT_YET = 'Not measured yet.'
# Two arms of the small Llama, and what their difference is.
_PAIRS = (
  (
    'recipe_adamw_one_rate',
    'recipe_adamw',
    '**One rate or two.** Loss of `recipe_adamw_one_rate`, whose table and '
    'matrices have the same rate, minus that of `recipe_adamw`:',
  ),
  (
    'recipe_adamw_vectors',
    'recipe_adamw',
    '**The rate of vectors.** Loss of `recipe_adamw_vectors`, where it is '
    '4e-3, minus that of `recipe_adamw`, where it is that of the table:',
  ),
)

_QUESTIONS = """## The four questions

1. **Does SAGE solve SinkGD's problem with embedding tables?** It does if `sage`
   has a lower loss than `sinkgd` wherever a step has at most one token for each
   row of the table, and if the difference grows with the vocabulary and shrinks
   with more tokens a row.
   - {sinkgd}
   - {trends}
2. **Is SAGE's damper H worth having?** It is if `sage` has a lower loss than
   `lion`, which has no damper, and than `lion_mean_h`, whose damper is the same
   for all features. The shape of H matters if `sage` also has a lower loss than
   `sage_shuffled`.
   - {lion}
   - {lion_mean_h}
   - {sage_shuffled}
3. **Does the recipe `sage_hybrid` beat AdamW?** {hybrid}
4. **Is there a recipe with at most 1 % of AdamW's state that is not worse than
   AdamW?** {prize}
"""


def text(found: Mapping[str, Sequence[Summary]]) -> str:
  """The section of the report."""
  summaries = [s for group in found.values() for s in group]
  tables = [s for s in summaries if not s.arm.startswith('recipe_')]
  gaps = _gaps_of_sage(tables)
  cells = {o: [s.cell for s in tables if s.arm == o] for o in _OTHERS}
  cells['sinkgd'] = [cell for cell in cells['sinkgd'] if _rows(cell) <= 1]
  answers = {other: _counted(gaps, other, cells[other]) for other in _OTHERS}
  lines = [
    _QUESTIONS.format(
      **answers,
      trends=_trends(gaps),
      hybrid=_hybrid(summaries),
      prize=_prize(summaries),
    )
  ]
  if gaps:
    titles = ' | '.join(f'to `{other}`' for other in _OTHERS)
    lines += [
      'Loss of `sage` minus that of the others, in nats per token with '
      f'{analysis.LEVEL:.0%} intervals; below 0, `sage` is better:\n',
      f'| cell | tokens a step for each row | {titles} |',
      '|' + '---|' * (2 + len(_OTHERS)),
    ]
  for cell, mine in gaps.items():
    shown = (str(mine[o]) if o in mine else '' for o in _OTHERS)
    lines.append(f'| `{cell}` | {_rows(cell):g} | {" | ".join(shown)} |')
  return '\n'.join(lines) + '\n'


def answer(gap: Difference | None) -> str:
  """'lower' if the first arm is better by more than the interval, ..."""
  if gap is None or gap.half_width is None:
    return 'not measured'
  if gap.mean + gap.half_width < 0:
    return 'lower'
  return 'higher' if gap.mean - gap.half_width > 0 else 'no difference seen'


def _gaps_of_sage(
  summaries: Sequence[Summary],
) -> dict[str, dict[str, Difference]]:
  """Differences of 'sage' to other finished arms, by cell and arm."""
  result: dict[str, dict[str, Difference]] = {}
  for cell in dict.fromkeys(s.cell for s in summaries):
    mine = {s.arm: s for s in summaries if s.cell == cell and s.complete}
    for other in _OTHERS:
      if {'sage', other} <= mine.keys():
        gap = analysis.difference(mine['sage'], mine[other])
        if gap and gap.half_width is not None:
          result.setdefault(cell, {})[other] = gap
  return result


def _counted(
  gaps: Mapping[str, Mapping[str, Difference]],
  other: str,
  cells: Sequence[str],
) -> str:
  """In how many of the cells 'sage' is better than another arm."""
  answers = [answer(gaps.get(cell, {}).get(other)) for cell in cells]
  counts = [
    f'{kind} in {answers.count(kind)}'
    for kind in ('lower', 'higher', 'no difference seen', 'not measured')
    if kind in answers
  ]
  return f'Against `{other}`: {", ".join(counts)} of {len(cells)} cells.'


def _rows(cell: str) -> float:
  """Tokens of a step for each row of the table."""
  return CELLS[cell].tokens / CELLS[cell].vocab_size


def _trends(gaps: Mapping[str, Mapping[str, Difference]]) -> str:
  """How the difference to 'sinkgd' changes in the toy, with V and tokens."""
  toys = {
    CELLS[cell]: -mine['sinkgd'].mean
    for cell, mine in gaps.items()
    if 'sinkgd' in mine and CELLS[cell].kind == 'bigram'
  }
  by_size = sorted(
    (c.vocab_size, gap) for c, gap in toys.items() if _rows(c.name) == 0.5
  )
  by_dose = sorted(
    (_rows(c.name), gap) for c, gap in toys.items() if c.vocab_size == 1024
  )
  text = []
  for name, points, moving in (
    ('for V', by_size, 'growing'),
    ('for tokens a row', by_dose, 'shrinking'),
  ):
    if len(points) > 1:
      by = [gap for _, gap in points]
      ordered = by == sorted(by, reverse=moving == 'shrinking')
      text.append(
        f'{name} {", ".join(f"{x:g}" for x, _ in points)}: '
        f'{", ".join(f"{gap:.2f}" for gap in by)}, '
        f'{"" if ordered else "not "}{moving} at every step'
      )
  if not text:
    return 'Trends: not measured yet.'
  return f'By how much it is lower in the toy, {"; ".join(text)}.'


def _hybrid(summaries: Sequence[Summary]) -> str:
  """Whether sage_hybrid is better than AdamW, by cell."""
  answers = []
  for cell in _LLAMAS:
    recipes = [
      s for s in summaries if s.cell == cell and s.arm.startswith('recipe_')
    ]
    baseline = next(s for s in recipes if s.arm == 'recipe_adamw')
    gap = analysis.differences(recipes, baseline).get('recipe_sage_hybrid')
    if gap is None or gap.p is None:
      continue
    decided = answer(gap)
    if decided in ('lower', 'higher') and gap.p > 1 - analysis.LEVEL:
      decided = 'no difference seen, after the correction over all recipes'
    answers.append(f'Its loss in `{cell}` is {decided} ({gap}, p {gap.p:.2g}).')
  return ' '.join(answers) or _NOT_YET


def _prize(summaries: Sequence[Summary]) -> str:
  """The best arm with little state, by cell."""
  answers = []
  for cell in _LLAMAS:
    mine = {s.arm: s for s in summaries if s.cell == cell and s.complete}
    baseline = mine.get('recipe_adamw')
    known = {
      arm: gap
      for arm, s in mine.items()
      if baseline and s.state_bytes <= PRIZE_STATE * baseline.state_bytes
      if (gap := analysis.difference(s, baseline))
      and gap.half_width is not None
    }
    if not known:
      answers.append(f'`{cell}` is not measured yet.')
      continue
    arm, gap = min(known.items(), key=lambda item: item[1].mean)
    assert gap.half_width is not None
    within = gap.mean + gap.half_width <= PRIZE_NATS
    answers.append(
      f'{"Yes" if within else "No"} in `{cell}`: `{arm}` is the best with so '
      f'little state ({len(known)} finished, recipes and rules); its loss '
      f'minus that of `recipe_adamw` is {gap}.'
    )
  return ' '.join(answers)


def surprises(found: Mapping[str, Sequence[Summary]]) -> list[str]:
  """Facts that the questions do not ask for; [] if none is measured."""
  small = [*found['small_tied'], *found['small_recipes']]
  rules = {(s.cell, s.arm): s for group in found.values() for s in group}
  lines = []
  for first, second, words in _PAIRS:
    one, two = rules['small_tied', first], rules['small_tied', second]
    if one.complete and two.complete:
      lines.append(f'- {words} {analysis.difference(one, two)}.')
  for name in ('adamw', 'recipe_adamw'):
    rare = [
      f'`{s.arm}` {first:+.3f} and {rest:+.3f}'
      for s in small
      if (pair := _rare(s, rules['small_tied', name])) is not None
      for first, rest in [pair]
    ]
    if rare:
      lines.append(
        f'- **Rare tokens.** Loss minus that of `{name}`, for the rarest tenth '
        f'of the tokens and for the others: {"; ".join(rare)}.'
      )
  gaps = []
  for cell in ('toy_v512', 'toy_v1024', 'toy_v2048', 'toy_v4096', 'small_tied'):
    arm, baseline = rules[cell, 'row_rms'], rules[cell, 'adamw']
    if arm.complete and baseline.complete:
      gap = analysis.difference(arm, baseline)
      if gap is not None and gap.half_width is not None:
        gaps.append(f'{gap} in `{cell}`')
  if gaps:
    lines.append(
      '- **A rule without momentum.** Loss of `row_rms` minus that of `adamw`: '
      f'{", ".join(gaps)}.'
    )
  for name in ('sage', 'lion'):
    summary = rules['small_tied', name]
    tuned = summary.progress.tuned
    other = tuned and _loss_at({**tuned.options, 'beta': 0.99}, summary)
    if tuned and other and tuned.options['beta'] != 0.99:
      best = _loss_at(tuned.options, summary)
      lines.append(
        f'- **b2 of `{name}`.** With {tuned.options["beta"]:g}, the loss of '
        f'seed 0 is {best:.4f}; with 0.99, the default, and the same other '
        f'options it is {other:.4f}.'
      )
  return ['## What surprised\n', *lines, ''] if lines else []


def _rare(arm: Summary, baseline: Summary) -> tuple[float, float] | None:
  """Differences of the loss of the rarest tenth of tokens, and of the rest."""
  recipes = arm.arm.startswith('recipe_'), baseline.arm.startswith('recipe_')
  if arm is baseline or recipes[0] != recipes[1]:
    return None
  if not (arm.complete and baseline.complete):
    return None
  gap = arm.by_decile - baseline.by_decile
  return float(gap[-1]), float(gap[:-1].mean())


def _loss_at(options: Mapping[str, float], summary: Summary) -> float | None:
  """The loss of seed 0 with some options, if it was measured."""
  point = trial.point_of(options)
  for line in summary.tuning:
    if trial.point_of(line['options']) == point and not line['diverged']:
      return line['loss']
  return None


def worth(found: Mapping[str, Sequence[Summary]]) -> list[str]:
  """What a difference of losses is in tokens; [] while it is not measured."""
  arms = {
    s.cell: s
    for name in _TOKENS
    for s in found[name]
    if s.arm == 'recipe_adamw' and s.complete
  }
  cells = ('small_tied_x0.5', 'small_tied', 'small_tied_x2')
  mine = [arms[cell] for cell in cells if cell in arms]
  if len(mine) < 3:
    return []
  seeds = set.intersection(*(set(s.losses) for s in mine))
  half, once, twice = (
    float(np.mean([s.losses[seed] for seed in seeds])) for s in mine
  )
  doubling = (half - twice) / 2
  return [
    f'With half, once and twice the tokens, the loss of `recipe_adamw` is '
    f'{half:.4f}, {once:.4f} and {twice:.4f}. A doubling lowers it by '
    f'{doubling:.4f} nats, so 0.01 nats is worth about '
    f'{2 ** (0.01 / doubling) - 1:.0%} of the tokens.\n'
  ]
