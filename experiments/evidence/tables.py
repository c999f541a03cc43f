"""The tables of the report, and the limits of what they say."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments import arms, trial, tuning
from experiments.cells import CELLS
from experiments.evidence import analysis, rule_names
from experiments.evidence.analysis import Difference, Summary

RULES = '\n'.join(
  [
    '## The rules for the table\n',
    'g is the gradient, m a running mean of g, and v one of g^2. "One v per '
    'token" is v averaged over features.\n',
    '| rule | in pictures | update |',
    '|---|---|---|',
    *(
      f'| `{arm}` | {title} | {rule} |'
      for arm, (title, rule) in rule_names.RULES.items()
    ),
    '',
  ]
)


_MODELS = (
  ('toy', ('toy',)),
  ('small Llama', ('small_tied', 'small_recipes')),
  ('medium one', ('medium',)),
)
_LIMITS = """## Limits

- **Small models, one text.** Nothing here says what happens at a billion
  parameters, or with other text.
- **What was not tuned.** b1 of AdamW, SAGE and Lion is 0.9, Muon's momentum
  0.95; some rules without a momentum gain from that in the toy (compare
  `row_rms` with `adam_mini`). Nor were the warm-up, the clipping, the ranks and
  the intervals of resets and projections. In recipes, the vectors have the rate
  of the table; beside rules, AdamW on vectors has 4e-3.
- **Initial weights, and short runs.** In the Llamas, the table and the matrices
  start with a standard deviation of 0.02, and a run has 1000 steps. The ratio
  of the two best rates, and the loss of AdamW with one rate, may depend on
  both.
- **What is missing.** The recipes `soap`, `normuon`, `rmnp` and `symmetric`.
- **Little text.** It has 3.9 million training tokens for V 4096 and 3.5 million
  for V 8192, so runs of the medium Llama, and those with twice the tokens, see
  up to a fifth of it twice. The validation split has 56 documents, and the
  search uses it too; intervals are about seeds only.
- **`recipe_rms_muon` came later.** The protocol lists the changes made after
  the first runs. One adds this recipe, after `row_rms` had lost to AdamW on the
  Llama; its search starts from six runs with seed 0, three of them of this
  combination (`results/exploration.jsonl`), and so nearer to its best rates
  than the first optimizers. Its fresh seeds were used for nothing else. The
  medium Llama has 5 fresh seeds instead of the planned 3; this was decided when
  three losses of this recipe and two of AdamW were known.
"""

_HELD_OUT = """\
- **Held-out text has a higher loss than the text of the last steps.** For
  `recipe_adamw`, the loss is above the mean training loss of the last twentieth
  of the steps by {gaps}, where
  these steps read text for the second time. So losses also depend on how well a
  run generalizes.
"""

_ONE_SEED = """\
- **One seed chooses the options.** The search compares losses of seed 0, and
  a low one is partly luck. The loss of one optimizer differs between fresh
  seeds by {spread} (median standard deviations), so options whose losses of
  seed 0 are closer than that cannot be told apart. The intervals hold for the
  chosen options and do not include this.
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


def table(
  summaries: Sequence[Summary],
  baseline: Summary,
  times: Mapping[str, float],
) -> str:
  """The tables of a cell, the best arm first: results, then the tuning.

  Args:
    summaries: All arms of the cell.
    baseline: The arm to compare with.
    times: Core-seconds of a step by arm; {} if they were not measured.
  """
  gaps = analysis.differences(summaries, baseline)
  ranked = sorted((s for s in summaries if s.best), key=_rank)
  # The toy's loss is not that of a text, so it has no bits per byte.
  bits = ' bits per byte |' * ('bits_per_byte' in (ranked[0].best or ()))
  timed = ' core-ms a step |' * bool(times)
  rows = [
    f'| optimizer | loss | perplexity | difference to `{baseline.arm}` | p | '
    f'state, KiB |{bits}',
    '|' + '---|' * (7 if bits else 6),
    *(_result(s, gaps.get(s.arm), baseline) for s in ranked),
    '\nOptions, and how they were found:\n',
    '| optimizer | rate of the table | good rates | rate of matrices | weight '
    f'decay | beta | runs to tune, fresh | jumps |{timed}',
    '|' + '---|' * (9 if timed else 8),
    *(_tuning(s, times) for s in ranked),
  ]
  return '\n'.join(rows) + '\n'


def widths(small: Sequence[Summary], medium: Sequence[Summary]) -> list[str]:
  """How the best rates moved with the model; [] without common arms."""
  before = {s.arm: s.progress.tuned for s in small if s.complete}
  rows = []
  for summary in medium:
    first, second = before.get(summary.arm), summary.progress.tuned
    if summary.complete and first and second:
      pairs = [(first.options[n], second.options[n]) for n in tuning.RATES]
      shown = [f'{a:.3g} | {b:.3g} | {b / a:.2g}' for a, b in pairs]
      rows.append(f'| `{summary.arm}` | {" | ".join(shown)} |')
  if not rows:
    return []
  sizes = [CELLS[group[0].cell].width for group in (small, medium)]
  columns = f'width {sizes[0]} | width {sizes[1]} | ratio'
  head = [
    'How the best rates moved from the small Llama to the medium one, which '
    'differs in width, depth, vocabulary, sequence and tokens a step:\n',
    f'| optimizer | table, {columns} | matrices, {columns} |',
    '|' + '---|' * 7,
  ]
  return [*head, *rows, '']


