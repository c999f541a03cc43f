"""Compares each method with recorded runs of released code."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from docs.choices import CHOICES, NOT_RECORDED
from tests.support import replays

_INTRO = """\
<!-- Made by python -m docs.generate from tests/golden. -->
# Conformance

The first table lists where a paper and its released code differ, and what we
do. The tables below compare our parameter trajectories with recorded runs of
released code: they show the largest absolute difference over all steps and the
named leaves, in float64 and in float32. Differences below {floor:g} (float64)
and {floor32:g} (float32) are not shown, because they depend on the machine.

A row with an entry under *why* is a deliberate deviation.
`tests/sage_optax/methods/golden_test.py` checks every other row to its
tolerance, and checks that the deviations exist.

{table}

## The recorded runs

`tests/golden/<method>/<case>.json` contains source, commit, hyperparameters and
patches. The `.npz` beside it (`numpy.load`) contains `param0/<leaf>`,
`grads/<leaf>` (axis 0 is the step) and `params/<leaf>` (after each step). For
random methods it also contains `proj/<leaf>` with `proj_steps/<leaf>` (the
steps from which each projection applies) and `mask/<leaf>`. Dense leaves
(`w6x4`, `w8x8`, `w4x12`) are `[out, in]`, `embed` is `[vocabulary, feature]`.
To test a port, start from `param0`, apply `grads`, and compare with `params`
after each step. `python -m docs.generate` writes this page.

The column *paper* is the difference between the recorded run and the paper's
equations in NumPy, from the `.json` file; `-` means that it is not recorded.
"""
_FLOORS = {'float64': 1e-12, 'float32': 1e-5}


def page() -> str:
  """The whole page, from the golden files."""
  rows = [
    f'| {_link(name)} | {paper} | {released} | {ours} |'
    for name, (paper, released, ours) in CHOICES.items()
  ]
  header = ['| method | paper | released code | ours |', '|---|---|---|---|']
  text = [
    _INTRO.format(
      floor=_FLOORS['float64'],
      floor32=_FLOORS['float32'],
      table='\n'.join(header + rows),
    )
  ]
  cases = sorted(replays.REPLAYS, key=_method)
  for name, group in itertools.groupby(cases, key=_method):
    text += [f'### {name}', '', *_table(list(group)), '']
  text += ['### Not recorded', '', 'These methods are compared with:', '']
  text += [f'- {name}: {other}' for name, other in NOT_RECORDED.items()]
  return '\n'.join([*text, ''])


def _link(name: str) -> str:
  return name if name in NOT_RECORDED else f'[{name}](#{name})'


@functools.cache
def measure(replay: replays.Replay) -> dict[str, float]:
  """Largest difference of a replay: 'float64' and 'float32'."""
  with jax.enable_x64(True):
    wide = replays.differences(replay, jnp.float64)
  narrow = replays.differences(replay, jnp.float32)
  return {
    'float64': max(wide.values()),
    'float32': max(narrow.values()),
  }


def cell(value: float, dtype: str) -> str:
  """Formats one significant digit, or the floor if the value is below it."""
  floor = _FLOORS[dtype]
  return f'< {floor:g}' if value < floor else f'{value:.0e}'


def _method(replay: replays.Replay) -> str:
  return replay.method


def _table(group: list[replays.Replay]) -> list[str]:
  lines = [
    '| case | source | patched | paper | leaves | float64 | float32 | why |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for replay in group:
    about = replays.Recording(replay.case).about
    figures = measure(replay)
    lines.append(
      '| '
      + ' | '.join(
        [
          f'`{replay.case}`',
          about['source']['label'],
          _patch(about['patch']),
          _paper(about, replay.leaves),
          ', '.join(replay.leaves),
          cell(figures['float64'], 'float64'),
          cell(figures['float32'], 'float32'),
          replay.deviates or '-',
        ]
      )
      + ' |'
    )
  return lines


def _patch(patch: str) -> str:
  if 'no numeric effect' in patch or patch == 'none':
    return 'no'
  return patch.removeprefix('patched: ').split('(')[0].strip().rstrip(',')


def _paper(about, leaves) -> str:
  """Difference of the recorded run from the paper's equations."""
  found = [
    figures['max_abs_diff']
    for form, figures in about['numpy_reference_max_abs_diff'].items()
    if form.startswith(('equations', 'paper')) and 'official order' not in form
  ]
  values = [max(form.get(leaf, math.nan) for leaf in leaves) for form in found]
  return cell(max(values), 'float64') if values else '-'
