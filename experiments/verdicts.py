"""The prose of the report: how to read it, the answers, and their limits."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments import analysis, arms, trial
from experiments.analysis import Difference, Summary
from experiments.cells import CELLS

# Of the baseline's state, and nats above its loss.
PRIZE_STATE, PRIZE_NATS = 0.01, 0.01
# Cells of the last two questions, and studies of the baseline's tokens.
_LLAMAS = ('small_tied', 'medium_tied')
_TOKENS = ('small_recipes', 'small_tokens')
_OTHERS = ('sinkgd', 'lion', 'lion_mean_h', 'sage_shuffled')
_NOT_YET = 'Not measured yet.'

HOW = f"""## How to read it

- **What differs.** In studies of *rules*, optimizers differ only in the rule
  that updates the embedding table, and the head where it is another matrix.
  SinkGD updates all other matrices and AdamW the vectors. In the study of
  *recipes*, all parameters follow a recipe of `sage_optax`.
- **Models.** The toy predicts a token from the one before, with a table and one
  matrix. `toy_v1024` has a vocabulary of 1024 tokens; `_t2` stands for 2 pairs
  of tokens a step for each row of the table, 0.5 elsewhere. The small Llama has
  2 layers of width 64 and a vocabulary of 4096, the medium one 4 layers of
  width 128 and a vocabulary of 8192. All read the same 12 MB of text.
- **Tuning.** Runs with seed 0 choose the rate of the table, the rate of the
  matrices, the weight decay and one beta. The chosen options then run with
  fresh seeds: 20 in the toy, 5 in the small and 3 in the medium Llama. The
  medium one starts from the options of the small one and tunes the rates alone.
- **Loss** is in nats per token; lower is better, and 0.01 nats is 1 % of
  perplexity. It is the mean over the fresh seeds. A number in italics is the
  lowest of seed 0 instead: it is too low by an unknown amount, and no
  comparison uses it.