def _beta(arm: str, beta: float) -> str:
  """A tuned beta; the ends of what was tried are marked."""
  values = arms.ARMS[arm].betas
  end = ' (end)' if beta in (values[0], values[-1]) else ''
  return f'{analysis.beta_name(arm)} {beta:g}{end}'


def _rank(summary: Summary) -> tuple[bool, float]:
  mean = summary.mean()
  if mean is not None:
    return False, mean
  return True, summary.best['loss'] if summary.best else math.inf


def _result(summary: Summary, gap: Difference | None, baseline: Summary) -> str:
  best = summary.best
  assert best is not None
  loss, bits = summary.mean(), best.get('bits_per_byte')
  if bits is not None and summary.final:
    bits = summary.mean('bits_per_byte')
  mark = '' if loss is not None else '*'
  shown = best['loss'] if loss is None else loss
  difference = 'baseline' if summary is baseline else ''
  if gap is not None and gap.half_width is not None:
    difference = f'{gap.mean:+.4f} ± {gap.half_width:.4f}'
  state = '' if summary.progress.tuned else ' (still tuning)'
  if summary.final and not summary.complete:
    state = f' ({len(summary.final)} seeds so far)'
  cells = [
    f'`{summary.arm}`' + state,
    f'{mark}{shown:.4f}{mark}',
    f'{mark}{math.exp(shown):.2f}{mark}',
    difference,
    '' if gap is None or gap.p is None else f'{gap.p:.2g}',
    f'{summary.state_bytes / 1024:.1f}',
    *([] if bits is None else [f'{mark}{bits:.4f}{mark}']),
  ]
  return '| ' + ' | '.join(cells) + ' |'


def _tuning(summary: Summary, times: Mapping[str, float]) -> str:
  best, tuned = summary.best, summary.progress.tuned
  assert best is not None
  options = best['options'] if tuned is None else tuned.options
  lines = list(summary.final.values()) or [best]
  beta = options.get('beta')
  cells = [
    f'`{summary.arm}`',
    f'{options["embedding_rate"]:.3g}',
    _good_rates(summary),
    f'{options["matrix_rate"]:.3g}',
    f'{options["weight_decay"]:g}',
    '' if beta is None else _beta(summary.arm, beta),
    f'{len(summary.tuning)}, {len(summary.final)}',
    f'{sum(line["spikes"] for line in lines) / len(lines):.3g}',
  ]
  if times:
    seconds = times.get(summary.arm)
    cells.append('' if seconds is None else f'{1000 * seconds:.0f}')
  return '| ' + ' | '.join(cells) + ' |'


def _good_rates(summary: Summary) -> str:
  """The window of the table's rate; ends of what was tried are marked."""
  name = 'embedding_rate'
  good = analysis.window(summary, name)
  if good is None:
    return ''
  tried = [line['options'][name] for line in summary.tuning]
  low, high = '≤ ' * (good[0] == min(tried)), '≥ ' * (good[1] == max(tried))
  return f'{low}{good[0]:.3g} to {high}{good[1]:.3g}'


def limits(found: Mapping[str, Sequence[Summary]]) -> str:
  """The section of what the numbers do not say."""
  result = _LIMITS
  gaps = [
    f'{gap:.2f} nats in the {model}'
    for model, names in _MODELS
    for name in names
    for s in found[name]
    if s.arm == 'recipe_adamw' and (gap := _held_out(s)) is not None
  ]
  if gaps:
    result += _HELD_OUT.format(gaps=' and '.join(gaps))
  spreads = [
    f'{spread:.4f} nats in the {model}'
    for model, names in _MODELS
    if (spread := _spread([s for name in names for s in found[name]]))
  ]
  if spreads:
    result += _ONE_SEED.format(spread=', '.join(spreads))
  tuned = [s for group in found.values() for s in group if s.progress.tuned]
  rows = [row for s in tuned if (row := _overlooked(s))]
  if rows:
    result += _OVERLOOKED.format(count=len(rows), tuned=len(tuned))
    result += '\n'.join(rows) + '\n'
  return result


def _held_out(summary: Summary) -> float | None:
  """How far the loss is above that of the last part of the training."""
  loss = summary.mean()
  if loss is None or not summary.complete:
    return None
  ends = [line['train_curve'][-1][1] for line in summary.final.values()]
  return loss - float(np.mean(ends))


def _spread(summaries: Sequence[Summary]) -> float | None:
  """Median over arms of the standard deviation over fresh seeds."""
  found = [
    np.std(list(s.losses.values()), ddof=1)
    for s in summaries
    if s.complete and np.isfinite(list(s.losses.values())).all()
  ]
  return float(np.median(found)) if found else None


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
