"""Writes docs/vision.md from results/vit.jsonl."""

import argparse
import dataclasses
import math
import pathlib

import jax
import numpy as np
from flax import nnx

import sage_optax
from examples import vit
from experiments import studies, trial, tuning
from experiments.arms import ARMS
from experiments.cells import CELLS
from experiments.evidence import analysis

PAGE = pathlib.Path('docs/vision.md')
_STUDY = studies.STUDIES['vit']

_PAGE = """# Vision

The vision transformer of `examples/vit.py`, {parameters:,} parameters, on
scikit-learn's digits: {train} images of 8x8 pixels to train on, {validation} to
tune and {test} to test. Each run has {steps} steps of {batch} images, a warm-up
over a tenth of them, cosine decay to 0, and gradients clipped to a global norm
of 1. All roles are inferred, without rules.

Both recipes are tuned in the same way, on the validation loss of seed 0: the
rate of embedding, head and vectors and the rate of matrices by factors of 2,
until both neighbors of each are worse; weight decay among {decays}; at least
{budget} trials. The best options then run with {seeds} fresh seeds, for which
both recipes have the same initial weights and batches. Losses and errors are
means over the fresh seeds unless the row names a seed; core-seconds are the
median.

The options were chosen by one seed, whose loss is the lowest of many trials:
therefore both recipes are worse on the fresh seeds. It is not known how much of
the difference below is due to this choice.

{table}

{difference}

`python -m experiments.run vit` runs the study, `results/vit.jsonl` has all
trials, and `python -m experiments.vision.report` writes this page from it.
"""


def page(root: pathlib.Path = trial.RESULTS) -> str:
  """Returns the page; the study must be complete."""
  adamw, hybrid = analysis.summarize(_STUDY, root)
  cell = CELLS[adamw.cell]
  train, validation, test = (len(labels) for _, labels in vit.data())
  return _PAGE.format(
    parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(_params())),
    train=train,
    validation=validation,
    test=test,
    steps=cell.steps,
    batch=cell.tokens,
    decays=', '.join(f'{x:g}' for x in tuning.WEIGHT_DECAYS),
    budget=_STUDY.budget,
    seeds=len(_STUDY.seeds),
    table='\n'.join(_table(adamw, hybrid)),
    difference=_words(adamw, hybrid),
  )


def _params():
  return nnx.eval_shape(lambda: nnx.state(vit.ViT(nnx.Rngs(0)), nnx.Param))


def _table(*summaries):
  rows = {'': [f'`{ARMS[s.arm].recipe}`' for s in summaries]}
  for name, title in (
    ('embedding_rate', 'rate of embedding, head and vectors'),
    ('matrix_rate', 'rate of matrices'),
    ('weight_decay', 'weight decay'),
  ):
    rows[title] = [f'{s.progress.tuned.options[name]:g}' for s in summaries]
  rows['trials to tune'] = [str(len(s.tuning)) for s in summaries]
  rows['validation loss of seed 0'] = [
    f'{s.best["loss"]:.4f}' for s in summaries
  ]
  for name in ('validation_loss', 'test_loss'):
    rows[name.replace('_', ' ')] = [f'{s.mean(name):.4f}' for s in summaries]
  rows['test error'] = [f'{s.mean("test_error"):.1%}' for s in summaries]
  rows['... of each seed'] = [
    ', '.join(f'{line["test_error"]:.1%}' for line in s.final.values())
    for s in summaries
  ]
  rows['optimizer state'] = [f'{_state_kib(s):.0f} KiB' for s in summaries]
  rows['core-seconds per run'] = [f'{_seconds(s):.1f}' for s in summaries]
  lines = [f'| {title} | {" | ".join(x)} |' for title, x in rows.items()]
  return [lines[0], '|---|---|---|', *lines[1:]]


def _state_kib(summary):
  tx = sage_optax.recipe(ARMS[summary.arm].recipe, 1e-3)
  return sage_optax.memory.state_bytes(tx, _params()) / 1024


def _seconds(summary):
  # Without compilation, which the first trial of a process has.
  return np.median([line['core_seconds'] for line in summary.final.values()])


def _words(adamw, hybrid):
  """The paired differences, and the conclusions from them."""
  text = [
    'Differences between `sage_hybrid` and `adamw`, paired by seed, with '
    f'{analysis.LEVEL:.0%} intervals:\n'
  ]
  for name, unit, factor in (
    ('test_loss', 'nats', 1),
    ('test_error', 'points', 100),
  ):
    found = analysis.difference(_by(hybrid, name), _by(adamw, name))
    assert found is not None
    assert found.half_width is not None
    mean, half = factor * found.mean, factor * found.half_width
    verdict = 'which is undecided'
    if abs(mean) > half:
      verdict = f'so `sage_hybrid` is {"worse" if mean > 0 else "better"}'
    text.append(
      f'- {name.replace("_", " ").capitalize()}: {mean:+.2g} ± {half:.2g} '
      f'{unit}, {verdict}.'
    )
  return '\n'.join(text)


def _by(summary, name):
  """The summary with another number in place of the validation loss."""
  final = {
    seed: {**line, 'loss': line[name]} for seed, line in summary.final.items()
  }
  return dataclasses.replace(summary, final=final)


if __name__ == '__main__':
  argparse.ArgumentParser(description=__doc__).parse_args()
  PAGE.write_text(page())
