"""Writes docs/evidence.md and its pictures from results/ alone.

python -m experiments.report
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence

from experiments import analysis, figures, studies, trial, verdicts
from experiments.analysis import Difference, Summary
from experiments.cells import CELLS

DOCS = pathlib.Path('docs')
PICTURES = 'evidence'
# Study, heading, baseline, and whether the picture of fronts is made of it.
_PARTS = (
  ('small_recipes', 'Recipes on a small Llama, tied', 'recipe_adamw'),
  ('small_tied', 'Rules of the table on a small Llama, tied', 'adamw'),
  ('small_untied', 'Rules of the table on a small Llama, untied', 'adamw'),
)
_TOYS = ('toy', 'toy_dose', 'toy_large')

_HEAD = """# Evidence: which optimizer, at which rate, for how much memory

Written by `python -m experiments.report` from the files in `results/`; do not
edit. `experiments/PROTOCOL.md` has what was decided
before the runs: arms, cells, tuning and decisions. Losses are nats per token.
All numbers are of small models on 12 MB of text; none says what happens at a
billion parameters.
"""


def write(results: pathlib.Path, docs: pathlib.Path) -> None:
  """Writes the page and its pictures.

  Args:
    results: The folder of results.
    docs: The folder of evidence.md.
  """
  found = {
    name: analysis.summarize(study, results)
    for name, study in studies.STUDIES.items()
  }
  text = [_HEAD, _missing(found), verdicts.text(found)]
  for name, heading, baseline in _PARTS:
    text.append(f'## {heading}\n')
    text += _part(name, found[name], baseline, docs / PICTURES)
  toys = [s for name in _TOYS for s in found.get(name, [])]
  text += _toy_part(toys, docs / PICTURES)
  (docs / 'evidence.md').write_text('\n'.join(text).rstrip() + '\n')


def _missing(found: dict[str, list[Summary]]) -> str:
  """Returns how much of each study is done."""
  rows = [
    '## What has been measured\n',
    '| study | arms tuned | arms complete | runs done | runs missing, about |',
    '|---|---|---|---|---|',
  ]
  for name, summaries in found.items():
    tuned = sum(s.progress.tuned is not None for s in summaries)
    complete = sum(s.complete for s in summaries)
    rows.append(
      f'| `{name}` | {tuned} of {len(summaries)} | {complete} of '
      f'{len(summaries)} | {sum(s.progress.done for s in summaries)} | '
      f'{sum(s.progress.left for s in summaries)} |'
    )
  rows.append(
    '\nThe cell `medium_tied` has no runs yet. A number in italics is '
    'of seed 0, the seed that tuned it: it is too good by an unknown amount, '
    'and no comparison uses it.\n'
  )
  return '\n'.join(rows)


def _part(
  name: str, summaries: list[Summary], base: str, pictures: pathlib.Path
) -> list[str]:
  """Table and pictures of a study with one cell."""
  begun = [s for s in summaries if s.best]
  baseline = next(s for s in summaries if s.arm == base)
  if not begun:
    return [f'Not measured yet: 0 of about {_left(summaries)} runs.\n']
  text = [table(begun, baseline)]
  absent = [s.arm for s in summaries if not s.best]
  if absent:
    names = ', '.join(f'`{arm}`' for arm in absent)
    text.append(f'Not measured yet: {names}.\n')
  if baseline.best and len(begun) > 1:
    figures.pareto(begun, baseline, pictures / f'{name}_state.png')
    figures.deciles(begun, baseline, pictures / f'{name}_deciles.png')
    text += [
      f'![Loss against optimizer state]({PICTURES}/{name}_state.png)\n',
      f'Intervals are those of the paired difference to `{base}`.\n',
      f'![Loss by token frequency]({PICTURES}/{name}_deciles.png)\n',
    ]
  for rate in ('embedding_rate', 'matrix_rate'):
    figures.rates(begun, rate, pictures / f'{name}_{rate}.png')
    text.append(f'![Loss against {rate}]({PICTURES}/{name}_{rate}.png)\n')
  return text


def table(summaries: Sequence[Summary], baseline: Summary) -> str:
  """The table of a cell, the best arm first."""
  gaps = analysis.differences(summaries, baseline)
  rows = [
    '| arm | loss | perplexity | bits per byte | difference to '
    f'`{baseline.arm}`, 95 % interval | p (Holm) | state, KiB | core-ms a '
    'step | embedding rate | matrix rate | weight decay | beta | rates within '
    f'{analysis.WINDOW_NATS} nats | spikes | runs |',
    '|' + '---|' * 15,
  ]
  ranked = sorted(summaries, key=_rank)
  rows += [_row(s, gaps.get(s.arm), baseline) for s in ranked]
  return '\n'.join(rows) + '\n'


def _rank(summary: Summary) -> tuple[bool, float]:
  mean = summary.mean()
  if mean is not None:
    return False, mean
  return True, summary.best['loss'] if summary.best else math.inf


def _row(summary: Summary, gap: Difference | None, baseline: Summary) -> str:
  best = summary.best
  assert best is not None
  loss, bits = summary.mean(), None
  if 'bits_per_byte' in best:
    bits = summary.mean('bits_per_byte') if summary.final else None
  mark = '' if loss is not None else '*'
  shown = best['loss'] if loss is None else loss
  if bits is None:
    bits = best.get('bits_per_byte')
  tuned = summary.progress.tuned
  options = best['options'] if tuned is None else tuned.options
  lines = list(summary.final.values()) or [best]
  steps = sorted(line['step_core_seconds'] for line in lines)
  good = analysis.window(summary, 'embedding_rate')
  beta = options.get('beta')
  if gap is None or gap.half_width is None:
    difference = 'baseline' if summary is baseline else ''
  else:
    difference = f'{gap.mean:+.4f} ± {gap.half_width:.4f}'
  p = '' if gap is None or gap.p is None else f'{gap.p:.2g}'
  cells = [
    f'`{summary.arm}`' + ('' if tuned else ' (still tuning)'),
    f'{mark}{shown:.4f}{mark}',
    f'{mark}{math.exp(shown):.2f}{mark}',
    '' if bits is None else f'{mark}{bits:.4f}{mark}',
    difference,
    p,
    f'{best["state_bytes"] / 1024:.1f}',
    f'{1000 * steps[len(steps) // 2]:.0f}',
    f'{options["embedding_rate"]:.3g}',
    f'{options["matrix_rate"]:.3g}',
    f'{options["weight_decay"]:g}',
    '' if beta is None else f'{analysis.beta_name(summary.arm)} {beta:g}',
    '' if good is None else f'{good[0]:.3g} to {good[1]:.3g}',
    str(sum(line['spikes'] for line in lines)),
    f'{len(summary.tuning)} + {len(summary.final)}',
  ]
  return '| ' + ' | '.join(cells) + ' |'


def _toy_part(summaries: list[Summary], pictures: pathlib.Path) -> list[str]:
  """Tables of the toy's cells, and the trends in V and in tokens per row."""
  text = ['## The toy: a bilinear model of bigrams\n']
  cells = dict.fromkeys(s.cell for s in summaries)
  gaps_of_v: dict[str, list[tuple[float, float, float | None]]] = {}
  gaps_of_dose: dict[str, list[tuple[float, float, float | None]]] = {}
  tables = []
  for name in cells:
    mine = [s for s in summaries if s.cell == name]
    begun = [s for s in mine if s.best]
    baseline = next(s for s in mine if s.arm == 'adamw')
    heading = f'### {name}: {CELLS[name].tokens} pairs a step\n'
    if not begun:
      tables.append(
        f'{heading}\nNot measured yet: 0 of about {_left(mine)} runs.\n'
      )
      continue
    tables.append(f'{heading}\n{table(begun, baseline)}')
    cell = CELLS[name]
    dose = cell.tokens / cell.vocab_size
    for arm, gap in analysis.differences(begun, baseline).items():
      if math.isfinite(gap.mean):
        point = (gap.mean, gap.half_width)
        if dose == 0.5:
          gaps_of_v.setdefault(arm, []).append((cell.vocab_size, *point))
        if cell.vocab_size == 1024:
          gaps_of_dose.setdefault(arm, []).append((dose, *point))
  for gaps, label, file in (
    (gaps_of_v, 'vocabulary V, with V/2 pairs a step', 'toy_vocabulary'),
    (
      gaps_of_dose,
      'pairs a step for each row of the table (V 1024)',
      'toy_dose',
    ),
  ):
    if any(len(points) > 1 for points in gaps.values()):
      ordered = {arm: sorted(points) for arm, points in gaps.items()}
      figures.trend(ordered, label, 'adamw', pictures / f'{file}.png')
      text.append(f'![Gap against {label}]({PICTURES}/{file}.png)\n')
  return text + tables


def _left(summaries: Sequence[Summary]) -> int:
  return sum(s.progress.left for s in summaries)


def main(argv: list[str] | None = None) -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(prog='python -m experiments.report')
  parser.add_argument('--results', type=pathlib.Path, default=trial.RESULTS)
  parser.add_argument('--docs', type=pathlib.Path, default=DOCS)
  args = parser.parse_args(argv)
  write(args.results, args.docs)
  return 0


if __name__ == '__main__':
  sys.exit(main())
