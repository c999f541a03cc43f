"""What SGD-SaI promises beyond its equations."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import sage_optax


def _steps(tx, grads):
  """Updates and states after each of the gradients."""
  state, updates, states = tx.init(grads[0]), [], []
  for grad in grads:
    update, state = jax.jit(tx.update)(grad, state)
    updates.append(update)
    states.append(state)
  return updates, states


def _normal(steps, shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(steps, *shape)), jnp.float32)


class SgdSaiTest(parameterized.TestCase):
  def test_a_first_gradient_that_is_not_finite_is_forgotten(self):
    grads = _normal(3, (4, 3)).at[0, 0, 0].set(jnp.nan)
    tx = sage_optax.scale_by_sgd_sai()
    updates, _ = _steps(tx, grads)
    expected, _ = _steps(tx, grads[1:])
    np.testing.assert_allclose(updates[2], expected[1], rtol=1e-6)

  def test_ratio_is_taken_once_per_unit(self):
    # The second layer's first gradients are zero.
    grads = _normal(6, (2, 4, 3)) * 10.0 ** jnp.arange(6).reshape(6, 1, 1, 1)
    grads = grads.at[:2, 1].set(0.0)
    tx = sage_optax.scale_by_sgd_sai(core_ndim=2)
    updates, states = _steps(tx, grads)
    self.assertEqual(states[0].gsnr.shape, (2, 1, 1))
    for unit, first in ((0, 0), (1, 2)):
      grad = np.asarray(grads[first, unit], np.float64)
      expected = np.linalg.norm(grad) / np.std(grad, ddof=1)
      for t, state in enumerate(states):
        np.testing.assert_allclose(
          state.gsnr[unit, 0, 0], expected if t >= first else 0.0, rtol=1e-5
        )
      # The momentum starts as that gradient.
      np.testing.assert_array_equal(states[first].mu[unit], grads[first, unit])
      np.testing.assert_allclose(
        states[first + 1].mu[unit],
        0.9 * grads[first, unit] + 0.1 * grads[first + 1, unit],
        rtol=1e-5,
      )
    np.testing.assert_array_equal(updates[1][1], 0.0)
    self.assertGreater(jnp.abs(updates[2][1]).min(), 0.0)

  def test_first_step_does_not_know_the_scale_of_its_ratio(self):
    grads = _normal(1, (5, 4))
    for factor in (1e-3, 1e3):
      _, states = _steps(sage_optax.scale_by_sgd_sai(eps=0.0), grads * factor)
      _, expected = _steps(sage_optax.scale_by_sgd_sai(eps=0.0), grads)
      np.testing.assert_allclose(states[0].gsnr, expected[0].gsnr, rtol=1e-5)

  @parameterized.parameters((1,), (3, 1, 1), ())
  def test_units_of_one_element(self, *shape):
    # Their deviation would be 0 / 0.
    grads = jnp.full((3, *shape), 2.0)
    tx = sage_optax.scale_by_sgd_sai(core_ndim=None if shape else 1)
    updates, states = _steps(tx, jnp.concatenate([0 * grads[:1], grads]))
    np.testing.assert_array_equal(states[0].gsnr, 0.0)
    np.testing.assert_array_equal(states[1].gsnr, 1.0)
    np.testing.assert_allclose(updates[1], 2.0)

  def test_normalize_by_max(self):
    # Over all units: layers of a stack and leaves of any shape.
    grads = {
      'stack': _normal(1, (3, 4, 5))[0],
      'table': _normal(1, (20, 4), 1)[0] + 1.0,
      'unused': jnp.zeros((2, 3)),
    }
    plain = sage_optax.scale_by_sgd_sai()
    tx = sage_optax.scale_by_sgd_sai(normalize_by_max=True)
    expected, state = plain.update(grads, plain.init(grads))
    ours, _ = jax.jit(tx.update)(grads, tx.init(grads))
    largest = max(float(jnp.max(x)) for x in state.gsnr.values())
    self.assertEqual(largest, float(state.gsnr['table'].squeeze()))
    for name, update in ours.items():
      np.testing.assert_allclose(update, expected[name] / largest, rtol=1e-5)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    ours, _ = tx.update(zeros, tx.init(zeros))
    for update in ours.values():
      np.testing.assert_array_equal(update, 0.0)

  def test_wrong_arguments(self):
    with self.assertRaisesRegex(ValueError, 'core_ndim must be one of None, 1'):
      sage_optax.scale_by_sgd_sai(core_ndim=0)
