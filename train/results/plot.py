"""Draws the loss curve of a run."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from train.results.evaluate import Score


def smooth(values: Sequence[float], width: float) -> np.ndarray:
  """A centered moving average, which does not lag behind a steep drop.

  Args:
    values: The series [N].
    width: Standard deviation of the Gaussian weights, in positions.

  Returns:
    The averages [N].
  """
  reach = min(math.ceil(3 * width), len(values) - 1)
  weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)

  def average(series):
    # Weights beyond the ends count as zero, in sums and in normalization.
    return np.convolve(series, weights)[reach : reach + len(series)]

  return average(values) / average(np.ones(len(values)))


def loss_curve(
  records: Iterable[Mapping[str, Any]],
  path: pathlib.Path,
  *,
  title: str,
  final: Score | None = None,
  levels: Mapping[str, float] | None = None,
) -> None:
  """Draws training loss, its average, and validation over the tokens seen.

  Args:
    records: The run's metrics; see `run_log.read`.
    path: The PNG to write.
    title: Title of the picture.
    final: The final score; if it covers more tokens than the curve, it is drawn
      separately.
    levels: Losses of baselines in nats per token, drawn as lines.
  """
  # Slow to import. An explicit canvas needs no global state and no display.
  from matplotlib import ticker
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  records = list(records)
  train = [(r['tokens'], r['loss']) for r in records if _is(r, 'loss')]
  valid = [
    (r['tokens'], r['eval/loss'], r.get('eval/tokens', 0))
    for r in records
    if _is(r, 'eval/loss')
  ]
  figure = Figure(figsize=(8, 4.8), dpi=150, layout='constrained')
  canvas = FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  if train:
    x, y = np.asarray(train).T
    axes.plot(x, y, color='C0', alpha=0.25, linewidth=0.8)
    mean = smooth(y, max(len(y) / 100, 1))
    axes.plot(x, mean, color='C0', linewidth=1.8, label='training (smoothed)')
  if valid:
    x, y, of = np.asarray(valid).T
    perplexity = math.exp(min(y[-1], 700))
    label = f'validation: {y[-1]:.3f} (perplexity {perplexity:.1f})'
    if final is not None and final.tokens != of[-1]:
      label = f'validation, a sample: {y[-1]:.3f}'
      whole = (
        f'validation: {final.loss:.3f} (perplexity {final.perplexity:.1f})'
      )
      axes.plot(x[-1], final.loss, 'D', color='C1', label=whole)
    axes.plot(x, y, 'o-', color='C3', markersize=5, label=label)
  for i, (name, level) in enumerate((levels or {}).items()):
    style = ('--', ':', '-.')[i % 3]
    label = f'{name}: {level:.3f}'
    axes.axhline(level, color='0.4', linewidth=1, linestyle=style, label=label)
  axes.set(title=title, xlabel='tokens', ylabel='loss, nats per token')
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  axes.set_xlim(left=0)
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  if axes.lines:
    axes.legend(frameon=False)
  part = path.with_suffix('.part')
  canvas.print_png(str(part))
  part.replace(path)


def _is(record: Mapping[str, Any], name: str) -> bool:
  """Whether a record has a finite number under this name."""
  return isinstance(record.get(name), int | float)
