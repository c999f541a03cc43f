"""Which recipe to use for how much memory, and the call that makes it."""

from collections.abc import Sequence
from typing import Any

from experiments import arms
from experiments.cells import CELLS
from experiments.evidence import analysis
from experiments.evidence.analysis import Difference, Summary

_HEAD = """## Which recipe to use

The model is {about}.
Of the {count} recipes finished there, these have the lowest loss for their
memory. Larger models and other text may need other options, or another recipe:
see [Limits](#limits). Time is not counted: updates with Muon or SWAN take 36 to
60 times as long as AdamW's on CPU (*step* in the README). If the interval in
the last column contains 0, the additional state of that row has shown no gain.
Intervals of this section are not corrected for the number of comparisons.

| recipe | state, % of AdamW's | loss minus AdamW's, {cells} | minus the row \
above's, `{cell}` |
|---|---|{columns}---|"""
_BEATEN = """
These recipes have no advantage here: another one has a lower loss, by more than
the interval, and at most as much state.

| recipe | its loss minus that of | is |
|---|---|---|"""
_CALLS = """
With the tuned options, the recipes of `sage_optax` are these calls. The first
number is the peak of the learning rate's schedule. `matrix` sets the factor of
the matrices' rate, and their weight decay in proportion to it. Before them, the
study has `optax.clip_by_global_norm(1.0)`. Larger models need other rates:
[methods](methods/README.md) lists those that were published.
"""


def text(small: Sequence[Summary], medium: Sequence[Summary]) -> str:
  """The section of the report; '' until the baseline and another are finished.

  Args:
    small: The recipes in the cell that decides.
    medium: The recipes in the larger cell, of which only differences are shown.
  """
  finished = [s for s in small if s.complete]
  base = _of(finished, 'recipe_adamw')
  if base is None or len(finished) < 2:
    return ''
  groups = [finished]
  larger = [s for s in medium if s.complete]
  if _of(larger, base.arm) is not None and len(larger) > 1:
    groups.append(larger)
  lines = [
    _HEAD.format(
      count=len(finished),
      about=CELLS[base.cell].about,
      cells=' | '.join(f'`{group[0].cell}`' for group in groups),
      cell=base.cell,
      columns='---|' * len(groups),
    )
  ]
  best = front(finished)
  for above, summary in zip([None, *best], best, strict=False):
    cells = [
      f'`{_name(summary)}`',
      f'{100 * summary.state_bytes / base.state_bytes:.3g}',
      *(_gap(_of(g, summary.arm), _of(g, base.arm)) for g in groups),
      _gap(summary, above),
    ]
    lines.append(f'| {" | ".join(cells)} |')
  if found := beaten(finished):
    lines.append(_BEATEN)
    for loser, winner, gap in found:
      lines.append(f'| `{_name(loser)}` | `{_name(winner)}` | {gap} |')
  lines.append(_CALLS)
  for group in groups:
    lines += [
      '```python',
      f'# {CELLS[group[0].cell].about}',
      *filter(None, map(_tuned_call, sorted(group, key=_loss))),
      '```\n',
    ]
  return '\n'.join(lines)


def front(summaries: Sequence[Summary]) -> list[Summary]:
  """Those with a lower loss than all with at most as much state."""
  result: list[Summary] = []
  for summary in sorted(summaries, key=lambda s: (s.state_bytes, _loss(s))):
    if not result or _loss(summary) < _loss(result[-1]):
      result.append(summary)
  return result


def beaten(
  summaries: Sequence[Summary],
) -> list[tuple[Summary, Summary, Difference]]:
  """Each that another beats without more state; the other; by how much.

  States within one per cent are the same.
  """
  result = []
  for loser in summaries:
    gaps = [
      (other, analysis.difference(loser, other))
      for other in summaries
      if other is not loser and other.state_bytes <= 1.01 * loser.state_bytes
    ]
    surely = [
      (other, gap)
      for other, gap in gaps
      if gap and gap.half_width is not None and gap.mean > gap.half_width
    ]
    if surely:
      other, gap = max(surely, key=lambda item: item[1].mean)
      result.append((loser, other, gap))
  return sorted(result, key=lambda item: _loss(item[0]))


def call_of(arm: arms.Arm, options: arms.Options) -> str | None:
  """The call of a recipe with tuned options; None for Optax's optimizers."""
  if arm.table is not None or arm.recipe.startswith('optax_'):
    return None
  given = {
    name: _without_zeros(value)
    for name, value in arms.recipe_arguments(arm, options).items()
  }
  shown = [f'{options["embedding_rate"]:.4g}']
  shown += [f'{k}={_literal(v)}' for k, v in given.items() if v not in (0, {})]
  line = f'sage_optax.{arm.recipe}({", ".join(shown)})'
  if len(line) <= 80:
    return line
  return '\n'.join(
    [f'sage_optax.{arm.recipe}(', *(f'  {one},' for one in shown), ')']
  )


def _tuned_call(summary: Summary) -> str | None:
  arm = arms.ARMS[summary.arm]
  assert summary.progress.tuned is not None
  # Its recipe has a call with two rates.
  return None if arm.one_rate else call_of(arm, summary.progress.tuned.options)


def _without_zeros(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: v for k, v in value.items() if v}
  return value


def _literal(value: Any) -> str:
  if isinstance(value, dict):
    return f'{{{", ".join(f"{k!r}: {_literal(v)}" for k, v in value.items())}}}'
  return f'{value:.4g}' if isinstance(value, float) else repr(value)


def _of(summaries: Sequence[Summary], arm: str) -> Summary | None:
  return next((s for s in summaries if s.arm == arm), None)


def _name(summary: Summary) -> str:
  return summary.arm.removeprefix('recipe_').replace('optax_', 'optax.')


def _loss(summary: Summary) -> float:
  loss = summary.mean()
  return float('inf') if loss is None else loss


def _gap(summary: Summary | None, base: Summary | None) -> str:
  if summary is None or base is None:
    return ''
  if summary is base:
    return '0'
  gap = analysis.difference(summary, base)
  return '' if gap is None else str(gap)
