"""The pictures of the report; the same bytes for the same results."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib import ticker

from experiments.evidence import analysis
from experiments.evidence.analysis import Summary
from experiments.evidence.rule_names import RULES

_STYLE: Any = {
  'figure.dpi': 100,
  'savefig.dpi': 150,
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.alpha': 0.25,
}
_LEAST = 0.1  # Per cent of the baseline's state; what is less is drawn as 0.
# In points: marks in one column, the length of a name, its height.
_COLUMN, _NAME, _LINE = 20, 100, 9


def label(arm: str) -> str:
  """An arm's name in pictures."""
  if arm in RULES:
    return RULES[arm][0]
  return arm.removeprefix('recipe_').replace('optax_', "Optax's ")


def _save(figure: Any, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  # Without version and date, which would change the bytes.
  figure.savefig(path, metadata={'Software': None}, bbox_inches='tight')
  plt.close(figure)


def pareto(
  summaries: Sequence[Summary],
  baseline: Summary,
  about: str,
  path: pathlib.Path,
) -> None:
  """Draws the loss of finished arms against their state, and the front.

  Args:
    summaries: Finished arms of one cell.
    baseline: The one of them that the others are compared with.
    about: The model, in words.
    path: The PNG to write.
  """
  points = []
  for summary in summaries:
    gap = analysis.difference(summary, baseline)
    if gap is not None and gap.half_width is not None:
      state = 100 * _state(summary) / _state(baseline)
      points.append((state, gap.mean, gap.half_width, summary.arm))
  # On a logarithmic axis next to nothing is drawn left of all others.
  left = min(p[0] for p in points if p[0] > _LEAST) / 3
  points = [(p[0] if p[0] > _LEAST else left, *p[1:]) for p in points]
  seeds = min(len(summary.final) for summary in summaries)
  with plt.rc_context(_STYLE):
    figure, axes = _differences(baseline.arm)
    for state, loss, half, arm in points:
      color = 'tab:red' if 'sage' in arm else 'tab:blue'
      is_rule = arm in RULES and baseline.arm not in RULES
      fmt = 's' if is_rule else 'o'
      axes.errorbar(state, loss, half, fmt=fmt, capsize=3, color=color)
    front, lowest = [], math.inf
    # States within one per cent are the same.
    for state, loss, _, _ in sorted(
      points, key=lambda p: (round(100 * math.log(p[0])), p[1])
    ):
      if loss < lowest:
        front.append((state, loss))
        lowest = loss
    axes.step(
      *zip(*front, (1e9, lowest), strict=True),
      where='post', color='0.6', zorder=0,
    )  # fmt: skip
    axes.set_xscale('log')
    axes.set_xlim(left / 1.5, 400)
    ticks = [x for x in (0.1, 1, 2, 5, 10, 20, 50, 100) if x > 1.3 * left]
    axes.set_xticks([left, *ticks], ['0', *(f'{x:g} %' for x in ticks)])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel(
      f"optimizer state, % of {label(baseline.arm)}'s (0: less than {_LEAST} %)"
    )
    _loss_ticks(axes)
    # Next to recipes, name the rule of the matrices, too.
    beside = '' if baseline.arm in RULES else ' + SinkGD'
    _write_names(
      axes,
      [(p[0], p[1], label(p[3]) + beside * (p[3] in RULES)) for p in points],
    )
    axes.set_title(
      f'{about}\nLower and further left is better. Each was tuned, then '
      f'run with {seeds} fresh seeds; bars: {analysis.LEVEL:.0%} intervals\nof '
      f'the difference to {label(baseline.arm)}. Grey line: the lowest loss '
      'with at most so much state. Red: SAGE.',
      fontsize=9,
      loc='left',
    )
    _save(figure, path)


def _differences(baseline: str) -> tuple[Any, Any]:
  """Axes for differences: linear near 0, logarithmic far from it."""
  figure, axes = plt.subplots(figsize=(8, 5))
  axes.set_yscale('symlog', linthresh=0.1, linscale=1.5)
  axes.axhline(0, color='black', linewidth=0.8, zorder=0)
  axes.set_ylabel(
    f'final loss minus that of {label(baseline)}, nats a token (perplexity)'
  )
  return figure, axes


def _loss_ticks(axes: Any) -> None:
  ticks = (-0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2, 4)
  low, high = axes.get_ylim()
  shown = [y for y in ticks if low <= y <= high]
  names = [f'{y:+g} ({math.expm1(y):+.0%})' if y else '0' for y in shown]
  axes.set_yticks(shown, names)
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def _write_names(
  axes: Any, points: Sequence[tuple[float, float, str]], right: bool = False
) -> None:
  """Names beside points (x, y), moved apart where they would overlap.

  Args:
    axes: The axes, whose limits are final.
    points: Places and names.
    right: Whether all names are to the right; else they are to the left where
      another column of points is near, but for the first column.
  """
  # In points, which are 1/72 of an inch.
  places = axes.transData.transform([p[:2] for p in points])
  places *= 72 / axes.figure.dpi
  columns: dict[float, list[Any]] = {}
  for (x, y), point in sorted(
    zip(places.tolist(), points, strict=True), key=lambda item: item[0]
  ):
    key = next((k for k in columns if x - k < _COLUMN), x)
    columns.setdefault(key, []).append((y, point))
  for key, column in columns.items():
    crowded = any(key < other < key + _NAME for other in columns)
    side = -1 if crowded and key > min(columns) and not right else 1
    last = -math.inf
    for y, (*place, name) in sorted(column):
      last = max(y, last + _LINE)
      axes.annotate(
        name,
        place,
        (10 * side, last - y),
        textcoords='offset points',
        fontsize=7,
        va='center',
        ha='left' if side > 0 else 'right',
        arrowprops={'arrowstyle': '-', 'linewidth': 0.4, 'color': '0.5'},
        bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5},
      )


