"""States in 8 bits: what the codes lose, and where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from flax import linen as nn

import sage_optax
from sage_optax.core import eight_bits
from tests.support import stepping


def _drawn(shape, seed=0):
  rng = np.random.default_rng(seed)
  sizes = 10.0 ** rng.uniform(-2, 2, shape[-1])
  return jnp.asarray(rng.normal(size=shape) * sizes, jnp.float32)


def _stored(x, signed, uniform=None):
  noise = None if uniform is None else lambda _: uniform
  return eight_bits.encode(x, noise, signed=signed)


def _kept(x, signed, uniform=None):
  return eight_bits.decode(_stored(x, signed, uniform), signed=signed)


class CodesTest(parameterized.TestCase):
  @parameterized.parameters(
    ((8,), None),
    ((3, 1), None),
    ((), None),
    ((16,), 16),
    ((5, 100), 50),  # a half
    ((2, 256), 32),  # an eighth
    ((2, 1024), 64),  # a sixteenth, as in the rows below
    ((768,), 48),
    ((11008,), 86),
    ((32000,), 125),
    ((4096,), 128),
    ((5461,), 127),  # 43 * 127, SAGE's hidden size
    ((50257,), 29),  # 29 * 1733, GPT-2's vocabulary
    ((131,), 131),  # a prime
    ((0, 32), None),
    ((4, 0), None),
  )
  def test_block(self, shape, size):
    self.assertEqual(eight_bits.block_size(shape), size)

  @parameterized.parameters((True, 127, 2), (False, 255, 4))
  def test_numbers_that_have_a_code_stay(self, signed, levels, power):
    # The smallest codes of second moments are not used.
    shares = (np.arange(0 if signed else 6, levels) / levels) ** power
    # In blocks of 32, each with a 1 that the others are shares of.
    rows = np.resize(shares, (levels // 31 + 1, 31))
    rows = np.append(rows, np.ones_like(rows[:, :1]), axis=1)
    x = jnp.asarray(-0.3 * rows if signed else 0.3 * rows, jnp.float32)
    np.testing.assert_allclose(_kept(x, signed), x, rtol=1e-5)

  @parameterized.parameters(True, False)
  def test_rounding_is_right_on_average(self, signed):
    x = _drawn((4, 64))
    x = x if signed else jnp.square(x)
    uniform = jax.random.uniform(jax.random.key(0), (4000, *x.shape))
    kept = jax.vmap(lambda u: _kept(x, signed, u))(uniform)
    spread = np.std(kept, axis=0) / 4000**0.5
    large = np.asarray(jnp.abs(x) > 1e-3 * jnp.abs(x).max(-1, keepdims=True))
    error = np.abs(np.mean(kept, axis=0) - x)
    self.assertLess((error / (spread + 1e-6 * np.abs(x)))[large].max(), 5)

  def test_nearest_is_within_half_a_step(self):
    x = _drawn((4, 256))
    peak = np.abs(x).reshape(4, 2, 128).max(-1).repeat(128, -1)
    step = 2 * np.sqrt(np.abs(x) / peak) / 127 + 2 / 127**2
    self.assertLess((np.abs(_kept(x, True) - x) / (peak * step)).max(), 0.51)

  def test_a_second_moment_never_becomes_zero(self):
    x = jnp.asarray(np.geomspace(1e-30, 1, 64), jnp.float32)
    kept = np.asarray(_kept(x, False, jnp.ones(64)))
    self.assertGreater(kept.min(), 0)
    zeros = jnp.zeros(64).at[3].set(1.0)
    np.testing.assert_array_equal(_kept(zeros, False), zeros)
    np.testing.assert_array_equal(_kept(0 * zeros, False), 0)


_METHODS = {
  'adamw': sage_optax.scale_by_adam,
  'muon': sage_optax.scale_by_muon,
  'spam': sage_optax.scale_by_spam,
}


class StateTest(parameterized.TestCase):
  @parameterized.parameters(*_METHODS)
  def test_updates_are_near_those_of_float32(self, name):
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(40, 16, 64)) * 10.0 ** rng.uniform(-1, 1, (16, 1))
    grads = jnp.asarray(grads, jnp.float32)
    method = _METHODS[name]
    wide = stepping.updates(method(), grads)
    narrow = stepping.updates(method(state_dtype='int8'), grads)
    apart = np.linalg.norm(wide - narrow) / np.linalg.norm(wide)
    self.assertBetween(apart, 1e-4, 0.1)

  @parameterized.parameters(0, 1e-3, 1e-4, 1e-6)
  def test_large_neighbors_do_not_enlarge_updates(self, small):
    # Of a block all but one are this small; or the sizes are from 1e-6 to 1.
    size = np.full(64, small) if small else np.geomspace(1e-6, 1, 64)
    size[0] = 1.0
    grads = stepping.grads((16, 64), 100)
    grads *= jnp.asarray(np.broadcast_to(size, grads.shape), jnp.float32)
    wide, narrow = (
      np.abs(stepping.updates(sage_optax.scale_by_adam(state_dtype=t), grads))
      for t in (None, 'int8')
    )
    self.assertLess(narrow.max(), 2 * wide.max())

  def test_bytes(self):
    params = {
      'proj': {'kernel': jnp.ones((4, 256))},
      'n': {'scale': jnp.ones(8)},
    }
    tx = sage_optax.adamw(1e-3, state_dtype='int8')
    spare = sage_optax.adamw(1e-3)
    sizes = [sage_optax.memory.state_bytes(t, params) for t in (tx, spare)]
    # Codes and 32 scales a moment; a vector of 8 stays as it is.
    self.assertEqual(sizes[1] - sizes[0], 2 * (4 * 1024 - 1024 - 4 * 32))
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    for leaf in jax.tree.leaves(state):
      self.assertTrue(np.isfinite(leaf).all())

  @parameterized.parameters(
    jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
  )
  def test_the_mesh_changes_nothing(self, axis_type):
    # That codes and scales lie where `state_specs` says is checked in there.
    grads = stepping.grads((4, 8, 512), 3)
    tx = sage_optax.scale_by_adam(state_dtype='int8')
    expected = stepping.updates(tx, grads)
    steps = list(stepping.on_mesh(tx, grads, axis_type))
    for (update, _), ref in zip(steps, expected, strict=True):
      np.testing.assert_allclose(update, ref, rtol=1e-5, atol=1e-6)
    state = steps[-1][1]
    self.assertEqual(state.mu.codes.sharding.spec, jax.P(None, 'a', 'b'))
    kept = 'b' if axis_type == jax.sharding.AxisType.Auto else None
    self.assertEqual(state.mu.scales.shape, (4, 8, 16))
    self.assertEqual(tuple(state.mu.scales.sharding.spec)[2:], (kept,))

  @parameterized.parameters(768, 11008)
  def test_shards_have_whole_blocks(self, last):
    mesh = jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,))
    tx = sage_optax.scale_by_lion(state_dtype='int8')
    param, spec = jax.ShapeDtypeStruct((4, last), jnp.float32), jax.P(None, 'x')
    specs = sage_optax.sharding.state_specs(tx, param, spec, mesh.shape)
    spread = jax.tree.map(
      lambda s: jax.sharding.NamedSharding(mesh, s), (spec, specs)
    )
    step = jax.jit(tx.update, in_shardings=spread, out_shardings=spread)
    compiled = step.lower(param, jax.eval_shape(tx.init, param)).compile()
    self.assertNotRegex(compiled.as_text(), 'all-gather|all-reduce|permute')

  def test_refused_where_nothing_is_gained(self):
    with self.assertRaisesRegex(ValueError, 'Adafactor has no state in int8'):
      sage_optax.adafactor(1e-3, state_dtype='int8')
    with self.assertRaisesRegex(ValueError, "SOAP .* use 'bfloat16' or None"):
      sage_optax.soap(1e-3, state_dtype='int8')
    # With a momentum there is something to store in 8 bits.
    tx = sage_optax.scale_by_adafactor(momentum=0.9, state_dtype='int8')
    state = jax.eval_shape(tx.init, jnp.ones((4, 64)))
    self.assertEqual(state.mu.codes.dtype, jnp.int8)

  def test_boxed(self):
    boxed = {'kernel': nn.Partitioned(jnp.ones((4, 256)), ('embed', 'mlp'))}
    tx = sage_optax.scale_by_lion(state_dtype='int8')
    state = tx.init(boxed)
    self.assertEqual(state.mu.codes['kernel'].names, ('embed', 'mlp'))
    self.assertEqual(state.mu.scales['kernel'].names, ('embed', None))
    _, state = tx.update(boxed, state)
    self.assertEqual(state.mu.codes['kernel'].value.dtype, jnp.int8)
