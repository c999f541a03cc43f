"""The pictures of the report; the same bytes for the same results."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib import ticker

from experiments.evidence import analysis, labels
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
_HIGHEST = 0.3  # The largest difference to scale in `pareto`, in nats.


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
    about: The arms and the model, in words.
    path: The PNG to write.
  """
  points = []
  for summary in summaries:
    gap = analysis.difference(summary, baseline)
    if gap is not None and gap.half_width is not None:
      state = 100 * summary.state_bytes / baseline.state_bytes
      points.append((state, gap.mean, gap.half_width, summary.arm))
  seeds = min(len(summary.final) for summary in summaries)
  above = any(loss > _HIGHEST for _, loss, *_ in points)
  with plt.rc_context(_STYLE):
    figure, axes = plt.subplots(figsize=(8, 5))
    names, bars = [], []
    for state, loss, half, arm in points:
      color = 'tab:red' if 'sage' in arm else 'tab:blue'
      name, y = label(arm), loss
      if loss > _HIGHEST:
        name, y, half = f'{name} {loss:+.2g}', _HIGHEST, 0.0
      fmt = '^' if loss > _HIGHEST else 'o'
      axes.errorbar(state, y, half, fmt=fmt, ms=5, capsize=3, color=color)
      names.append((state, y, name))
      bars.append((state, y - half, y + half))
    front: list[tuple[float, float]] = []
    for state, loss, *_ in sorted(points):
      if not front or loss < front[-1][1]:
        front.append((state, min(loss, _HIGHEST)))
    right = 1.2 * max(state for state, *_ in points)
    front.append((right, front[-1][1]))
    axes.step(*zip(*front, strict=True), where='post', color='0.7', zorder=0)
    axes.axhline(0, color='black', linewidth=0.8, zorder=0)
    axes.set_xlim(-right / 40, right)
    if above:
      axes.set_ylim(top=1.1 * _HIGHEST)
    axes.xaxis.set_major_formatter('{x:g} %')
    axes.set_xlabel(f"optimizer state, % of {label(baseline.arm)}'s")
    axes.set_ylabel(_difference_to(baseline.arm))
    _loss_ticks(axes)
    labels.write(axes, names, bars)
    outside = ' Triangles: outside the picture.' if above else ''
    axes.set_title(
      f'{about}\nLower and further left is better. Red: SAGE. Bars: '
      f'{analysis.LEVEL:.0%} intervals over {seeds} fresh seeds.\nGrey line: '
      f'the lowest loss with at most so much state.{outside}',
      fontsize=9,
      loc='left',
    )
    _save(figure, path)


def _difference_to(baseline: str) -> str:
  return (
    f'final loss minus that of {label(baseline)}, nats a token (perplexity)'
  )


def _loss_ticks(axes: Any) -> None:
  ticks = (-0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2, 4)
  low, high = axes.get_ylim()
  shown = [y for y in ticks if low <= y <= high]
  names = [f'{y:+g} ({math.expm1(y):+.0%})' if y else '0' for y in shown]
  axes.set_yticks(shown, names)
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def rates(summaries: Sequence[Summary], name: str, path: pathlib.Path) -> None:
  """Loss against a rate, one panel an arm; the best over all other options."""
  curves = {
    label(s.arm): analysis.rate_curve(s, name) for s in summaries if s.tuning
  }
  lowest = min(loss for curve in curves.values() for _, loss in curve)
  with plt.rc_context(_STYLE):
    figure, panels = _panels(curves, (lowest - 0.03, lowest + 0.6))
    for axes in panels:
      axes.set_xscale('log')
      axes.xaxis.set_major_formatter('{x:g}')
      axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    figure.supxlabel(f'{name.replace("_", " ")} (seed 0)', fontsize=9)
    figure.supylabel('final loss, nats', fontsize=9)
    figure.tight_layout()
    _save(figure, path)


def deciles(
  summaries: Sequence[Summary], baseline: Summary, path: pathlib.Path
) -> None:
  """Loss of finished arms by decile, less that of the baseline."""
  curves = {
    label(s.arm): list(enumerate(s.by_decile - baseline.by_decile, 1))
    for s in summaries
    if s is not baseline
  }
  with plt.rc_context(_STYLE):
    figure, panels = _panels(curves, (-_HIGHEST, 2 * _HIGHEST))
    for axes in panels:
      axes.axhline(0, color='black', linewidth=0.8)
    figure.supxlabel(
      'decile of token frequency: 1 the most frequent tokens', fontsize=9
    )
    figure.supylabel(
      f'loss minus that of {label(baseline.arm)}, nats', fontsize=9
    )
    figure.tight_layout()
    _save(figure, path)


def _panels(
  curves: Mapping[str, Sequence[tuple[float, float]]],
  limits: tuple[float, float],
) -> tuple[Any, list[Any]]:
  """A figure with a panel for each named curve; the panels."""
  columns = min(4, len(curves))
  rows = -(-len(curves) // columns)
  figure, grid = plt.subplots(
    rows,
    columns,
    figsize=(2.4 * columns, 0.5 + 1.6 * rows),
    sharex=True,
    sharey=True,
    squeeze=False,
  )
  panels = list(grid.flat)
  for axes, (name, curve) in zip(panels, curves.items(), strict=False):
    axes.plot(*zip(*curve, strict=True), 'o-', markersize=3)
    axes.set_title(name, fontsize=8)
    axes.set_ylim(limits)
    least = min(y for _, y in curve)
    if least > limits[1]:
      axes.text(
        0.5,
        0.5,
        f'{least:.2f} and higher',
        fontsize=8,
        ha='center',
        transform=axes.transAxes,
      )
  for axes in panels[len(curves) :]:
    axes.set_visible(False)
  return figure, panels[: len(curves)]


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
    figure, axes = plt.subplots(figsize=(8, 5))
    # Linear near 0, logarithmic far from it.
    axes.set_yscale('symlog', linthresh=0.1, linscale=1.5)
    axes.axhline(0, color='black', linewidth=0.8, zorder=0)
    axes.set_ylabel(_difference_to(baseline))
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
    labels.write(axes, ends, [], right_only=True)
    _save(figure, path)
