"""The search: finds the optimum, is interior, resumes, keeps its budget."""

import math
import random

import pytest

from experiments import trial, tuning
from experiments.arms import Arm

_ARM = Arm(
  'arm',
  {
    'embedding_rate': 1e-3,
    'matrix_rate': 1e-3,
    'weight_decay': 0.0,
    'beta': 0.99,
  },
  (0.8, 0.9, 0.95, 0.99, 0.999),
)


def _loss(point, best=(8e-3, 2e-3), decay=0.0, beta=0.99):
  """A bowl in the logarithms of the rates, tilted along the diagonal."""
  options = dict(point)
  x = math.log2(options['embedding_rate'] / best[0])
  y = math.log2(options['matrix_rate'] / best[1])
  off = sum(
    abs(values.index(options[name]) - values.index(at))
    for name, values, at in (
      ('weight_decay', tuning.WEIGHT_DECAYS, decay),
      ('beta', _ARM.betas, beta),
    )
  )
  return 3.0 + 0.1 * (x * x + y * y + 0.5 * x * y) + 0.05 * off


def _finish(loss, budget=14, arm=_ARM, known=None):
  """Runs what the search asks for until it ends."""
  losses = dict(known or {})
  for _ in range(100):
    try:
      lists = {'weight_decay': tuning.WEIGHT_DECAYS, 'beta': arm.betas}
      return tuning.search(arm.start, lists, losses.get, budget), losses
    except tuning.Missing as missing:
      for point in missing.points:
        assert point not in losses  # Nothing is repeated.
        losses[point] = loss(point)
  raise AssertionError('the search does not end')


@pytest.mark.parametrize(
  ('best', 'decay', 'beta'),
  [
    ((8e-3, 2e-3), 0.0, 0.99),
    ((0.25e-3, 32e-3), 0.1, 0.95),
    ((1e-3, 1e-3), 0.3, 0.999),
    ((2e-3, 1e-3), 1.0, 0.8),
  ],
)
def test_finds_the_optimum(best, decay, beta):
  tuned, losses = _finish(lambda p: _loss(p, best, decay, beta))
  assert tuned.options == pytest.approx(
    {
      'embedding_rate': best[0],
      'matrix_rate': best[1],
      'weight_decay': decay,
      'beta': beta,
    }
  )
  assert tuned.interior
  assert losses[trial.point_of(tuned.options)] == min(losses.values())
  assert sorted(tuned.visited) == sorted(losses)


def test_rates_that_move_together_stay_equal():
  losses = {}
  lists = {'weight_decay': tuning.WEIGHT_DECAYS, 'beta': _ARM.betas}
  for _ in range(100):
    try:
      tuned = tuning.search(_ARM.start, lists, losses.get, 9, one_rate=True)
      break
    except tuning.Missing as missing:
      losses |= {point: _loss(point, (8e-3, 2e-3)) for point in missing.points}
  assert all(len({dict(p)[name] for name in tuning.RATES}) == 1 for p in losses)
  assert tuned.options['matrix_rate'] == pytest.approx(4e-3)
  assert tuned.interior
  assert len(losses) >= 9


def test_weight_decay_is_searched_again_when_beta_has_moved():
  def loss(point):
    decay, beta = (dict(point)[name] for name in ('weight_decay', 'beta'))
    off = abs(decay - (0.3 if beta == 0.99 else 0.0))
    return _loss(point, decay=decay, beta=0.9) + 0.1 * off

  tuned, losses = _finish(loss)
  assert tuned.options['weight_decay'] == 0.0
  assert tuned.options['beta'] == 0.9
  # The search left 0 for 0.3, and came back.
  assert any(dict(point)['weight_decay'] == 0.3 for point in losses)


def test_every_arm_has_the_same_budget_at_least():
  stateless = Arm('arm', {k: v for k, v in _ARM.start.items() if k != 'beta'})
  near = (1e-3, 1e-3)

  def loss(point):
    return _loss((*point, ('beta', 0.99)), near)

  for budget in (10, 14):
    _, losses = _finish(loss, budget, stateless)
    assert len(losses) == budget


def test_a_diverged_start_moves_to_lower_rates():
  def loss(point):
    rate = dict(point)['embedding_rate']
    return math.inf if rate > 2e-4 else _loss(point, best=(1e-4, 1e-3))

  tuned, _ = _finish(loss)
  assert tuned.options['embedding_rate'] < 2e-4
  assert tuned.interior


def test_a_search_that_never_ends_is_cut():
  tuned, losses = _finish(lambda p: -math.log2(dict(p)['embedding_rate']))
  assert tuning.LONGEST <= len(losses) < tuning.LONGEST + 6
  assert not tuned.interior


@pytest.mark.parametrize('seed', range(5))
def test_depends_on_the_losses_only(seed):
  """With any part of the losses, the search ends at the same point."""
  whole, losses = _finish(_loss)
  part = random.Random(seed).sample(list(losses), len(losses) // 2)
  again, found = _finish(_loss, known={point: losses[point] for point in part})
  assert again == whole
  assert found == losses
