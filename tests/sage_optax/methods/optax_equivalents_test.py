"""Methods that have no recorded run, against Optax's and each other's code."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax
from tests.support import oracles

_STEPS = 6


def _grads(shape):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.standard_t(3, (_STEPS, *shape)), jnp.float32)


def _updates(tx, grads, params=None):
  params = grads[0] if params is None else params

  @jax.jit
  def run(grads):
    def step(state, grad):
      update, state = tx.update(grad, state, params)
      return state, update

    return jax.lax.scan(step, tx.init(params), grads)[1]

  return run(grads)


class AdafactorTest(parameterized.TestCase):
  @parameterized.product(clip=(None, 1.0), shape=((6, 4), (5,)))
  def test_equals_optax(self, clip, shape):
    grads = _grads(shape)
    theirs = [optax.scale_by_factored_rms(min_dim_size_to_factor=1)]
    if clip is not None:
      theirs.append(optax.clip_by_block_rms(clip))
    ours = sage_optax.scale_by_adafactor(clipping_threshold=clip)
    chex.assert_trees_all_close(
      _updates(ours, grads), _updates(optax.chain(*theirs), grads), rtol=1e-5
    )

  def test_layers_are_not_factored(self):
    # Optax takes the two longest axes, which are the layers and fan_in here.
    grads = _grads((9, 6, 4))
    ours = sage_optax.scale_by_adafactor()
    single = [_updates(ours, grads[:, i]) for i in range(9)]
    chex.assert_trees_all_close(
      _updates(ours, grads), jnp.stack(single, 1), rtol=1e-5
    )


class AdamMiniTest(parameterized.TestCase):
  @parameterized.parameters(-1, -2)
  def test_is_adam_where_slices_are_constant(self, axis):
    shape = [6, 4]
    shape[axis] = 1
    grads = jnp.broadcast_to(_grads(shape), (_STEPS, 6, 4))
    chex.assert_trees_all_close(
      _updates(sage_optax.scale_by_adam_mini(axis=axis), grads),
      _updates(optax.scale_by_adam(), grads),
      rtol=1e-5,
    )

  def test_coupled_adam_keeps_the_mean_embedding_of_a_softmax(self):
    # A softmax's gradients sum to zero over the vocabulary; so do the steps.
    grads = _grads((8, 3))
    grads -= grads.mean(1, keepdims=True)
    coupled = _updates(sage_optax.scale_by_adam_mini(axis=-2), grads)
    self.assertLess(np.abs(coupled.mean(1)).max(), 1e-6)
    plain = _updates(optax.scale_by_adam(), grads)
    self.assertGreater(np.abs(plain.mean(1)).max(), 1e-2)


class MultiNormTest(parameterized.TestCase):
  def test_default_is_sinkgd(self):
    grads = _grads((3, 6, 4))
    chex.assert_trees_all_close(
      _updates(sage_optax.scale_by_multi_norm(), grads),
      _updates(sage_optax.scale_by_sinkgd(), grads),
      rtol=1e-5,
    )

  def test_fan_out_then_spectral_is_swan_without_centering(self):
    grads = _grads((6, 4))
    ours = sage_optax.scale_by_multi_norm(('fan_out', 'spectral'), 1)
    chex.assert_trees_all_close(
      _updates(ours, grads),
      _updates(sage_optax.scale_by_swan(center=False), grads),
      atol=1e-4,
    )

  @parameterized.parameters('fan_in', 'spectral', 'frobenius', 'max')
  def test_each_norm_maximises_the_product(self, name):
    # Against the same equations in NumPy, and every entry has rms 1.
    with jax.enable_x64(True):
      grads = jnp.asarray(_grads((3, 7)), jnp.float64)
      ours = _updates(
        sage_optax.scale_by_multi_norm((name,), 1, ns_steps=40), grads
      )
      expected = oracles.multi_norm(list(np.asarray(grads)), (name,), 1)
      np.testing.assert_allclose(ours, np.stack(expected), rtol=1e-6)
      np.testing.assert_allclose(np.mean(np.square(ours), (1, 2)), 1, 1e-6)

  @parameterized.parameters('fan_out', (('fan_up',),), ((),))
  def test_bad_norms(self, norms):
    with self.assertRaisesRegex(
      ValueError, "norms must be a list of 'fan_out'"
    ):
      sage_optax.scale_by_multi_norm(norms)


class HyperballTest(parameterized.TestCase):
  def test_keeps_the_norm_of_each_unit(self):
    params, grads = _grads((3, 6, 4))[0], _grads((3, 6, 4))
    tx = sage_optax.hyperball(optax.scale_by_adam(), 0.1, core_ndim=2)
    state, now = tx.init(params), params
    for grad in grads:
      updates, state = tx.update(grad, state, now)
      now = optax.apply_updates(now, updates)
    before, after = (jnp.linalg.norm(x, axis=(1, 2)) for x in (params, now))
    np.testing.assert_allclose(after, before, rtol=1e-5)
    self.assertGreater(np.abs(now - params).max(), 0.1)

  def test_a_step_turns_by_the_learning_rate(self):
    params, grad = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 7.0]])
    tx = sage_optax.hyperball(optax.identity(), optax.constant_schedule(0.25))
    updates, _ = tx.update(grad, tx.init(params), params)
    x, y = (params + updates)[0]
    np.testing.assert_allclose(-y / x, 0.25, rtol=1e-6)

  def test_zeros(self):
    tx = sage_optax.hyperball(optax.identity(), 0.5)
    zero, one = jnp.zeros((2, 2)), jnp.ones((2, 2))
    # No step stays no step; no radius takes the step as it is.
    for params, grad, expected in ((one, zero, zero), (zero, one, -0.5 * one)):
      updates, _ = tx.update(grad, tx.init(params), params)
      np.testing.assert_array_equal(updates, expected)

  def test_updates_keep_the_dtype_of_gradients(self):
    grads = jnp.ones((2, 2), jnp.bfloat16)
    tx = optax.apply_if_finite(sage_optax.hyperball(optax.identity(), 0.5), 3)
    updates, _ = tx.update(grads, tx.init(grads), grads)
    self.assertEqual(updates.dtype, jnp.bfloat16)

  def test_needs_parameters(self):
    tx = sage_optax.hyperball(optax.identity(), 0.5)
    with self.assertRaisesRegex(ValueError, 'hyperball needs the parameters'):
      tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))

  def test_needs_a_learning_rate(self):
    # Optax takes None as no scaling, and would not change the sign either.
    with self.assertRaisesRegex(ValueError, 'must be a number .* got None'):
      sage_optax.hyperball(optax.identity(), None)