- **Difference** is the loss less that of AdamW with the same seed, which has
  the same initial weights and data, with a 95 % interval (Student's t). *p* is
  corrected for the number of optimizers (Holm).
- **State** is the memory that the optimizer keeps from step to step.
- **Options.** *Good rates* are those whose lowest loss of seed 0 is within
  {analysis.WINDOW_NATS} nats of the best. *Jumps* are training losses 0.5 nats
  above the mean of the 20 before, in a run; in the Llama they come from the
  text, whose batches differ, and every optimizer has them. *Core-ms* are
  milliseconds of one core, measured for all optimizers in turns
  (`python -m experiments.times`).
"""

_QUESTIONS = """## The four questions

1. **Does SAGE solve SinkGD's problem with embedding tables?** It does if `sage`
   has a lower loss than `sinkgd` wherever a step has at most one token for each
   row of the table, and if the difference grows with the vocabulary and shrinks
   with more tokens a row.
   - {sinkgd}
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

_LIMITS = """## Limits

- **Small models, one text.** Nothing here says what happens at a billion
  parameters, or with other text.
"""

_ONE_SEED = """\
- **One seed chooses the options.** The search compares losses of seed 0, and
  a low one is partly luck. The loss of one optimizer differs between fresh
  seeds by {spread:.4f} nats (the median standard deviation in the toy), so
  options whose losses of seed 0 are closer than that cannot be told apart. The
  intervals hold for the chosen options and do not include this.
"""

_OVERLOOKED = """\
- **The search can miss better options that were tried.** It changes one
  option at a time, and an earlier version of the protocol took another path.
  For {count} of {tuned} tuned optimizers, other options have a lower loss of
  seed 0 than the chosen ones. The tables below keep the chosen ones, as the
  protocol says, so these optimizers appear worse than they are, by about the
  difference of the two columns of fresh seeds:

| cell | optimizer | chosen: weight decay | seed 0 | fresh seeds | \
better: weight decay | seed 0 | fresh seeds |
|---|---|---|---|---|---|---|---|
"""

RULES = '\n'.join(
  [
    '## The rules for the table\n',
    'A gradient is g, a mean of gradients over steps a momentum m, a mean of '
    'their squares v. "One v per token" is v averaged over features.\n',
    '| rule | in pictures | update |',
    '|---|---|---|',
    *(
      f'| `{arm}` | {title} | {rule} |'
      for arm, (title, rule) in arms.RULES.items()
    ),
    '',
  ]
)


def text(found: Mapping[str, Sequence[Summary]]) -> str:
  """The section of the report."""
  summaries = [s for group in found.values() for s in group]
  tables = [s for s in summaries if not s.arm.startswith('recipe_')]
  gaps = _gaps_of_sage(tables)
  answers = {other: _counted(gaps, other) for other in _OTHERS}
  lines = [
    _QUESTIONS.format(
      **answers,
      hybrid=_hybrid(summaries),
      prize=_prize(summaries),
    )
  ]
  if gaps:
    titles = ' | '.join(f'to `{other}`' for other in _OTHERS)
    lines += [
      'The differences of `sage` to the others, in nats per token with '
      f'{analysis.LEVEL:.0%} intervals; below 0, `sage` is better:\n',
      f'| cell | tokens a step for each row | {titles} |',
      '|' + '---|' * (2 + len(_OTHERS)),
    ]
  for cell, mine in gaps.items():
    rows = CELLS[cell].tokens / CELLS[cell].vocab_size
    shown = (_signed(mine[o]) if o in mine else '' for o in _OTHERS)
    lines.append(f'| `{cell}` | {rows:g} | {" | ".join(shown)} |')
  return '\n'.join(lines) + '\n'


def limits(found: Mapping[str, Sequence[Summary]]) -> str:
  """The section of what the numbers do not say."""
  result = _LIMITS
  spreads = [
    np.std(list(s.losses.values()), ddof=1)
    for s in found['toy']
    if s.complete and np.isfinite(list(s.losses.values())).all()
  ]
  if spreads:
    result += _ONE_SEED.format(spread=np.median(spreads))
  tuned = [s for group in found.values() for s in group if s.progress.tuned]
  rows = [row for s in tuned if (row := _overlooked(s))]
  if rows:
    result += _OVERLOOKED.format(count=len(rows), tuned=len(tuned))
    result += '\n'.join(rows) + '\n'
  return result


def _overlooked(summary: Summary) -> str | None:
  """A row about options that are better than those chosen, on seed 0."""
  tuned, best = summary.progress.tuned, summary.best
  if tuned is None or best is None:
    return None
  chosen = trial.point_of(tuned.options)
  point = trial.point_of(best['options'])
  if point == chosen:
    return None
  cells = [f'`{summary.cell}`', f'`{summary.arm}`']
  losses = {trial.point_of(s['options']): s['loss'] for s in summary.tuning}
  for at in (chosen, point):
    lines = summary.fresh.get(at, {}).values()
    fresh = [np.inf if x['loss'] is None else x['loss'] for x in lines]
    cells += [
      f'{dict(at)["weight_decay"]:g}',
      f'{losses[at]:.4f}',
      f'{np.mean(fresh):.4f}' if fresh else '',
    ]
  return '| ' + ' | '.join(cells) + ' |'


def answer(gap: Difference | None) -> str:
  """'lower' if the first arm is better by more than the interval, ..."""
  if gap is None or gap.half_width is None:
    return 'undecided'
  if gap.mean + gap.half_width < 0:
    return 'lower'
  return 'higher' if gap.mean - gap.half_width > 0 else 'no difference seen'


def _signed(gap: Difference) -> str:
  return f'{gap.mean:+.4f} ± {gap.half_width:.4f}'


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
        if gap is not None and gap.half_width is not None:
          result.setdefault(cell, {})[other] = gap
  return result


def _counted(gaps: Mapping[str, Mapping[str, Difference]], other: str) -> str:
  """In how many cells 'sage' is better than another arm."""
  answers = [answer(mine[other]) for mine in gaps.values() if other in mine]
  if not answers:
    return f'Against `{other}`: not measured yet.'
  counts = [
    f'{kind} in {answers.count(kind)}'
    for kind in ('lower', 'higher', 'no difference seen')
    if kind in answers
  ]
  return f'Against `{other}`: {", ".join(counts)} of {len(answers)} cells.'


def _hybrid(summaries: Sequence[Summary]) -> str:
  """Whether sage_hybrid is better than AdamW, by cell."""
  answers = []
  for cell in _LLAMAS:
    recipes = [
      s for s in summaries if s.cell == cell and s.arm.startswith('recipe_')
    ]
    baseline = next(s for s in recipes if s.arm == 'recipe_adamw')
    gap = analysis.differences(recipes, baseline).get('recipe_sage_hybrid')
    if gap is None or gap.half_width is None or gap.p is None:
      continue
    decided = answer(gap)
    if decided == 'lower' and gap.p > 1 - analysis.LEVEL:
      decided = 'no difference seen, after the correction over all recipes'
    answers.append(
      f'Its loss in `{cell}` is {decided} ({_signed(gap)}, p {gap.p:.2g}).'
    )
  return ' '.join(answers) or _NOT_YET


def _prize(summaries: Sequence[Summary]) -> str:
  """The best arm with little state, by cell."""
  answers = []
  for cell in _LLAMAS:
    mine = [s for s in summaries if s.cell == cell]
    baseline = next(s for s in mine if s.arm == 'recipe_adamw')
    if baseline.best is None:
      continue
    limit = PRIZE_STATE * baseline.best['state_bytes']
    small = [s for s in mine if s.best and s.best['state_bytes'] <= limit]
    known = {
      arm: gap
      for arm, gap in analysis.differences(small, baseline).items()
      if gap.half_width is not None
    }
    if not known:
      continue
    arm, gap = min(known.items(), key=lambda item: item[1].mean)
    assert gap.half_width is not None
    within = gap.mean + gap.half_width <= PRIZE_NATS
    answers.append(
      f'{"Yes" if within else "No"} in `{cell}`: the best of {len(known)} is '
      f'`{arm}`, with {_signed(gap)} to AdamW.'
    )
  return ' '.join(answers) or _NOT_YET


def worth(found: Mapping[str, Sequence[Summary]]) -> list[str]:
  """What a difference of losses is in tokens; [] while it is not measured."""
  arms = {s.cell: s for name in _TOKENS for s in found[name] if s.complete}
  mine = [
    s
    for cell in ('small_tied_x0.5', 'small_tied', 'small_tied_x2')
    if (s := arms.get(cell)) and s.arm == 'recipe_adamw'
  ]
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
    f'{doubling:.4f} nats, so 0.01 nats are worth about '
    f'{2 ** (0.01 / doubling) - 1:.0%} of the tokens.\n'
  ]
