"""The answers to the questions of the protocol, by its decision rules."""

from collections.abc import Mapping, Sequence

from experiments import analysis
from experiments.analysis import Difference, Summary
from experiments.cells import CELLS

# Of the baseline's state, and nats above its loss.
PRIZE_STATE, PRIZE_NATS = 0.01, 0.01
_UNDECIDED = 'undecided'


def text(found: Mapping[str, Sequence[Summary]]) -> str:
  """The section of the report."""
  summaries = [s for group in found.values() for s in group]
  tables = [s for s in summaries if not s.arm.startswith('recipe_')]
  lines = ['## The four questions\n']
  lines += [
    '1. *Does SAGE resolve the dilemma, the loss of SinkGD on the table?* '
    'It has to beat `sinkgd` in each cell with at most one token a row, by '
    'more where V is larger and tokens a row are fewer. So far: '
    + _per_cell(tables, ('sinkgd',)),
    '2. *Is SAGE worth its damper: is it better than Lion and than Lion times '
    'the mean of H?* ' + _per_cell(tables, ('lion', 'lion_mean_h')),
    '   *Does the shape of H matter: is it better than SAGE with H shuffled?* '
    + _per_cell(tables, ('sage_shuffled',)),
    '3. *Does SAGE-hybrid beat AdamW?* ' + _hybrid(found['small_recipes']),
    "4. *Is there a recipe with at most 1 % of AdamW's state that is not "
    'worse?* ' + _prize(summaries),
  ]
  return '\n'.join(lines) + '\n'


def answer(gap: Difference | None) -> str:
  """'yes' if the first arm is better by more than the interval, ..."""
  if gap is None or gap.half_width is None:
    return _UNDECIDED
  if gap.mean + gap.half_width < 0:
    return 'yes'
  return 'no, worse' if gap.mean - gap.half_width > 0 else 'no difference seen'


def _per_cell(summaries: Sequence[Summary], others: Sequence[str]) -> str:
  """Whether 'sage' beats each of the others, cell by cell."""
  parts = []
  for cell in dict.fromkeys(s.cell for s in summaries):
    arms = {s.arm: s for s in summaries if s.cell == cell}
    for other in others:
      if not {'sage', other} <= arms.keys():
        continue
      gap = analysis.difference(arms['sage'], arms[other])
      complete = arms['sage'].complete and arms[other].complete
      if gap is None or gap.half_width is None or not complete:
        continue
      parts.append(
        f'{answer(gap)} in `{cell}` against `{other}` '
        f'({gap.mean:+.4f} ± {gap.half_width:.4f}; '
        f'{CELLS[cell].tokens / CELLS[cell].vocab_size:g} tokens a row)'
      )
  return ('; '.join(parts) or 'Not measured yet') + '.'


def _hybrid(recipes: Sequence[Summary]) -> str:
  arms = {s.arm: s for s in recipes}
  baseline = arms['recipe_adamw']
  gap = analysis.differences(recipes, baseline).get('recipe_sage_hybrid')
  if gap is None or gap.half_width is None or gap.p is None:
    return 'Not measured yet.'
  decided = answer(gap)
  if decided == 'yes' and gap.p > 1 - analysis.LEVEL:
    decided = 'no, not after Holm'
  return (
    f'{decided} in `{baseline.cell}` ({gap.mean:+.4f} ± {gap.half_width:.4f}, '
    f'p {gap.p:.2g}).'
  )


def _prize(summaries: Sequence[Summary]) -> str:
  """Arms of the small tied cell with little state, best first."""
  mine = [s for s in summaries if s.cell == 'small_tied']
  baseline = next(s for s in mine if s.arm == 'recipe_adamw')
  if baseline.best is None or not baseline.final:
    return 'Not measured yet.'
  limit = PRIZE_STATE * baseline.best['state_bytes']
  small = [s for s in mine if s.best and s.best['state_bytes'] <= limit]
  gaps = analysis.differences(small, baseline)
  ranked = sorted(gaps.items(), key=lambda item: item[1].mean)
  known = [(arm, g) for arm, g in ranked if g.half_width is not None]
  if not known:
    return f'Not measured yet ({len(small)} candidates have so little state).'
  arm, gap = known[0]
  assert gap.half_width is not None
  within = gap.mean + gap.half_width <= PRIZE_NATS
  return (
    f'{"Yes" if within else "No"} in `small_tied`: the best is `{arm}`, '
    f'{gap.mean:+.4f} ± {gap.half_width:.4f}; `medium_tied` is not measured '
    'yet.'
  )
