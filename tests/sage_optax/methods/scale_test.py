"""SCALE: what the division does to each slice, and where momentum goes."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import sage_optax


def _grads(shape, seed=0):
  """Heavy-tailed, with slices of very different size."""
  rng = np.random.default_rng(seed)
  grads = rng.standard_t(3, shape) * 10.0 ** rng.integers(-3, 3, shape[-1])
  return jnp.asarray(grads, jnp.float32)


def _first(grads, **kwargs):
  tx = sage_optax.scale_by_column_norm(**kwargs)
  return np.asarray(tx.update(grads, tx.init(grads))[0])


class ColumnNormTest(parameterized.TestCase):
  @parameterized.product(shape=[(8, 4), (3, 5, 7)], unit_norm=[False, True])
  def test_slices_over_the_first_axis_have_size_1(self, shape, unit_norm):
    ours = _first(_grads(shape), unit_norm=unit_norm)
    sizes = np.linalg.norm(ours, axis=-2)
    expected = 1.0 if unit_norm else shape[-2] ** 0.5
    np.testing.assert_allclose(sizes, expected, rtol=1e-5)

  @parameterized.parameters(((6,), None), ((3, 6), 1))
  def test_vectors_have_rms_1(self, shape, core_ndim):
    ours = _first(_grads(shape), core_ndim=core_ndim)
    rms = np.sqrt(np.mean(np.square(ours), axis=-1))
    np.testing.assert_allclose(rms, 1.0, rtol=1e-5)

  def test_direction_is_kept(self):
    grads = _grads((8, 4))
    ratio = _first(grads) / np.asarray(grads)
    np.testing.assert_allclose(ratio, ratio[:1] + np.zeros((8, 1)), rtol=1e-5)
    self.assertGreater(ratio.min(), 0.0)

  def test_eps_is_a_floor(self):
    grads = jnp.array([[1e-3, 0.5, 0.0], [-1e-3, -0.5, 0.0]])
    # A slice below it keeps its proportion; one above does not see it.
    np.testing.assert_allclose(
      _first(grads, eps=0.1),
      [[0.01, 1.0, 0.0], [-0.01, -1.0, 0.0]],
      rtol=1e-6,
    )

  def test_momentum_is_invisible_at_first_and_remembers_later(self):
    grads = _grads((8, 4))
    tx = sage_optax.scale_by_column_norm(momentum=0.9)
    state = tx.init(grads)
    first, state = tx.update(grads, state)
    np.testing.assert_allclose(first, _first(grads), rtol=1e-5)
    # 0.09 - 0.1 / 2 > 0: the old direction wins.
    second, _ = tx.update(-0.5 * grads, state)
    np.testing.assert_allclose(second, _first(grads), rtol=1e-4)

  def test_recipe_gives_momentum_to_the_head_alone(self):
    params = {
      'embed': {'embedding': jnp.ones((16, 8))},
      'proj': {'kernel': jnp.ones((8, 6))},
      'lm_head': {'kernel': jnp.ones((8, 16))},
    }
    state = sage_optax.scale(1e-3).init(params)
    kept = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    self.assertEqual(kept, [(8, 16)])
    # Tied embeddings leave no head.
    del params['lm_head']
    state = sage_optax.scale(1e-3).init(params)
    self.assertFalse([leaf for leaf in jax.tree.leaves(state) if leaf.ndim])

  def test_symmetric_head_ignores_a_shift_of_all_logits(self):
    grads = _grads((8, 16))
    center = {'momentum': 0.95, 'unit_norm': True, 'center': True}
    shift = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    np.testing.assert_allclose(
      _first(grads + shift, **center), _first(grads, **center), atol=1e-4
    )
    np.testing.assert_allclose(_first(grads, **center).mean(1), 0, atol=1e-6)

  def test_row_norm_commutes_with_rotations_of_the_features(self):
    grads = _grads((16, 8))
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    row = {'momentum': 0.95, 'unit_norm': True, 'axis': -1}
    np.testing.assert_allclose(
      _first(grads @ rotation.astype(np.float32), **row),
      _first(grads, **row) @ rotation,
      atol=1e-5,
    )

  def test_wrong_arguments(self):
    with self.assertRaisesRegex(ValueError, 'nesterov=True needs a momentum'):
      sage_optax.scale_by_column_norm(nesterov=True)
    with self.assertRaisesRegex(ValueError, 'core_ndim must be one of None, 1'):
      sage_optax.scale_by_column_norm(core_ndim=3)
    tx = sage_optax.scale_by_column_norm(core_ndim=2)
    with self.assertRaisesRegex(ValueError, "role 'vector'"):
      tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