def _state(summary: Summary) -> Any:
  return None if summary.best is None else summary.best['state_bytes']


def rates(summaries: Sequence[Summary], name: str, path: pathlib.Path) -> None:
  """Loss against a rate, one panel an arm; the best over all other options."""
  shown = [s for s in summaries if s.tuning]
  columns = min(4, len(shown))
  rows = -(-len(shown) // columns)
  lowest = min(loss for s in shown for _, loss in analysis.rate_curve(s, name))
  with plt.rc_context(_STYLE):
    figure, grid = plt.subplots(
      rows,
      columns,
      figsize=(2.4 * columns, 0.5 + 1.6 * rows),
      sharex=True,
      sharey=True,
      squeeze=False,
    )
    for axes, summary in zip(grid.flat, shown, strict=False):
      curve = analysis.rate_curve(summary, name)
      axes.plot(*zip(*curve, strict=True), 'o-', markersize=3)
      axes.set_title(label(summary.arm), fontsize=8)
      axes.set_xscale('log')
      axes.xaxis.set_major_formatter('{x:g}')
      axes.xaxis.set_minor_formatter(ticker.NullFormatter())
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
    axes.set_ylabel(f'loss minus that of {label(baseline.arm)}, nats')
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
    figure, axes = _differences(baseline)
    colors = plt.get_cmap('tab20')
    for index, points in enumerate(gaps.values()):
      x, y, error = zip(*points, strict=True)
      axes.errorbar(
        x,
        y,
        yerr=[e or 0.0 for e in error],
        marker='o',
        markersize=3,
        capsize=2,
        color=colors(index % 20),
      )
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.set_xlabel(xlabel)
    _loss_ticks(axes)
    ends = [(*points[-1][:2], label(arm)) for arm, points in gaps.items()]
    _write_names(axes, ends, right=True)
    _save(figure, path)
