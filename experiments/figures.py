"""The pictures of the report; the same bytes for the same results."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from experiments import analysis
from experiments.analysis import Summary

_STYLE: Any = {
  'figure.dpi': 100,
  'savefig.dpi': 150,
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.alpha': 0.25,
}
_SHORT = {'recipe_': '', 'optax_': "Optax's "}


def label(arm: str) -> str:
  """An arm's name in pictures."""
  for old, new in _SHORT.items():
    arm = arm.replace(old, new)
  return arm


def _save(figure: Any, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  # Without version and date, which would change the bytes.
  figure.savefig(path, metadata={'Software': None}, bbox_inches='tight')
  plt.close(figure)


def pareto(
  summaries: Sequence[Summary], baseline: Summary, path: pathlib.Path
) -> None:
  """Final loss against optimizer state, with intervals and the front."""
  unit = _state(baseline)
  points = []
  for summary in summaries:
    loss, half = _loss(summary, baseline)
    state = _state(summary)
    if loss is not None and state is not None:
      points.append((100 * state / unit, loss, half, summary))
  with plt.rc_context(_STYLE):
    figure, axes = plt.subplots(figsize=(7.5, 4.8))
    for state, loss, half, summary in points:
      axes.errorbar(
        max(state, _LEAST),
        loss,
        yerr=half,
        fmt='o',
        color='tab:red' if 'sage' in summary.arm else 'tab:blue',
        markerfacecolor=None if summary.complete else 'white',
        capsize=3,
      )
    front, lowest = [], math.inf
    for state, loss, _, _ in sorted(points, key=lambda p: p[:2]):
      if loss < lowest:
        front.append((max(state, _LEAST), loss))
        lowest = loss
    axes.step(*zip(*front, strict=True), where='post', color='0.6', zorder=0)
    _write_labels(axes, points)
    axes.set_xscale('log')
    axes.set_xlim(_LEAST * 0.7, 4 * max(100, *(p[0] for p in points)))
    axes.set_xlabel(
      f'optimizer state, % of that of {label(baseline.arm)} '
      f'(what is below {_LEAST} is drawn there)'
    )
    axes.set_ylabel('validation loss, nats per token')
    axes.set_title(
      'Lower and further left is better. Every optimizer is tuned alike.\n'
      'Red: SAGE. Filled: mean and 95 % interval over seeds; '
      'hollow: tuning, one seed.',
      fontsize=9,
      loc='left',
    )
    _save(figure, path)


_LEAST = 0.02  # per cent, where stateless arms are drawn


def _write_labels(axes: Any, points: Sequence[Any]) -> None:
  """Names beside the points, moved apart where they would overlap."""
  losses = [p[1] for p in points]
  gap = 0.028 * max(max(losses) - min(losses), 0.05)
  columns: dict[int, list[Any]] = {}
  for point in points:
    key = round(2 * math.log10(max(point[0], _LEAST)))
    columns.setdefault(key, []).append(point)
  for column in columns.values():
    last = -math.inf
    for state, loss, _, summary in sorted(column, key=lambda p: p[1]):
      last = max(loss, last + gap)
      axes.annotate(
        label(summary.arm),
        (max(state, _LEAST), loss),
        (max(state, _LEAST) * 1.12, last),
        fontsize=7,
        va='center',
      )


def _state(summary: Summary) -> Any:
  return None if summary.best is None else summary.best['state_bytes']


def _loss(summary: Summary, baseline: Summary) -> tuple[Any, Any]:
  """Mean and half-width: of the difference to the baseline, at its mean."""
  if summary.final and summary.mean() is not None:
    found = analysis.difference(summary, baseline)
    return summary.mean(), found and found.half_width
  return (summary.best['loss'], None) if summary.best else (None, None)


def rates(summaries: Sequence[Summary], name: str, path: pathlib.Path) -> None:
  """Loss against a rate, one panel an arm; the best over all other options."""
  shown = [s for s in summaries if s.tuning]
  columns = 4
  rows = -(-len(shown) // columns)
  lowest = min(loss for s in shown for _, loss in analysis.rate_curve(s, name))
  with plt.rc_context(_STYLE):
    figure, grid = plt.subplots(
      rows,
      columns,
      figsize=(8.5, 1.7 * rows),
      sharex=True,
      sharey=True,
      squeeze=False,
    )
    for axes, summary in zip(grid.flat, shown, strict=False):
      curve = analysis.rate_curve(summary, name)
      axes.plot(*zip(*curve, strict=True), 'o-', markersize=3)
      axes.set_title(label(summary.arm), fontsize=8)
      axes.set_xscale('log', base=2)
      axes.set_ylim(lowest - 0.03, lowest + 0.6)
    for axes in list(grid.flat)[len(shown) :]:
      axes.set_visible(False)
    figure.supxlabel(f'{name.replace("_", " ")} (seed 0)', fontsize=9)
    figure.supylabel('final loss, nats', fontsize=9)
    figure.tight_layout()
    _save(figure, path)


def deciles(
  summaries: Sequence[Summary], baseline: Summary, path: pathlib.Path
) -> None:
  """Loss by decile of token frequency, less that of the baseline."""
  with plt.rc_context(_STYLE):
    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    reference = _deciles(baseline)
    colors = plt.get_cmap('tab20')
    for index, summary in enumerate(summaries):
      values = _deciles(summary)
      if values and reference and summary.arm != baseline.arm:
        gaps = [
          math.nan if a is None or b is None else a - b
          for a, b in zip(values, reference, strict=True)
        ]
        axes.plot(
          range(1, len(gaps) + 1),
          gaps,
          marker='o',
          markersize=3,
          color=colors(index % 20),
          label=label(summary.arm),
        )
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_xlabel('decile of token frequency: 1 the most frequent tokens')
    axes.set_ylabel(f'loss less that of {label(baseline.arm)}, nats')
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.01, 0.5))
    _save(figure, path)


def _deciles(summary: Summary) -> list[float | None]:
  """Means over fresh seeds; of the best of seed 0 without them."""
  lines = list(summary.final.values())
  if not lines and summary.best is not None:
    lines = [summary.best]
  if not lines:
    return []
  columns = zip(*(line['by_decile'] for line in lines), strict=True)
  return [
    None if None in values else sum(values) / len(values) for values in columns
  ]


def trend(
  gaps: Mapping[str, Sequence[tuple[float, float, float | None]]],
  xlabel: str,
  baseline: str,
  path: pathlib.Path,
) -> None:
  """Differences to the baseline against a number such as V.

  Args:
    gaps: arm -> (number, mean difference, half-width of its interval).
    xlabel: What the number is.
    baseline: The baseline's name.
    path: The PNG to write.
  """
  with plt.rc_context(_STYLE):
    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    colors = plt.get_cmap('tab20')
    for index, (arm, points) in enumerate(gaps.items()):
      x, y, error = zip(*points, strict=True)
      axes.errorbar(
        x,
        y,
        yerr=[e or 0.0 for e in error],
        marker='o',
        markersize=3,
        capsize=2,
        color=colors(index % 20),
        label=label(arm),
      )
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_xscale('log', base=2)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(f'final loss less that of {label(baseline)}, nats')
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.01, 0.5))
    _save(figure, path)
