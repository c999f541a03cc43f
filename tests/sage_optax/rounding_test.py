"""Stochastic rounding: right on average, and small steps add up."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax
from sage_optax import rounding

_KEY = jax.random.key(3)


def _wide(x):
  with np.errstate(invalid='ignore'):  # NaN of another payload
    return np.asarray(x).astype(np.float64)


def _neighbors(x):
  """The bfloat16 values at or next to float32 `x`: towards 0, and away."""
  bits = np.float32(x).view(np.uint32) & np.uint32(0xFFFF0000)
  return tuple(
    np.float64(np.uint32(b).view(np.float32)) for b in (bits, bits + 0x10000)
  )


class StochasticRoundTest(parameterized.TestCase):
  @parameterized.parameters(
    1.001, -1.001, 1.9999, 0.3, -7e-5, 3.14159e30, 65504.3,
    # Subnormals of both types, the smallest float32 of all.
    1.1e-38, 1e-40, -9e-41, 1e-45,
  )  # fmt: skip
  def test_unbiased(self, value):
    count = 2**17
    x = jnp.full(count, value, jnp.float32)
    rounded = _wide(rounding.stochastic_round(x, _KEY))
    low, high = _neighbors(value)
    self.assertContainsSubset(np.unique(rounded), {low, high})
    up = (np.float64(np.float32(value)) - low) / (high - low)
    # The binomial's standard deviation, five times.
    bound = 5 * (count * up * (1 - up)) ** 0.5
    self.assertLessEqual(abs((rounded == high).sum() - count * up), bound + 1)

  def test_what_bfloat16_has_stays(self):
    # All of them: zeros of both signs, subnormals, infinities.
    every = np.arange(2**16, dtype=np.uint16)
    values = jax.lax.bitcast_convert_type(jnp.asarray(every), jnp.bfloat16)
    for seed in range(3):
      rounded = rounding.stochastic_round(
        values.astype(jnp.float32), jax.random.key(seed)
      )
      nan = np.isnan(_wide(values))
      np.testing.assert_array_equal(np.isnan(_wide(rounded)), nan)
      bits = jax.lax.bitcast_convert_type(rounded, jnp.uint16)
      np.testing.assert_array_equal(np.asarray(bits)[~nan], every[~nan])

  def test_nan_that_only_float32_has(self):
    # Their payload is in the bits that are cut off.
    bits = jnp.asarray([0x7F800001, 0xFF80FFFF, 0x7FFFFFFF], jnp.uint32)
    x = jax.lax.bitcast_convert_type(bits, jnp.float32)
    for seed in range(3):
      rounded = rounding.stochastic_round(x, jax.random.key(seed))
      self.assertTrue(np.isnan(_wide(rounded)).all())

  def test_wider_types(self):
    with jax.enable_x64(True):
      x = jnp.linspace(-3, 3, 1000, dtype=jnp.float64)
      np.testing.assert_array_equal(
        rounding.stochastic_round(x, _KEY),
        rounding.stochastic_round(x.astype(jnp.float32), _KEY),
      )

  @parameterized.parameters((jax.P('a', 'b'),), (jax.P(None, ('a', 'b')),))
  def test_the_mesh_changes_no_bit(self, spec):
    x = jnp.linspace(1, 2, 8 * 16).reshape(8, 16)
    expected = rounding.stochastic_round(x, _KEY)
    self.assertGreater(np.mean(_wide(expected) != _wide(x)), 0.9)
    for axis_type in (
      jax.sharding.AxisType.Auto,
      jax.sharding.AxisType.Explicit,
    ):
      mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(axis_type,) * 2)
      sharding = jax.sharding.NamedSharding(mesh, spec)
      with jax.set_mesh(mesh):
        sharded = jax.device_put(x, sharding)
        for function in (
          rounding.stochastic_round,
          jax.jit(rounding.stochastic_round),
        ):
          rounded = function(sharded, _KEY)
          np.testing.assert_array_equal(rounded, expected)
          self.assertTrue(rounded.sharding.is_equivalent_to(sharding, 2))


class _State(NamedTuple):
  count: jax.Array
  a: dict
  b: dict


def _constant_slots():
  """A state of two slots that are 1.001 in every step."""

  def slots(params):
    return jax.tree.map(lambda p: jnp.full_like(p, 1.001), params)

  def init_fn(params):
    return _State(jnp.zeros([], jnp.int32), slots(params), slots(params))

  def update_fn(updates, state, params=None):
    del params
    return updates, _State(state.count + 1, slots(updates), slots(updates))

  return optax.GradientTransformation(init_fn, update_fn)


def _last_state(tx, grads, params):
  """The state after steps on gradients that have time as the first axis."""

  def step(state, grad):
    return tx.update(grad, state, params)[1], None

  return jax.jit(lambda s, g: jax.lax.scan(step, s, g)[0])(
    tx.init(params), grads
  )


class StateTest(parameterized.TestCase):
  def test_noise_differs_by_leaf_slot_and_step(self):
    tx = rounding.low_precision_state(_constant_slots(), 'bfloat16')
    params = {'x': jnp.ones(256), 'y': {'x': jnp.ones(256)}}

    def drawn():
      state = tx.init(params)
      for _ in range(2):
        _, state = tx.update(params, state)
        yield from jax.tree.leaves(state)[1:]

    arrays = [tuple(_wide(x)) for x in drawn()]
    self.assertLen(set(arrays), 2 * 2 * 2)
    self.assertEqual(arrays, [tuple(_wide(x)) for x in drawn()])

  @parameterized.parameters(
    (functools.partial(optax.scale_by_lion, mu_dtype=jnp.bfloat16), True),
    (functools.partial(sage_optax.scale_by_lion, mu_dtype='bfloat16'), False),
  )
  def test_moving_average_does_not_stall(self, make, stalls):
    # It nears 1 by 1 % of the rest per step: rounded to nearest, until that is
    # less than half a unit (2**-9), where 0.2 are left.
    grads = jnp.ones((1500, 4096))
    mu = _wide(_last_state(make(), grads, grads[0]).mu)
    if stalls:
      np.testing.assert_array_less(mu, 0.85)
    else:
      np.testing.assert_allclose(mu.mean(), 1.0, rtol=2e-3)

  @parameterized.named_parameters(
    ('adamw', sage_optax.scale_by_adam, ('mu', 'nu')),
    ('lion', sage_optax.scale_by_lion, ('mu',)),
    ('sage', sage_optax.scale_by_sage, ('mu', 'abs_mean')),
  )
  def test_statistics_follow_float32(self, make, slots):
    # The gradients shrink tenfold half-way, and all have their own size.
    rng = np.random.default_rng(0)
    level = np.where(np.arange(1000) < 500, 1.0, 0.1)[:, None, None]
    grads = level * (rng.normal(size=(1000, 64, 64)) + rng.uniform(1, 3, 64))
    grads = jnp.asarray(grads, jnp.float32)
    wide = _last_state(make(), grads, grads[0])
    narrow = _last_state(make(state_dtype='bfloat16'), grads, grads[0])
    for slot in slots:
      ours, ref = _wide(getattr(narrow, slot)), _wide(getattr(wide, slot))
      # Each by the random walk of its roundings, the mean not at all.
      np.testing.assert_allclose(ours.mean(), ref.mean(), rtol=3e-3)
      apart = np.linalg.norm(ours - ref) / np.linalg.norm(ref)
      self.assertLess(apart, 0.1)

  @parameterized.parameters(sage_optax.scale_by_sage, sage_optax.scale_by_lion)
  def test_mu_dtype_changes_mu_alone(self, make):
    params = jnp.ones((4, 3))
    state = make(mu_dtype=jnp.bfloat16).init(params)
    _, state = make(mu_dtype=jnp.bfloat16).update(params, state)
    plain = make().init(params)
    self.assertEqual(state.mu.dtype, jnp.bfloat16)
    others = [
      (leaf.dtype, default.dtype)
      for name, leaf, default in zip(state._fields, state, plain, strict=True)
      if name != 'mu'
    ]
    self.assertTrue(all(ours == default for ours, default in others), others)

  @parameterized.parameters('float16', 'int4', jnp.float64)
  def test_other_types(self, dtype):
    for kwargs in ({'state_dtype': dtype}, {'mu_dtype': dtype}):
      with self.assertRaisesRegex(
        ValueError, "one of 'float32', 'bfloat16', 'int8', got '(float|int)"
      ):
        sage_optax.scale_by_sage(**kwargs)

  def test_in_any_recipe_and_its_bytes(self):
    params = {'proj': {'kernel': jnp.ones((8, 4))}}
    narrow = sage_optax.adamw(1e-3, state_dtype='bfloat16')
    sizes = [
      sage_optax.memory.state_bytes(tx, params)
      for tx in (narrow, sage_optax.adamw(1e-3))
    ]
    # Four roles, each with two counters of 4 bytes at most.
    self.assertEqual(sizes[1] - sizes[0], 2 * 2 * 32)


def _apply(tx, params, grads, steps=1):
  state = tx.init(params)
  for _ in range(steps):
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


def _train(tx, params, loss, steps):
  """Parameters after training, in one scan."""

  def step(carry, index):
    params, state = carry
    grads = jax.grad(loss)(params, index)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(params):
    carry = params, tx.init(params)
    return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

  return run(params)


def _mlp():
  """Parameters in bfloat16, and the loss of batch `index` against a teacher."""

  def forward(params, x):
    hidden = jnp.tanh(x @ params['up'].astype(jnp.float32))
    return hidden @ params['down'].astype(jnp.float32)

  def draw(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
      'up': jax.random.normal(keys[0], (8, 32), jnp.bfloat16),
      'down': jax.random.normal(keys[1], (32, 4), jnp.bfloat16) / 4,
    }

  teacher = draw(1)

  def loss(params, index):
    x = jax.random.normal(jax.random.fold_in(_KEY, index), (64, 8))
    error = forward(params, x) - forward(teacher, x)
    return jnp.mean(jnp.square(error))

  return draw(0), loss


class StochasticRoundUpdatesTest(parameterized.TestCase):
  def test_training_follows_float32(self):
    params, loss = _mlp()
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, 3000))
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    ends = {
      'float32': _train(tx, wide, loss, 3000),
      'ours': _train(
        sage_optax.stochastic_round_updates(tx), params, loss, 3000
      ),
      'plain': _train(tx, params, loss, 3000),
    }
    self.assertEqual(ends['ours']['up'].dtype, jnp.bfloat16)
    final = {k: float(loss(p, 10_000)) for k, p in ends.items()}
    start = float(loss(params, 10_000))
    self.assertLess(final['float32'], 0.15 * start)
    self.assertLess(final['ours'], 1.1 * final['float32'], final)
    self.assertGreater(final['plain'], 2 * final['float32'], final)

  def test_decay_follows_float32(self):
    # A step is 1e-4 of the weight, a unit of bfloat16 4e-3 to 8e-3 of it.
    params = jnp.linspace(1, 2, 4096, dtype=jnp.bfloat16)
    tx = optax.adamw(1e-3, weight_decay=0.1)

    def loss(params, index):
      del index
      return 0.0 * params.astype(jnp.float32).sum()

    plain = _train(tx, params, loss, 3000)
    np.testing.assert_array_equal(plain, params)
    wide = _train(tx, params.astype(jnp.float32), loss, 3000)
    ours = _train(sage_optax.stochastic_round_updates(tx), params, loss, 3000)
    left = np.exp(-0.3)
    np.testing.assert_allclose(wide / _wide(params), left, rtol=1e-3)
    np.testing.assert_allclose(
      _wide(ours).mean() / _wide(params).mean(), left, rtol=2e-3
    )
    # Each on its own: a random walk, whose variance is at most the way times
    # a unit.
    self.assertLess(np.std(_wide(ours) / wide), (0.3 * 2.0**-7) ** 0.5)

  def test_lands_on_what_was_rounded(self):
    # From any value to any other, but where a weight falls below 2**-16 of
    # itself in one step: float32 has no difference that leads there.
    rng = np.random.default_rng(0)
    exponents = rng.integers(-60, 60, size=(2, 2**16))
    old, aim = np.ldexp(rng.normal(size=exponents.shape), exponents)
    params = jnp.asarray(old, jnp.bfloat16)
    wide = params.astype(jnp.float32)
    aim = jnp.asarray(aim, jnp.float32)
    tx = sage_optax.stochastic_round_updates(optax.identity())
    updates, _ = tx.update(aim - wide, tx.init(params), params)
    self.assertEqual(updates.dtype, jnp.float32)
    landed = optax.apply_updates(params, updates)
    self.assertEqual(landed.dtype, jnp.bfloat16)
    key = jax.random.fold_in(jax.random.key(0, impl='threefry2x32'), 1)
    rounded = rounding.stochastic_round(
      wide + (aim - wide), rounding.leaf_key(key, 0)
    )
    old, new, landed = _wide(params), _wide(rounded), _wide(landed)
    far = np.abs(new) < 2.0**-16 * np.abs(old)
    self.assertBetween(far.mean(), 0.1, 0.5)
    np.testing.assert_array_equal(landed[~far], new[~far])
    self.assertLessEqual((np.abs(landed - new) / np.abs(old)).max(), 2.0**-24)

  def test_special_values(self):
    params = jnp.asarray([1.0, -0.0, 3e38, 1.0, 2.0], jnp.bfloat16)
    grads = jnp.asarray([-1.0, 0.0, 3e38, np.nan, 0.0], jnp.float32)
    tx = sage_optax.stochastic_round_updates(optax.identity())
    got = _wide(_apply(tx, params, grads))
    np.testing.assert_array_equal(got, [0.0, 0.0, np.inf, np.nan, 2.0])

  def test_no_step_no_change(self):
    params = jax.random.normal(_KEY, (1000,), jnp.bfloat16)
    tx = sage_optax.stochastic_round_updates(optax.sgd(0.0))
    np.testing.assert_array_equal(_apply(tx, params, params, 5), params)

  def test_seed_step_and_leaf_have_their_own_noise(self):
    ones = jnp.ones(256, jnp.bfloat16)
    params = {'x': ones, 'y': ones}
    steps = []
    for seed in (0, 1, 0):
      tx = sage_optax.stochastic_round_updates(optax.sgd(1e-3), seed)
      state = tx.init(params)
      for _ in range(2):
        updates, state = tx.update(params, state, params)
        steps += [tuple(_wide(u)) for u in updates.values()]
    self.assertLen(set(steps), 8)
    self.assertEqual(steps[:4], steps[8:])

  def test_other_leaves_are_left_to_the_optimizer(self):
    rng = np.random.default_rng(0)
    params = {
      'bf16': jnp.asarray(rng.normal(size=8), jnp.bfloat16),
      'f32': jnp.asarray(rng.normal(size=8), jnp.float32),
      'f16': jnp.asarray(rng.normal(size=8), jnp.float16),
      'none': None,
      'number': 1.5,
    }
    inner = optax.adamw(1e-3, weight_decay=0.1)
    tx = sage_optax.stochastic_round_updates(inner)
    updates, _ = tx.update(params, tx.init(params), params)
    plain, _ = inner.update(params, inner.init(params), params)
    for name in ('f32', 'f16', 'number'):
      self.assertEqual(
        jnp.result_type(updates[name]), jnp.result_type(plain[name])
      )
      np.testing.assert_array_equal(updates[name], plain[name])
    self.assertIsNone(updates['none'])
    self.assertEqual(jax.tree.structure(params), jax.tree.structure(updates))

  def test_masked_and_partitioned(self):
    ones = jnp.ones(256, jnp.bfloat16)
    params = {'x': ones, 'y': ones, 'z': None}
    mask = {'x': True, 'y': False, 'z': False}
    labels = {'x': 'a', 'y': 'b', 'z': 'b'}
    sgd = optax.sgd(1e-3)
    expected = _apply(sage_optax.stochastic_round_updates(sgd), params, params)
    frozen = optax.set_to_zero()
    for tx in (
      sage_optax.stochastic_round_updates(
        optax.partition({'a': sgd, 'b': frozen}, labels)
      ),
      optax.partition(
        {'a': sage_optax.stochastic_round_updates(sgd), 'b': frozen}, labels
      ),
      optax.chain(
        optax.masked(frozen, {k: not v for k, v in mask.items()}),
        optax.masked(sage_optax.stochastic_round_updates(sgd), mask),
      ),
    ):
      got = _apply(tx, params, params)
      np.testing.assert_array_equal(got['x'], expected['x'])
      np.testing.assert_array_equal(got['y'], ones)
      self.assertIsNone(got['z'])

  def test_same_bits_in_every_loop(self):
    params, loss = _mlp()
    tx = sage_optax.stochastic_round_updates(
      sage_optax.lion(1e-4, roles=lambda p: jax.tree.map(lambda _: 'matrix', p))
    )
    expected = _train(tx, params, loss, 4)

    def step(params, state, index):
      updates, state = tx.update(jax.grad(loss)(params, index), state, params)
      return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    got = jax.tree.map(jnp.copy, params)
    state = jax.jit(tx.init)(got)
    for index in range(4):
      got, state = donating(got, state, index)
    jax.tree.map(np.testing.assert_array_equal, got, expected)

  def test_other_wrappers(self):
    ones = jnp.ones(256, jnp.bfloat16)
    wrap = sage_optax.stochastic_round_updates
    expected = _apply(wrap(optax.sgd(1e-3)), ones, ones, 2)
    for tx, steps in (
      (wrap(optax.inject_hyperparams(optax.sgd)(1e-3)), 2),
      (
        optax.inject_hyperparams(
          lambda lr: wrap(optax.sgd(lr)), hyperparam_dtype=jnp.float32
        )(1e-3),
        2,
      ),
      (optax.MultiSteps(wrap(optax.sgd(1e-3)), 2), 4),
      (wrap(optax.apply_if_finite(optax.sgd(1e-3), 3)), 2),
    ):
      np.testing.assert_array_equal(_apply(tx, ones, ones, steps), expected)

  def test_the_mesh_changes_no_bit(self):
    params = jnp.ones((8, 16), jnp.bfloat16)
    tx = sage_optax.stochastic_round_updates(
      optax.adamw(1e-3, weight_decay=0.1)
    )
    expected = _apply(tx, params, params, 2)
    for axis_type in (
      jax.sharding.AxisType.Auto,
      jax.sharding.AxisType.Explicit,
    ):
      mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(axis_type,) * 2)
      spec = jax.P('a', 'b')
      sharding = jax.sharding.NamedSharding(mesh, spec)
      with jax.set_mesh(mesh):
        sharded = jax.device_put(params, sharding)
        specs = sage_optax.sharding.state_specs(tx, sharded, spec)
        self.assertEqual(specs.inner_state[0].mu, spec)
        got = _apply(tx, sharded, sharded, 2)
        self.assertTrue(got.sharding.is_equivalent_to(sharding, 2))
        np.testing.assert_array_equal(got, expected)

  def test_needs_params(self):
    params = jnp.ones(3, jnp.bfloat16)
    tx = sage_optax.stochastic_round_updates(optax.sgd(0.1))
    with self.assertRaisesRegex(ValueError, r'needs update\(\.\.\., params\)'):
      tx.update(params, tx.init(params))

  def test_extra_arguments(self):
    params = jnp.ones(3, jnp.bfloat16)
    tx = sage_optax.stochastic_round_updates(optax.polyak_sgd())
    updates, _ = tx.update(params, tx.init(params), params, value=1.5)
    np.testing.assert_array_equal(updates, -0.5)
