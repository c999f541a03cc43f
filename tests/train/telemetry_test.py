"""Statistics of the embedding, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sage_optax
from tests.support import tiny_config
from train import config as config_lib
from train import program, telemetry

_LEARNING_RATE = 0.1


def _trees(grads, **kwargs):
  """Gradients, updates, state and roles of a table and a matrix."""
  roles = {'table': 'embedding', 'matrix': 'matrix'}
  tx = sage_optax.sage_hybrid(_LEARNING_RATE, roles=roles, **kwargs)
  state = tx.init(grads[0])
  for grad in grads:
    updates, state = tx.update(grad, state, grad)
  return grads[-1], updates, state, roles


def _grads(steps):
  rng = np.random.default_rng(0)
  scale = np.exp(rng.normal(size=(1, 8)))  # loud and quiet features
  for _ in range(steps):
    table = rng.normal(size=(40, 8)) * scale * 1e-3
    table[10:20] = 0
    yield {
      'table': jnp.asarray(table, jnp.float32),
      'matrix': jnp.asarray(rng.normal(size=(8, 6)), jnp.float32),
    }


def test_numbers_are_what_their_names_say():
  grads, updates, state, roles = _trees(list(_grads(3)))
  found = telemetry.embedding(grads, updates, state, roles)
  grad, update = np.asarray(grads['table']), np.asarray(updates['table'])
  norms = np.linalg.norm(grad, axis=1)
  features = np.abs(grad).mean(0)
  # SAGE's update is sign * H * learning rate.
  damper = np.abs(update).max(0) / _LEARNING_RATE
  expected = {
    'embedding/absent_rows': 0.25,
    'embedding/row_norm_p50': np.quantile(norms, 0.5),
    'embedding/row_norm_p99': np.quantile(norms, 0.99),
    'embedding/row_norm_max_over_mean': norms.max() / norms.mean(),
    'embedding/feature_spread': features.std() / features.mean(),
    'embedding/absent_update': np.linalg.norm(update[10:20])
    / np.linalg.norm(update),
    'embedding/h_mean': damper.mean(),
    'embedding/h_std': damper.std(),
    'update_rms/embedding': np.sqrt(np.mean(update**2)),
    'update_rms/matrix': np.sqrt(np.mean(np.asarray(updates['matrix']) ** 2)),
  }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
  assert damper.std() > 0


def test_a_zero_gradient_gives_finite_numbers():
  zero = jax.tree.map(jnp.zeros_like, next(_grads(1)))
  found = telemetry.embedding(*_trees([zero]))
  assert all(np.isfinite(value) for value in found.values())
  assert found['embedding/absent_rows'] == 1


def test_without_sage_there_is_no_damper():
  grads = next(_grads(1))
  roles = {'table': 'embedding', 'matrix': 'matrix'}
  tx = optax.sgd(0.1)
  updates, state = tx.update(grads, tx.init(grads))
  found = telemetry.embedding(grads, updates, state, roles)
  assert not any('/h_' in name for name in found)


@pytest.mark.parametrize('tied', [True, False])
def test_the_step_records_it_if_the_configuration_asks_for_it(tied):
  config = tiny_config.get_config()
  config.model.tie_embeddings = tied
  names = {}
  for on in (False, True):
    config.log.embedding = on
    config_lib.validate(config)
    config_lib.complete(config)
    compiled = program.build(config, jax.devices()[:1])
    batch = jax.ShapeDtypeStruct((8, 33), jnp.int32)
    _, metrics = jax.eval_shape(compiled.train_step, compiled.abstract, batch)
    names[on] = set(metrics)
  extra = names[True] - names[False]
  assert names[False] < names[True]
  roles = {'embedding', 'matrix', 'vector'} | (set() if tied else {'head'})
  assert {name for name in extra if name.startswith('update_rms')} == {
    f'update_rms/{role}' for role in roles
  }
  assert 'embedding/h_mean' in extra
