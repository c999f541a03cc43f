"""What SPAM and Stable-SPAM promise beyond their equations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax
from tests.support import replays


def _steps(tx, grads):
  """Updates and states after each of the gradients."""
  state, updates, states = tx.init(grads[0]), [], []
  step = jax.jit(tx.update)
  for grad in grads:
    update, state = step(grad, state)
    updates.append(update)
    states.append(state)
  return updates, states


def _normal(steps, shape=(6, 4), seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(g, jnp.float32) for g in rng.normal(size=(steps, *shape))]


class StableSpamTest(parameterized.TestCase):
  def test_reset_forgets_the_moments_and_nothing_else(self):
    grads = _normal(12)
    tx = sage_optax.scale_by_stable_spam(reset_interval=5)
    updates, states = _steps(tx, grads)
    self.assertEqual([int(s.count) for s in states], list(range(1, 13)))
    self.assertEqual(
      [int(s.adam_count) for s in states],
      [1, 2, 3, 4, *(1, 2, 3, 4, 5), 1, 2, 3],
    )
    # Adam's first step is the gradient's sign; only zero moments and a count
    # of one give it.
    for t in (1, 5, 10):
      np.testing.assert_allclose(
        updates[t - 1], np.sign(grads[t - 1]), rtol=1e-4
      )
    self.assertGreater(np.abs(updates[10] - np.sign(grads[10])).max(), 0.1)
    never = sage_optax.scale_by_stable_spam(reset_interval=None)
    for ours, other in zip(states, _steps(never, grads)[1], strict=True):
      for slot in ('max_mean', 'norm_mean', 'norm_square'):
        np.testing.assert_array_equal(getattr(ours, slot), getattr(other, slot))

  def test_entries_are_clipped_to_the_mean_maximum(self):
    grads = [jnp.array([0.5, -1.0]), jnp.array([0.5, -100.0])]
    # With gamma1 = gamma2 = 0 what is left has norm 1.
    tx = sage_optax.scale_by_stable_spam(gamma1=0.0, gamma2=0.0, gamma3=0.5)
    _, states = _steps(tx, grads)
    limit = (0.25 * 1 + 0.5 * 100) / (1 - 0.25)
    seen = (states[1].mu - 0.9 * states[0].mu) / 0.1
    expected = np.array([0.5, -limit]) / np.hypot(0.5, limit)
    np.testing.assert_allclose(seen, expected, rtol=1e-5)

  def test_a_huge_spike_is_forgotten(self):
    calm = _normal(1)[0]
    tx = sage_optax.scale_by_stable_spam(
      gamma2=0.5, gamma3=0.5, reset_interval=50
    )

    def step(state, i):
      updates, state = tx.update(jnp.where(i == 10, 1e21 * calm, calm), state)
      return state, jnp.abs(updates).max()

    _, sizes = jax.lax.scan(step, tx.init(calm), jnp.arange(300))
    np.testing.assert_allclose(sizes[-1], 1.0, rtol=0.1)

  def test_norms_follow_their_history(self):
    # Norm 5 for 30 steps, then one of 500, whose entries are all clipped.
    grad = jnp.array([[3.0, -4.0]])
    tx = sage_optax.scale_by_stable_spam(gamma1=0.8, gamma2=0.9, gamma3=0.95)
    _, states = _steps(tx, [grad] * 30 + [100 * grad])

    def average(calm, last, gamma):
      weight = (1 - gamma) / (1 - gamma**31)  # of the last
      return (1 - weight) * calm + weight * last

    norm = average(4, 400, 0.95) / 4 * 5
    length = average(5, norm, 0.8) / np.sqrt(average(25, norm**2, 0.9))
    self.assertGreater(length, 0.3)
    self.assertLess(length, 0.9)
    seen = (states[-1].mu - 0.9 * states[-2].mu) / 0.1
    np.testing.assert_allclose(seen, grad / 5 * length, rtol=1e-5)

  @parameterized.parameters(0.5, 0.0)
  def test_total_steps_scale_the_first_decay(self, min_scale):
    grad = jnp.ones((2, 3))
    tx = sage_optax.scale_by_stable_spam(
      total_steps=4, min_scale=min_scale, reset_interval=None
    )
    zero = jnp.zeros_like(grad)
    _, states = _steps(tx, [grad, *[zero] * 5])
    ratios = [
      float(new.mu[0, 0] / old.mu[0, 0])
      for old, new in itertools.pairwise(states)
      if float(old.mu[0, 0])
    ]
    scales = [
      min_scale + (1 - min_scale) * (1 + np.cos(np.pi * t / 5)) / 2
      for t in (2, 3)
    ]
    expected = [0.9 * s for s in (*scales, min_scale, min_scale, min_scale)]
    np.testing.assert_allclose(
      ratios, expected[: len(ratios)], rtol=1e-5, atol=1e-7
    )
    self.assertGreaterEqual(len(ratios), 3)

  def test_zero_gradients_are_not_rescaled(self):
    grads = [jnp.zeros((2, 3))] * 3 + [jnp.ones((2, 3))] * 3
    for tx in (
      sage_optax.scale_by_stable_spam(),
      sage_optax.scale_by_stable_spam(reset_interval=2, total_steps=4),
    ):
      updates, _ = _steps(tx, grads)
      np.testing.assert_array_equal(jnp.stack(updates[:3]), 0.0)
      self.assertGreater(np.min(updates[3:]), 0.1)

  def test_units_do_not_see_each_other(self):
    # A spike in one layer changes nothing in the other.
    calm = _normal(4, (2, 6, 4))
    loud = [*calm[:3], calm[3].at[0, 0, 0].set(1e4)]
    tx = sage_optax.scale_by_stable_spam(core_ndim=2)
    calm, loud = _steps(tx, calm)[0][3], _steps(tx, loud)[0][3]
    np.testing.assert_array_equal(calm[1], loud[1])
    self.assertGreater(np.abs(calm[0] - loud[0]).max(), 0.1)

  @parameterized.parameters(
    ({'reset_interval': 0}, 'reset_interval must be at least 1, got 0'),
    ({'total_steps': -1}, 'total_steps must be at least 1, got -1'),
    ({'core_ndim': 3}, 'core_ndim must be one of None, 1'),
  )
  def test_wrong_arguments(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      sage_optax.scale_by_stable_spam(**kwargs)


class SpamTest(parameterized.TestCase):
  def test_moments_are_zero_before_a_reset_is_used(self):
    grads = _normal(6)
    tx = sage_optax.scale_by_spam(reset_interval=4, grace_steps=6)
    _, states = _steps(tx, grads)
    self.assertEqual([int(s.count) for s in states], list(range(1, 7)))
    np.testing.assert_allclose(states[3].mu, 0.1 * grads[3], rtol=1e-6)
    np.testing.assert_allclose(states[3].nu, 0.001 * grads[3] ** 2, rtol=1e-4)
    np.testing.assert_allclose(
      states[4].mu, 0.09 * grads[3] + 0.1 * grads[4], rtol=1e-5, atol=1e-7
    )

  def test_warm_up_factors(self):
    grads = _normal(16)
    kwargs = {'reset_interval': 6, 'grace_steps': 6}
    warm = sage_optax.scale_by_spam(warmup_steps=3, **kwargs)
    plain = sage_optax.scale_by_spam(warmup_steps=0, **kwargs)
    pairs = zip(_steps(warm, grads)[0], _steps(plain, grads)[0], strict=True)
    factors = [float(jnp.mean(ours / other)) for ours, other in pairs]
    # From cos(0) = 1, 1 / sqrt(2), 0; then a jump to 1.
    wave = [0.01, 1 - 0.99 * (0.5 + 0.5**1.5), 0.505, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(factors, [1.0] * 5 + wave + wave[:5], rtol=1e-5)

  def test_clips_from_grace_steps_on(self):
    # Steps 1 to 3, then a spike of 1000 at step t.
    def second_moments(t):
      grads = [jnp.ones(2)] * 20
      grads[t - 1] = jnp.array([1.0, 1000.0])
      tx = sage_optax.scale_by_spam(
        threshold=50.0, reset_interval=10, grace_steps=3
      )
      return [s.nu for s in _steps(tx, grads)[1]]

    for t in (1, 2, 10, 11, 12, 20):
      self.assertGreater(second_moments(t)[t - 1][1], 900, t)
    for t in (3, 9, 13, 19):
      nu = second_moments(t)
      # The square becomes 50 times the old moment.
      expected = (0.999 + 0.001 * 50) * nu[t - 2]
      np.testing.assert_allclose(nu[t - 1][1], expected[1], rtol=1e-5)
      self.assertLess(nu[t - 1][0], 1.0)

  def test_entries_without_history_are_not_frozen(self):
    first = jnp.array([1.0, 0.0])
    tx = sage_optax.scale_by_spam(grace_steps=2)
    updates, _ = _steps(tx, [first] * 5 + [jnp.ones(2)] * 5)
    self.assertEqual(updates[4][1], 0.0)
    self.assertGreater(min(u[1] for u in updates[5:]), 0.5)

  def test_what_the_released_code_freezes_is_all_that_differs(self):
    recording = replays.Recording('spam/official_clip_nodelta_long')
    grads = recording.tree('grads')['embed']
    theirs = recording.tree('params')['embed']
    start = recording.tree('param0')['embed']
    hyper = recording.hyper
    with jax.enable_x64(True):
      tx = optax.chain(
        sage_optax.scale_by_spam(
          threshold=hyper['threshold'], grace_steps=hyper['grad_accu_steps']
        ),
        optax.scale(-hyper['lr']),
      )
      updates, _ = _steps(tx, [jnp.asarray(g) for g in grads])
      ours = start + np.sum(updates, axis=0)
    late = (grads[: hyper['grad_accu_steps'] - 1] == 0).all(axis=0)
    late &= (grads != 0).any(axis=0)
    np.testing.assert_array_equal(theirs[-1][late], start[late])
    np.testing.assert_allclose(ours[~late], theirs[-1][~late], atol=1e-12)
    self.assertGreater(np.abs(ours - start)[late].min(), 1e-3)
    self.assertGreater(late.sum(), 20)

  @parameterized.parameters(
    ({'reset_interval': 0}, 'reset_interval must be at least 1, got 0'),
    ({'density': 0.0}, 'density must be above 0 and at most 1, got 0.0'),
    ({'density': 1.5}, 'density must be above 0 and at most 1, got 1.5'),
  )
  def test_wrong_arguments(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      sage_optax.scale_by_spam(**kwargs)


class MaskTest(parameterized.TestCase):
  """SPAM with density < 1."""

  def _masks(self, tx, steps, params):
    """Which entries learn, at each step."""
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = _steps(tx, [ones] * steps)
    return [jax.tree.map(lambda u: np.asarray(u) != 0, u) for u in updates]

  def test_masks_last_from_reset_to_reset(self):
    tx = sage_optax.scale_by_spam(density=0.3, reset_interval=4)
    masks = self._masks(tx, 9, jnp.zeros((100, 50)))
    self.assertEqual(
      [(a != b).any() for a, b in itertools.pairwise(masks)],
      [False, False, True, False, False, False, True, False],
    )
    for mask in (masks[0], masks[4], masks[8]):
      # 5000 draws: a standard deviation of 0.0065.
      self.assertAlmostEqual(mask.mean(), 0.3, delta=0.03)
    # Independent ones meet in the product of the densities.
    self.assertAlmostEqual((masks[0] & masks[4]).mean(), 0.09, delta=0.02)

  def test_moments_live_on_the_mask(self):
    grads = _normal(6, (20, 10))
    tx = sage_optax.scale_by_spam(density=0.5, reset_interval=4)
    updates, states = _steps(tx, grads)
    for update, state in zip(updates, states, strict=True):
      np.testing.assert_array_equal(update != 0, state.mu != 0)
      np.testing.assert_array_equal(update != 0, state.nu != 0)
    # There the numbers are those of all entries.
    whole, _ = _steps(sage_optax.scale_by_spam(reset_interval=4), grads)
    for ours, expected in zip(updates, whole, strict=True):
      np.testing.assert_allclose(
        ours, jnp.where(ours != 0, expected, 0), rtol=1e-5
      )

  def test_leaves_layers_and_keys_differ(self):
    params = {'a': jnp.zeros((2, 30)), 'b': jnp.zeros((2, 30))}
    kwargs = {'density': 0.5}
    mask = self._masks(sage_optax.scale_by_spam(**kwargs), 1, params)[0]
    other = self._masks(sage_optax.scale_by_spam(key=1, **kwargs), 1, params)[0]
    typed = sage_optax.scale_by_spam(key=jax.random.key(0), **kwargs)
    typed = self._masks(typed, 1, params)[0]
    self.assertTrue((mask['a'] != mask['b']).any())
    self.assertTrue((mask['a'][0] != mask['a'][1]).any())
    self.assertTrue((mask['a'] != other['a']).any())
    self.assertTrue((mask['a'] != typed['a']).any())

  @parameterized.parameters(
    jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
  )
  def test_mesh_changes_nothing(self, axis_type):
    grads = _normal(5, (8, 4))
    tx = sage_optax.scale_by_spam(density=0.5, reset_interval=3)
    expected, _ = _steps(tx, grads)
    mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(axis_type,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.P('a', 'b'))
    with jax.set_mesh(mesh):
      ours, _ = _steps(tx, [jax.device_put(g, sharding) for g in grads])
    for update, other in zip(ours, expected, strict=True):
      np.testing.assert_array_equal(np.asarray(update) != 0, other != 0)
      np.testing.assert_allclose(update, other, rtol=1e-6, atol=1e-6)

  def test_density_may_be_traced(self):
    # inject_hyperparams makes arrays of all numbers, those of one too.
    grads = _normal(7)
    inject = optax.inject_hyperparams(sage_optax.scale_by_spam)
    for density in (1.0, 0.5):
      kwargs = {'density': density, 'reset_interval': 3, 'warmup_steps': 2}
      expected, states = _steps(sage_optax.scale_by_spam(**kwargs), grads)
      ours, others = _steps(inject(**kwargs), grads)
      for update, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(update, other, rtol=1e-4, atol=1e-6)
      self.assertEqual(
        jax.tree.structure(others[0].inner_state), jax.tree.structure(states[0])
      )
