"""Writes docs/evidence.md and its pictures from results/ alone.

python -m experiments.report
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

from experiments import studies, trial
from experiments.cells import CELLS, Cell
from experiments.evidence import analysis, choice, figures, tables, verdicts
from experiments.evidence.analysis import Summary

DOCS = pathlib.Path('docs')
PICTURES = 'evidence'
# Pictures of the front need so many finished arms.
FEWEST = 3
# Study, heading and baseline.
_PARTS = (
  ('small_recipes', 'Recipes on a small Llama, tied', 'recipe_adamw'),
  ('small_tied', 'Rules of the table on a small Llama, tied', 'adamw'),
  ('small_untied', 'Rules of the table on a small Llama, untied', 'adamw'),
  (
    'small_untied_recipes',
    'Recipes on a small Llama, untied',
    'recipe_adamw',
  ),
  ('medium', 'Recipes on a medium Llama, tied', 'recipe_adamw'),
)
_TOYS = ('toy', 'toy_dose', 'toy_large')

_HEAD = """# Evidence: which optimizer, at which rate, for how much memory

These studies train small language models with many optimizers, tuned by one
search, and compare their loss and their memory. `experiments/PROTOCOL.md` lists
the optimizers, the models, the search, its starts and what decides; it was
committed before the runs, and lists every change made since.
`python -m experiments.report` writes this page from the files in `results/`,
which have a line for every run.
"""


def _steps(cell: str) -> str:
  """The length of a cell's runs, in words."""
  found = CELLS[cell]
  return f'{found.steps} steps of {found.tokens} tokens'


