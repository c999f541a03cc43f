"""A budget of state is kept, with the best methods that it allows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import sage_optax

_SHAPES = {
  'embed': {'embedding': (512, 64)},
  'layers': {'proj': {'kernel': (3, 64, 96)}, 'norm': {'scale': (3, 64)}},
  'lm_head': {'kernel': (64, 512)},
}
_PARAMS = jax.tree.map(
  jnp.ones, _SHAPES, is_leaf=lambda x: isinstance(x, tuple)
)


def _fit(budget):
  return sage_optax.fit(_PARAMS, budget, stacked='layers/')


class FitTest(parameterized.TestCase):
  @parameterized.parameters(8_000, 90_000, 200_000, 400_000, 10**7)
  def test_budget_is_kept_and_told_exactly(self, budget):
    found = _fit(budget)
    size = sage_optax.memory.state_bytes(found.optimizer(1e-3), _PARAMS)
    self.assertEqual(found.state_bytes, size)
    self.assertLessEqual(size, budget)
    # Of all combinations that fit, the best; among equals, the smallest.
    roles = {c.role: [] for c in found.choices}
    for choice in found.choices:
      roles[choice.role].append((choice.place, choice.state_bytes))
    combinations = np.sum(list(itertools.product(*roles.values())), axis=1)
    best = min(tuple(c) for c in combinations if c[1] <= budget)
    place = sum(c.place for c in found.choices if c.chosen)
    self.assertEqual((place, size), best)

  def test_more_memory_is_never_worse(self):
    places = [
      sum(c.place for c in _fit(budget).choices if c.chosen)
      for budget in np.geomspace(8_000, 10**6, 12).astype(int)
    ]
    self.assertEqual(places, sorted(places, reverse=True))
    self.assertEqual(places[-1], 0)

  def test_costs_fall_along_each_order(self):
    for role in ('embedding', 'head', 'matrix'):
      costs = [c.state_bytes for c in _fit(10**7).choices if c.role == role]
      self.assertGreater(len(costs), 3)
      self.assertEqual(costs, sorted(costs, reverse=True))

  def test_optimizer_moves_every_parameter(self):
    tx = _fit(90_000).optimizer(1e-2, weight_decay=0.1)
    grads = jax.tree.map(
      lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), _PARAMS
    )
    updates, _ = tx.update(grads, tx.init(_PARAMS), _PARAMS)
    for update in jax.tree.leaves(updates):
      self.assertBetween(np.abs(update).mean(), 1e-4, 0.1)

  def test_table(self):
    found = _fit(90_000)
    lines = str(found).splitlines()
    self.assertLen(lines, len(found.choices) + 1)
    self.assertLen([line for line in lines if line.startswith('*')], 4)

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, 'No choice .* the smallest needs'):
      _fit(100)
    with self.assertRaisesRegex(ValueError, 'fit does not take b1: use'):
      sage_optax.fit(_PARAMS, 10**7, b1=0.9)
    with self.assertRaisesRegex(ValueError, "number of bytes, got '1GB'"):
      _fit('1GB')
    with self.assertRaisesRegex(ValueError, 'weight_decay must be a number'):
      _fit(10**7).optimizer(1e-3, weight_decay='0.1')
    with self.assertRaisesRegex(ValueError, 'It is not clear'):
      sage_optax.fit({'mixer': jnp.ones((8, 512, 64))}, 10**7)
