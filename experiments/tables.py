"""The tables of the report."""

import math
from collections.abc import Mapping, Sequence

from experiments import analysis, arms, tuning
from experiments.analysis import Difference, Summary
from experiments.cells import CELLS

RULES = '\n'.join(
  [
    '## The rules for the table\n',
    'g is the gradient, m a running mean of g, and v one of g^2. "One v per '
    'token" is v averaged over features.\n',
    '| rule | in pictures | update |',
    '|---|---|---|',
    *(
      f'| `{arm}` | {title} | {rule} |'
      for arm, (title, rule) in arms.RULES.items()
    ),
    '',
  ]
)


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
  """How the best rates moved with the width; [] without common arms."""
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
    'How the best rates moved with the width:\n',
    f'| optimizer | table, {columns} | matrices, {columns} |',
    '|' + '---|' * 7,
  ]
  return [*head, *rows, '']


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
    f'{best["state_bytes"] / 1024:.1f}',
    *([] if bits is None else [f'{mark}{bits:.4f}{mark}']),
  ]
  return '| ' + ' | '.join(cells) + ' |'


def _tuning(summary: Summary, times: Mapping[str, float]) -> str:
  best, tuned = summary.best, summary.progress.tuned
  assert best is not None
  options = best['options'] if tuned is None else tuned.options
  lines = list(summary.final.values()) or [best]
  good = analysis.window(summary, 'embedding_rate')
  beta = options.get('beta')
  cells = [
    f'`{summary.arm}`',
    f'{options["embedding_rate"]:.3g}',
    '' if good is None else f'{good[0]:.3g} to {good[1]:.3g}',
    f'{options["matrix_rate"]:.3g}',
    f'{options["weight_decay"]:g}',
    '' if beta is None else f'{analysis.beta_name(summary.arm)} {beta:g}',
    f'{len(summary.tuning)}, {len(summary.final)}',
    f'{sum(line["spikes"] for line in lines) / len(lines):.3g}',
  ]
  if times:
    seconds = times.get(summary.arm)
    cells.append('' if seconds is None else f'{1000 * seconds:.0f}')
  return '| ' + ' | '.join(cells) + ' |'
