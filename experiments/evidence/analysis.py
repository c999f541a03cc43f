"""Computes the numbers of the report from lines of results."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments import schedule, studies, trial
from experiments.arms import ARMS, Arm

Line = Mapping[str, Any]
LEVEL = 0.95
WINDOW_NATS = 0.02


@dataclasses.dataclass(frozen=True)
class Summary:
  """The results of one arm in one cell.

  Attributes:
    cell, arm: names.
    progress: which of its trials are done.
    tuning: lines of seed 0.
    fresh: lines of fresh seeds, by options and seed.
    final: those of the tuned options.
    best: the line of seed 0 with the lowest loss so far, if any.
  """

  cell: str
  arm: str
  progress: schedule.ArmProgress
  tuning: Sequence[Line]
  fresh: Mapping[trial.Point, Mapping[int, Line]]
  final: Mapping[int, Line]
  best: Line | None

  @property
  def complete(self) -> bool:
    return self.progress.left == 0

  @property
  def losses(self) -> dict[int, float]:
    """Final losses by fresh seed."""
    return {
      seed: math.inf if line['diverged'] else line['loss']
      for seed, line in self.final.items()
    }

  @property
  def state_bytes(self) -> int:
    """Bytes of the optimizer's state; needs a finished run."""
    assert self.best is not None
    return self.best['state_bytes']

  @property
  def by_decile(self) -> np.ndarray:
    """Mean losses by decile over fresh seeds; NaN where a run has none."""
    runs = [line['by_decile'] for line in self.final.values()]
    return np.mean(np.array(runs, float), axis=0)

  def mean(self, name: str = 'loss') -> float | None:
    """Mean of a number over fresh seeds; None if there are none."""
    values = [line[name] for line in self.final.values()]
    return float(np.mean(values)) if values and None not in values else None


@dataclasses.dataclass(frozen=True)
class Difference:
  """Paired difference of an arm to the baseline.

  Attributes:
    mean: nats; negative if the arm is better.
    half_width: of the interval of `LEVEL`; None with fewer than 2 pairs.
    p: two-sided p-value of a difference of 0; corrected once by `holm`.
    pairs: number of common seeds.
  """

  mean: float
  half_width: float | None
  p: float | None
  pairs: int

  def __str__(self) -> str:
    half = '' if self.half_width is None else f' ± {self.half_width:.4f}'
    return f'{self.mean:+.4f}{half}'


def summarize(
  study: studies.Study, root: pathlib.Path = trial.RESULTS
) -> list[Summary]:
  """Summarizes all arms and cells of a study, in its order."""
  lines = schedule.read(study, root)
  losses = trial.losses(lines.values())
  groups: dict[tuple[str, str], list[Line]] = {}
  for line in lines.values():
    groups.setdefault((line['cell'], line['arm']), []).append(line)
  return [
    _summary(
      cell,
      arm,
      groups.get((cell, arm.name), []),
      schedule.progress(study, cell, arm, losses),
    )
    for cell, arm in studies.arms_of(study)
  ]


def _summary(
  cell: str, arm: Arm, mine: Sequence[Line], progress: schedule.ArmProgress
) -> Summary:
  """Summarizes one arm in one cell, given its lines."""
  tries = [line for line in mine if line['seed'] == 0]
  fresh: dict[trial.Point, dict[int, Line]] = {}
  for line in sorted(mine, key=lambda line: line['seed']):
    if line['seed']:
      point = trial.point_of(line['options'])
      fresh.setdefault(point, {})[line['seed']] = line
  tuned = progress.tuned
  final = fresh.get(trial.point_of(tuned.options), {}) if tuned else {}
  finite = [line for line in tries if not line['diverged']]
  best = min(finite, key=lambda line: line['loss'], default=None)
  return Summary(cell, arm.name, progress, tries, fresh, final, best)


def difference(arm: Summary, baseline: Summary) -> Difference | None:
  """The paired difference over common seeds; None if there are none."""
  seeds = sorted(arm.losses.keys() & baseline.losses.keys())
  if not seeds:
    return None
  values = np.array([arm.losses[s] - baseline.losses[s] for s in seeds])
  mean = float(values.mean())
  if len(seeds) < 2 or not np.isfinite(values).all():
    return Difference(mean, None, None, len(seeds))
  error = float(values.std(ddof=1) / math.sqrt(len(seeds)))
  quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(seeds) - 1))
  if error == 0:
    return Difference(mean, 0.0, 1.0 if mean == 0 else 0.0, len(seeds))
  p = float(2 * stats.t.sf(abs(mean / error), len(seeds) - 1))
  return Difference(mean, quantile * error, p, len(seeds))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
  """Holm's correction; None, a test to come, counts and stays None."""
  known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
  result: list[float | None] = [None] * len(p_values)
  worst = 0.0
  for rank, (p, i) in enumerate(known):
    worst = max(worst, min(1.0, (len(p_values) - rank) * p))
    result[i] = worst
  return result


def differences(
  summaries: Sequence[Summary], baseline: Summary
) -> dict[str, Difference]:
  """Differences of finished arms to the baseline, corrected by Holm.

  Arms that are not finished count in the correction, which therefore does not
  grow with them.
  """
  found = {
    s.arm: difference(s, baseline) if s.complete and baseline.complete else None
    for s in summaries
    if s.arm != baseline.arm
  }
  corrected = holm([d.p if d else None for d in found.values()])
  return {
    arm: dataclasses.replace(d, p=p)
    for (arm, d), p in zip(found.items(), corrected, strict=True)
    if d is not None
  }


def step_times(
  cell: str, root: pathlib.Path = trial.RESULTS
) -> dict[str, float]:
  """Core-seconds of a step by arm; {} if they were not measured."""
  path = trial.times_of(cell, root)
  if not path.exists():
    return {}
  lines = map(json.loads, path.read_text().splitlines())
  return {line['arm']: line['step_core_seconds'] for line in lines}


def rate_curve(summary: Summary, name: str) -> list[tuple[float, float]]:
  """The best loss of seed 0 at each value of a rate, diverged ones left out."""
  best: dict[float, float] = {}
  for line in summary.tuning:
    if not line['diverged']:
      rate = line['options'][name]
      best[rate] = min(best.get(rate, math.inf), line['loss'])
  return sorted(best.items())


def window(summary: Summary, name: str) -> tuple[float, float] | None:
  """The rates tried that are within WINDOW_NATS of the best, first and last."""
  curve = rate_curve(summary, name)
  if not curve:
    return None
  best = min(loss for _, loss in curve)
  good = [rate for rate, loss in curve if loss <= best + WINDOW_NATS]
  return good[0], good[-1]


def beta_name(arm: str) -> str:
  """The name of the option 'beta' in an arm's method."""
  found = ARMS[arm]
  if found.table is None:
    return found.beta_name
  return 'b2' if 0.999 in found.betas else 'momentum'
