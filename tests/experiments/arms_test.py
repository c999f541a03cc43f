"""The arms: what the baseline is, and what the arms have in common."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import arms

_OPTIONS = {'embedding_rate': 0.064, 'matrix_rate': 0.008, 'weight_decay': 0.1}
_AXES = {
  'embed': {'embedding': ('vocab', 'embed')},
  'dense': {'kernel': ('layers', 'embed', 'mlp')},
  'norm': {'scale': ('embed',)},
}


def _gradients(seed):
  rng = np.random.default_rng(seed)
  return {
    'embed': {'embedding': jnp.float32(rng.normal(size=(6, 4)))},
    'dense': {'kernel': jnp.float32(rng.normal(size=(1, 4, 5)))},
    'norm': {'scale': jnp.float32(rng.normal(size=4))},
  }


def _schedule(step):
  return (step + 1) / 3


def _updates(tx):
  """The updates of three steps; the norms of the gradients are above 1."""
  params = _gradients(0)
  state, found = tx.init(params), []
  for step in range(3):
    updates, state = tx.update(_gradients(step + 1), state, params)
    found.append(updates)
  return found


@pytest.mark.parametrize(
  ('name', 'vector_rate'),
  [('recipe_adamw', 0.064), ('recipe_adamw_vectors', 4e-3)],
)
def test_the_baseline_is_adamw_with_a_rate_for_each_role(name, vector_rate):
  options = {**_OPTIONS, 'beta': 0.98}
  tx = arms.optimizer(arms.ARMS[name], options, _schedule, _AXES)

  def adamw(rate, decay):
    return optax.adamw(
      lambda step: rate * _schedule(step), b2=0.98, weight_decay=decay
    )

  expected = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.partition(
      {
        'table': adamw(0.064, 0.1),
        'matrix': adamw(0.008, 0.1),
        'vector': adamw(vector_rate, 0.0),
      },
      {
        'embed': {'embedding': 'table'},
        'dense': {'kernel': 'matrix'},
        'norm': {'scale': 'vector'},
      },
    ),
  )
  chex.assert_trees_all_close(_updates(tx), _updates(expected), rtol=1e-5)


@pytest.mark.parametrize('name', ['sage', 'sinkgd', 'row_rms'])
def test_table_arms_differ_on_the_table_alone(name):
  base, found = (
    _updates(
      arms.optimizer(
        arms.ARMS[arm], {**_OPTIONS, 'beta': beta}, _schedule, _AXES
      )
    )
    for arm, beta in (('adamw', 0.98), (name, 0.9))
  )
  for a, b in zip(base, found, strict=True):
    assert not np.allclose(
      a.pop('embed')['embedding'], b.pop('embed')['embedding']
    )
    chex.assert_trees_all_equal(a, b)


@pytest.mark.parametrize('name', ['adamw', 'recipe_adamw', 'recipe_optax_muon'])
def test_decay_of_matrices_follows_their_rate_in_every_arm(name):
  options = {'embedding_rate': 0.5, 'matrix_rate': 0.1, 'weight_decay': 0.2}
  options['beta'] = 0.99
  tx = arms.optimizer(arms.ARMS[name], options, lambda _: 1.0, _AXES)
  params = jax.tree.map(jnp.ones_like, _gradients(0))
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  np.testing.assert_allclose(updates['embed']['embedding'], -0.1, rtol=1e-6)
  np.testing.assert_allclose(updates['dense']['kernel'], -0.02, rtol=1e-6)
  np.testing.assert_array_equal(updates['norm']['scale'], 0.0)