_HOW = f"""## How to read it

- **What differs.** In studies of *rules*, optimizers differ only in the rule
  that updates the embedding table, and the head where it is another matrix.
  SinkGD updates all other matrices and AdamW the vectors. In the study of
  *recipes*, all parameters follow a recipe of `sage_optax`.
- **Models.** The toy predicts a token from the one before, with a table and one
  matrix. `toy_v1024` has a vocabulary of 1024 tokens; `_t2` stands for 2 pairs
  of tokens a step for each row of the table, 0.5 elsewhere. The small Llama has
  2 layers of width 64 and a vocabulary of 4096, the medium one 4 layers of
  width 128 and a vocabulary of 8192. All read the same 12 MB of text.
- **Runs.** A run of the small Llama has {_steps('small_tied')}, one of the
  medium one {_steps('medium_tied')}. Rates warm up over a tenth of the steps
  and fall to 0 as a cosine; gradients are clipped to a norm of 1; everything is
  float32.
- **Tuning.** Runs with seed 0 choose the rate of the table, the rate of the
  matrices, the weight decay and one beta, one after the other, until both
  neighbors of every choice are worse or a list of values ends (*end* in the
  tables). Rates move by factors of 2. A search with fewer than 14 runs (9 in
  the medium Llama and for optimizers that decide no question) continues with
  diagonal neighbors and factors of sqrt(2). `sage`, `lion` and the two controls
  also try each other's choices. The chosen options then run with fresh seeds:
  20 in the toy (5 in the largest), 5 in the Llamas (3 for other numbers of
  tokens). The medium Llama, the untied one and the largest toy start from the
  options of the small tied one or of `toy_v4096`, and tune the rates alone, the
  medium one also the weight decay.
- **Loss** is in nats per token, of held-out text in the Llama, of all pairs of
  the text in the toy. Lower is better, and 0.01 nats is 1 % of perplexity. It
  is the mean over the fresh seeds. A number in italics is the lowest of seed 0
  instead: it is too low by an unknown amount, and no comparison uses it.
- **Difference** is the loss minus that of the baseline with the same seed,
  which has the same initial weights and data, with a 95 % interval (Student's
  t). The baseline is the recipe `adamw` for recipes, and AdamW on the table for
  rules. *p* is corrected by Holm's method for all optimizers of the table that
  are planned, finished or not; recipes and rules of a cell are two tables.
- **State** is the memory that the optimizer keeps from step to step.
- **Options.** *Good rates* are the smallest and the largest one whose lowest
  loss of seed 0 is within {analysis.WINDOW_NATS} nats of the best; ≤ and ≥ mark
  the ends of what was tried. *Jumps* are training losses 0.5 nats above the
  mean of the 20 before, in a run; in the Llama they count batches that are hard
  for all optimizers. *Core-ms*, where measured, are milliseconds of one core,
  measured for all optimizers in turns (`python -m experiments.times`); at width
  64 the model takes most of them.
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
    if name != 'vit'  # It has a page of its own.
  }
  pictures = docs / PICTURES
  for old in pictures.glob('*.png'):
    old.unlink()
  text = [
    _HEAD,
    *_front(found['small_recipes'], 'recipe_adamw', pictures / 'state.png'),
    choice.text(found['small_recipes'], found['medium']),
    _HOW,
    _progress(found),
    verdicts.text(found),
    *verdicts.worth(found),
    *verdicts.surprises(found),
    tables.limits(found),
    tables.RULES,
  ]
  for name, heading, baseline in _PARTS:
    text.append(f'## {heading}\n')
    if name != 'small_recipes':  # Its picture is the first of the page.
      text += _front(found[name], baseline, pictures / f'{name}_state.png')
    times = analysis.step_times(found[name][0].cell, results)
    text += _part(name, found[name], baseline, pictures, times)
  text += tables.widths(found['small_recipes'], found['medium'])
  text += _toy_part([s for name in _TOYS for s in found[name]], pictures)
  (docs / 'evidence.md').write_text('\n'.join(text).rstrip() + '\n')


def _front(
  summaries: Sequence[Summary], base: str, path: pathlib.Path
) -> list[str]:
  """The picture of loss against state, if enough arms are finished."""
  finished = _finished(summaries)
  baseline = next((s for s in finished if s.arm == base), None)
  if baseline is None or len(finished) < FEWEST:
    return []
  is_recipe = base.startswith('recipe_')
  kind = 'recipes' if is_recipe else 'rules for the embedding table'
  about = (
    f'Loss and optimizer memory of {len(finished)} {kind}: '
    f'{CELLS[baseline.cell].about}'
  )
  figures.pareto(finished, baseline, about, path)
  return [f'![Loss against optimizer state]({PICTURES}/{path.name})\n']


def _finished(summaries: Sequence[Summary]) -> list[Summary]:
  return [s for s in summaries if s.complete]


def _cell(summaries: Sequence[Summary]) -> Cell:
  return CELLS[summaries[0].cell]


def _progress(found: Mapping[str, Sequence[Summary]]) -> str:
  """Returns how much of each study is done."""
  rows = [
    '## What has been measured\n',
    '| study | optimizers finished, over its cells | runs done | '
    'runs missing, about |',
    '|---|---|---|---|',
  ]
  for name, summaries in found.items():
    rows.append(
      f'| `{name}` | {len(_finished(summaries))} of {len(summaries)} | '
      f'{sum(s.progress.done for s in summaries)} | {_left(summaries)} |'
    )
  rows.append(
    '\nA study of a vision transformer has [its own page](vision.md).\n'
  )
  return '\n'.join(rows)


def _part(
  name: str,
  summaries: list[Summary],
  base: str,
  pictures: pathlib.Path,
  times: Mapping[str, float],
) -> list[str]:
  """Tables and pictures of a study with one cell."""
  begun = [s for s in summaries if s.best]
  baseline = next(s for s in summaries if s.arm == base)
  if not begun:
    return [f'Not measured yet: about {_left(summaries)} runs.\n']
  text = [tables.table(summaries, baseline, times)]
  absent = [s.arm for s in summaries if not s.best]
  if absent:
    names = ', '.join(f'`{arm}`' for arm in absent)
    text.append(f'Not measured yet: {names}.\n')
  finished = _finished(begun)
  if baseline in finished and len(finished) > 1:
    figures.deciles(finished, baseline, pictures / f'{name}_deciles.png')
    text.append(f'![Loss by token frequency]({PICTURES}/{name}_deciles.png)\n')
  for rate in ('embedding_rate', 'matrix_rate'):
    figures.rates(begun, rate, pictures / f'{name}_{rate}.png')
    words = rate.replace('_', ' ')
    text.append(f'![Loss against {words}]({PICTURES}/{name}_{rate}.png)\n')
  return text


def _toy_part(summaries: list[Summary], pictures: pathlib.Path) -> list[str]:
  """Tables of the toy's cells, and the trends in V and in tokens per row."""
  text = ['## The toy: a bilinear model of bigrams\n']
  cells = dict.fromkeys(s.cell for s in summaries)
  gaps_of_v: dict[str, list[tuple[float, float, float | None]]] = {}
  gaps_of_dose: dict[str, list[tuple[float, float, float | None]]] = {}
  sections = []
  for name in cells:
    mine = [s for s in summaries if s.cell == name]
    begun = [s for s in mine if s.best]
    baseline = next(s for s in mine if s.arm == 'adamw')
    heading = f'### {name}: {CELLS[name].tokens} pairs a step\n'
    if not begun:
      sections.append(
        f'{heading}\nNot measured yet: about {_left(mine)} runs.\n'
      )
      continue
    sections.append(f'{heading}\n{tables.table(mine, baseline, {})}')
    cell = CELLS[name]
    dose = cell.tokens / cell.vocab_size
    for arm, gap in analysis.differences(mine, baseline).items():
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
    ordered = {arm: sorted(x) for arm, x in gaps.items() if len(x) > 1}
    if ordered:
      figures.trend(ordered, label, 'adamw', pictures / f'{file}.png')
      text.append(f'![Difference against {label}]({PICTURES}/{file}.png)\n')
  return text + sections


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
