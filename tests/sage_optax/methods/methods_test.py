"""Every method against its oracle, and what all of them promise."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import sage_optax
from tests.support import cases, stepping

_ROWS = tuple((case.name, case) for case in cases.CASES)
# Unit -> shape and core_ndim: a stacked wide matrix, a tall one, vectors.
_UNITS = {
  'tall': ((6, 4), 2),
  'twice_stacked': ((2, 3, 4, 5), 2),
  'vector': ((5,), 1),
  'stacked_vector': ((3, 5), 1),
}


def _units(case):
  """The units that the method takes."""
  return {
    unit: shape
    for unit, (shape, core_ndim) in _UNITS.items()
    if core_ndim == 2 or case.vector_state
  }


def _grads(shape, steps=4, seed=0):
  """Heavy-tailed gradients; units differ by orders of magnitude."""
  rng = np.random.default_rng(seed)
  grads = rng.standard_t(3, size=(steps, *shape))
  scale = 10.0 ** rng.integers(-2, 2, size=shape[:-1])[..., None]
  return grads * scale


def _scan(tx, grads):
  """Updates of all steps; gradients have time as the first axis."""

  def step(state, grad):
    update, state = tx.update(grad, state)
    return state, update

  state = tx.init(jax.tree.map(lambda g: g[0], grads))
  return jax.lax.scan(step, state, grads)[1]


def _run(tx, grads):
  return jax.jit(functools.partial(_scan, tx))(grads)


@functools.cache
def _runner(case):
  """Runs the method on all its units in one program."""
  transformations = {unit: case.make(_UNITS[unit][1]) for unit in _units(case)}
  return jax.jit(
    lambda grads: {
      unit: _scan(tx, grads[unit]) for unit, tx in transformations.items()
    }
  )


def _program(tx, shape=(3, 6, 4)):
  """What two steps compute, as text."""
  grads = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  return str(jax.make_jaxpr(functools.partial(_scan, tx))(grads))


def _steps(case):
  """As many for all tests of a method: one shape is one program."""
  return max(case.steps, 7)


class OracleTest(parameterized.TestCase):
  @parameterized.named_parameters(*_ROWS)
  def test_agrees_unit_by_unit(self, case):
    # Units one after the other, each alone, make the oracle of the stack too.
    grads = {
      unit: _grads(shape, _steps(case)) for unit, shape in _units(case).items()
    }
    with jax.enable_x64(True):
      ours = _runner(case)(grads)
    for unit, found in ours.items():
      core = _UNITS[unit][0][-_UNITS[unit][1] :]
      units = grads[unit].reshape(_steps(case), -1, *core)
      expected = [
        np.stack(case.oracle(list(units[:, i]))) for i in range(units.shape[1])
      ]
      expected = np.stack(expected, axis=1).reshape(grads[unit].shape)
      np.testing.assert_allclose(
        found, expected, rtol=1e-9, atol=1e-12, err_msg=unit
      )

  @parameterized.named_parameters(
    *(row for row in _ROWS if row[1].method in ('sage', 'sinkgd'))
  )
  def test_default_unit_is_the_last_two_axes(self, case):
    self.assertEqual(_program(case.make(None)), _program(case.make(2)))


class PromisesTest(parameterized.TestCase):
  @parameterized.named_parameters(*_ROWS)
  def test_state_has_the_documented_size(self, case):
    m, n = 6, 4
    matrix = jax.ShapeDtypeStruct((m, n), jnp.bfloat16)
    vector = jax.ShapeDtypeStruct((n,), jnp.float32)
    rows = [(2, matrix, case.matrix_state(m, n))]
    if case.vector_state:
      rows.append((1, vector, case.vector_state(n)))
    for core_ndim, leaf, elements in rows:
      state = jax.eval_shape(case.make(core_ndim).init, leaf)
      arrays = [
        leaf
        for leaf in jax.tree.leaves(state)
        if leaf.ndim and leaf.dtype != jnp.uint32  # a random key
      ]
      self.assertEqual(sum(a.size for a in arrays), elements)
      for array in arrays:
        # Axis by axis the parameter's size, 1 or the rank: one rule shards it.
        self.assertEqual(array.ndim, leaf.ndim)
        for size, param_size in zip(array.shape, leaf.shape, strict=True):
          other = leaf.shape if case.square else ()
          self.assertIn(size, (1, case.rank, param_size, *other))

  @parameterized.named_parameters(*_ROWS)
  def test_state_made_eagerly_can_be_donated(self, case):
    # Not if two of its arrays are one.
    state = case.make(2).init(jnp.ones((6, 4)))
    given = jax.jit(lambda state: state, donate_argnums=0)(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(given, state)

  def test_key_is_copied_into_the_state(self):
    key, params = jax.random.PRNGKey(0), jnp.ones((6, 4))
    tx = sage_optax.spam(1e-3, key=key, default_role='auto')
    state = tx.init({'matrix': params, 'vector': params[0]})
    jax.block_until_ready(jax.jit(lambda s: s, donate_argnums=0)(state))
    self.assertFalse(key.is_deleted())

  @parameterized.named_parameters(*_ROWS)
  def test_updates_keep_the_dtype_and_statistics_are_float32(self, case):
    tx = case.make(None)
    grads = jnp.asarray(_grads((6, 4))[0], jnp.bfloat16)
    state = tx.init(grads)
    updates, new_state = tx.update(grads, state, grads)
    self.assertEqual(updates.dtype, jnp.bfloat16)
    self.assertEqual(
      jax.tree.map(lambda x: (x.shape, x.dtype), new_state),
      jax.tree.map(lambda x: (x.shape, x.dtype), state),
    )
    for leaf in jax.tree.leaves(state):
      self.assertIn(leaf.dtype, (jnp.float32, jnp.int32, jnp.uint32))
    wide, _ = tx.update(grads.astype(jnp.float32), tx.init(grads), None)
    np.testing.assert_array_equal(updates, wide.astype(jnp.bfloat16))

  @parameterized.named_parameters(*_ROWS)
  def test_zero_and_tiny_gradients_are_survived(self, case):
    grads = {}
    for unit, shape in _units(case).items():
      grads[unit] = _grads(shape, _steps(case)).astype(np.float32)
      grads[unit][:3] = 0.0
      grads[unit][3, ..., 0] = 0.0
    for unit, ours in _runner(case)(grads).items():
      self.assertTrue(np.isfinite(ours).all(), unit)
      np.testing.assert_array_equal(ours[:3], 0.0, unit)
      # Moving again, each element of it.
      self.assertGreater(np.abs(ours[4:7]).min(), 0.0, unit)
    tiny = {
      unit: (1e-25 * _grads(shape, _steps(case))).astype(np.float32)
      for unit, shape in _units(case).items()
    }
    for unit, ours in _runner(case)(tiny).items():
      self.assertTrue(np.isfinite(ours).all(), unit)

  @parameterized.named_parameters(*_ROWS)
  def test_large_gradients_beside_zeros_are_survived(self, case):
    for scale in (1e5, 1e9, 1e15):
      grads = {}
      for unit, shape in _units(case).items():
        grads[unit] = (scale * _grads(shape, _steps(case))).astype(np.float32)
        grads[unit][..., 2] = 0.0
        if len(shape) > 1:
          grads[unit][..., 1, :] = 0.0
      for unit, ours in _runner(case)(grads).items():
        self.assertTrue(np.isfinite(ours).all(), (unit, scale))

  @parameterized.named_parameters(*_ROWS)
  def test_state_keeps_its_types_when_gradients_are_wider(self, case):
    with jax.enable_x64(True):
      grads = jnp.asarray(_grads((6, 4)))
      tx = case.make(None)
      state = tx.init(grads[0].astype(jnp.float32))

      def step(state, grad):
        return tx.update(grad, state)[::-1]

      # A scan refuses a carry that changes its type.
      jax.eval_shape(lambda *args: jax.lax.scan(step, *args), state, grads)

  @parameterized.product(
    case=cases.CASES, leaf=[jnp.ones((0, 4)), jnp.ones((4, 0)), 2.5]
  )
  def test_empty_arrays_and_python_numbers(self, case, leaf):
    tx = case.make(None)
    if not case.vector_state and not jnp.ndim(leaf):
      with self.assertRaisesRegex(ValueError, 'matrices .*role'):
        tx.init(leaf)
      return
    updates, state = tx.update(leaf, tx.init(leaf), leaf)
    self.assertEqual(jnp.shape(updates), jnp.shape(leaf))
    for array in jax.tree.leaves((updates, state)):
      self.assertTrue(np.isfinite(array).all())


class StateDtypeTest(parameterized.TestCase):
  _KEEP = tuple(row for row in _ROWS if row[1].has_state_dtype)

  @parameterized.named_parameters(*_KEEP)
  def test_every_slot_has_it(self, case):
    grads = jnp.asarray(_grads((3, 6, 4), 3), jnp.float32)
    for dtype in ('bfloat16', jnp.float32):
      tx = case.make(2, state_dtype=dtype)
      state = tx.init(grads[0].astype(jnp.bfloat16))
      self.assertEqual(
        jax.tree.map(jnp.shape, state),
        jax.tree.map(jnp.shape, case.make(2).init(grads[0])),
      )
      _, new_state = jax.eval_shape(tx.update, grads[0], state)
      for leaf in jax.tree.leaves((state, new_state)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
          self.assertEqual(leaf.dtype, dtype)

  @parameterized.named_parameters(*_KEEP)
  def test_float32_is_the_default_and_bfloat16_is_near(self, case):
    grads = jnp.asarray(_grads((16, 12), case.steps), jnp.float32)
    default, wide, narrow = jax.jit(
      lambda grads: [
        _scan(case.make(2, **kwargs), grads)
        for kwargs in (
          {},
          {'state_dtype': 'float32'},
          {'state_dtype': 'bfloat16'},
        )
      ]
    )(grads)
    np.testing.assert_array_equal(wide, default)
    if case.method in ('lion', 'sage'):
      # A sign whose argument is nearly zero may turn.
      self.assertLess(np.mean(np.abs(wide - narrow) > 0.05), 0.01)
      return
    apart = np.linalg.norm(wide - narrow) / np.linalg.norm(wide)
    # SOAP's bases are rounded to nearest.
    self.assertLess(apart, 0.06 if case.square else 0.05)


class SageTest(parameterized.TestCase):
  @parameterized.parameters(((8, 4), 2), ((4,), 1), ((3, 4), 1))
  def test_equal_features_give_lion(self, shape, core_ndim):
    # Features that are equally loud are not damped: H = 1.
    grads = np.sign(_grads(shape, steps=10)).astype(np.float32)
    ours = _run(
      sage_optax.scale_by_sage(eps=0.0, core_ndim=core_ndim), jnp.asarray(grads)
    )
    lion = _run(sage_optax.scale_by_lion(), jnp.asarray(grads))
    np.testing.assert_array_equal(np.sign(ours), lion)
    np.testing.assert_allclose(np.abs(ours), np.abs(lion), rtol=1e-6)

  def test_a_loud_feature_is_damped_at_once(self):
    grads = np.ones((50, 8, 4), np.float32)
    grads[-1, :, 0] = 100.0
    ours = _run(sage_optax.scale_by_sage(), jnp.asarray(grads))
    np.testing.assert_allclose(ours[:-1], 1.0, rtol=1e-5)
    rms = np.sqrt((100.0**2 + 3) / 4)
    np.testing.assert_allclose(ours[-1, :, 0], rms / 100, rtol=1e-5)
    np.testing.assert_allclose(ours[-1, :, 1:], 1.0, rtol=1e-5)

  def test_sign_reads_the_old_momentum(self):
    # At step 2, 0.9 * 0.1 - 0.1 * x > 0 for x < 0.9 with the old momentum; the
    # new one would give 0.9 * (0.099 - 0.01 x) - 0.1 * x > 0 for x < 0.817.
    first, second = 10.0, -0.85
    grads = jnp.asarray([[[first]], [[second]]])
    ours = _run(sage_optax.scale_by_sage(eps=1e-12), grads)
    np.testing.assert_allclose(ours.ravel(), 1.0, rtol=1e-5)

  def test_eps_closes_the_damper(self):
    grads = jnp.full((2, 8, 4), 1e-8)
    ours = _run(sage_optax.scale_by_sage(eps=1e-8), grads)
    np.testing.assert_allclose(ours, 0.5, rtol=1e-5)

  def test_injected(self):
    inject = optax.inject_hyperparams
    tx = inject(sage_optax.scale_by_sage, static_args='axis')(axis=-1)
    grads = jnp.asarray(_grads((8, 4)), jnp.float32)
    np.testing.assert_allclose(
      _run(tx, grads), _run(sage_optax.scale_by_sage(axis=-1), grads), rtol=1e-6
    )
    with self.assertRaisesRegex(ValueError, "static_args=.'axis', ...."):
      jax.jit(inject(sage_optax.scale_by_sage)(axis=-1).init)(grads[0])

  def test_wrong_arguments(self):
    with self.assertRaisesRegex(
      ValueError, 'axis must be one of -2, -1, got 0'
    ):
      sage_optax.scale_by_sage(axis=0)
    with self.assertRaisesRegex(ValueError, 'axis must be a Python integer'):
      sage_optax.scale_by_sage(axis=0.5)
    with self.assertRaisesRegex(ValueError, 'core_ndim must be one of None, 1'):
      sage_optax.scale_by_sage(core_ndim=3)
    with self.assertRaisesRegex(
      ValueError, 'state_dtype or mu_dtype, not both'
    ):
      sage_optax.scale_by_sage(state_dtype='float32', mu_dtype='bfloat16')
    tx = sage_optax.scale_by_sage(core_ndim=2)
    with self.assertRaisesRegex(ValueError, "role 'vector'"):
      tx.init(jnp.zeros(3))


class LionTest(parameterized.TestCase):
  @parameterized.parameters((0.9, 0.99), (0.95, 0.98))
  def test_equals_optax_bit_for_bit(self, b1, b2):
    grads = jnp.asarray(_grads((3, 16, 16), steps=50), jnp.float32)
    ours, theirs = sage_optax.scale_by_lion(b1, b2), optax.scale_by_lion(b1, b2)
    np.testing.assert_array_equal(_run(ours, grads), _run(theirs, grads))
    state, expected = ours.init(grads[0]), theirs.init(grads[0])
    for grad in grads:
      _, state = jax.jit(ours.update)(grad, state)
      _, expected = jax.jit(theirs.update)(grad, expected)
    np.testing.assert_array_equal(state.mu, expected.mu)


class SinkgdTest(parameterized.TestCase):
  @parameterized.product(shape=[(8, 4), (3, 5, 7)], unit_norm=[False, True])
  def test_norms_are_fixed(self, shape, unit_norm):
    grads = jnp.asarray(_grads(shape)[0], jnp.float32)
    tx = sage_optax.scale_by_sinkgd(num_iters=50, unit_norm=unit_norm)
    ours, _ = tx.update(grads, tx.init(grads))
    fan_in, fan_out = shape[-2:]
    # The last normalization is exact; after 50 iterations the other is too.
    over_out = 1.0 if unit_norm else fan_out**0.5
    np.testing.assert_allclose(
      np.linalg.norm(ours, axis=-1), over_out, rtol=1e-5
    )
    over_in = (fan_in / fan_out) ** 0.5 if unit_norm else fan_in**0.5
    np.testing.assert_allclose(
      np.linalg.norm(ours, axis=-2), over_in, rtol=1e-4
    )

  def test_wrong_arguments(self):
    for zero in (0, np.int64(0)):
      with self.assertRaisesRegex(ValueError, 'num_iters must be at least 1'):
        sage_optax.scale_by_sinkgd(num_iters=zero)
    with self.assertRaisesRegex(ValueError, 'num_iters must be a Python int'):
      sage_optax.scale_by_sinkgd(num_iters=2.5)
    with self.assertRaisesRegex(ValueError, 'core_ndim must be one of None, 1'):
      sage_optax.scale_by_sinkgd(core_ndim=0)

  def test_zero_slices_stay_zero(self):
    grads = _grads((8, 4))[0]
    grads[:, 1] = grads[3] = 0.0
    tx = sage_optax.scale_by_sinkgd(num_iters=20)
    ours, _ = tx.update(jnp.asarray(grads, jnp.float32), tx.init(None))
    self.assertTrue(np.isfinite(ours).all())
    np.testing.assert_array_equal(np.asarray(ours) == 0, grads == 0)


_CONTRACTING = (
  *('sage_dense', 'sinkgd', 'scale_momentum', 'swan', 'muon_eq'),
  *('stable_spam', 'adafactor'),
)
_ELEMENTWISE = ('adamw', 'lion', 'spam', 'sgd_sai', 'adam_mini')


class ShardedTest(parameterized.TestCase):
  # Sums over sharded axes are what can go wrong; a case of each method.
  @parameterized.named_parameters(
    (f'{axis_type.name}_{len(shape)}d_{case.name}', case, axis_type, shape)
    for case in cases.CASES
    for axis_type in (AxisType.Auto, AxisType.Explicit)
    for shape in ((8, 4), (4, 8, 4))
  )
  @pytest.mark.nightly_except(
    *(f'Auto_3d_{name}' for name in _CONTRACTING),
    *(f'Explicit_3d_{name}' for name in (*_CONTRACTING, *_ELEMENTWISE)),
  )
  def test_mesh_changes_nothing(self, case, axis_type, shape):
    # In float64: Newton-Schulz amplifies the rounding of sums in other orders.
    with jax.enable_x64(True):
      self._compare(case, axis_type, shape)

  @parameterized.named_parameters(*(r for r in _ROWS if r[1].vector_state))
  def test_state_of_sharded_vectors(self, case):
    mesh = jax.make_mesh((4,), ('fsdp',), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
      vector = jax.device_put(jnp.ones(8), jax.NamedSharding(mesh, P('fsdp')))
      state = jax.eval_shape(case.make(1).init, vector)
    for leaf in jax.tree.leaves(state):
      self.assertIn(leaf.shape, ((), (1,), (2,), (8,)))

  @parameterized.named_parameters(*_ROWS)
  def test_state_of_explicitly_sharded_shapes(self, case):
    # Planned before there is a mesh context.
    mesh = jax.sharding.AbstractMesh((4,), ('x',), (AxisType.Explicit,))
    sharded = jax.ShapeDtypeStruct(
      (8, 4), jnp.float32, sharding=jax.NamedSharding(mesh, P('x'))
    )
    state = jax.eval_shape(case.make(2).init, sharded)
    plain = jax.eval_shape(case.make(2).init, jnp.ones((8, 4)))
    self.assertEqual(
      jax.tree.map(jnp.shape, state), jax.tree.map(jnp.shape, plain)
    )

  def test_layers_of_each_device_in_shard_map(self):
    # Traced only: what a loop or a condition returns must vary over devices as
    # its arguments do.
    mesh = jax.make_mesh((2,), ('stage',), (AxisType.Auto,))
    made = {case.name: case.make(2) for case in cases.CASES}
    for projector in ('gaussian', 'subspace'):
      made[projector] = sage_optax.scale_by_galore(2, projector=projector)
    stages = P(None, 'stage')
    grads = jnp.asarray(_grads((4, 6, 4)))
    for name, tx in made.items():
      local = functools.partial(_scan, tx)
      run = jax.shard_map(local, mesh=mesh, in_specs=stages, out_specs=stages)
      with self.subTest(name):
        self.assertEqual(jax.eval_shape(run, grads).shape, grads.shape)

  def _compare(self, case, axis_type, shape):
    grads = jnp.asarray(_grads(shape))
    tx = case.make(2)
    steps = stepping.on_mesh(tx, grads, axis_type)
    for (ours, _), ref in zip(steps, _run(tx, grads), strict=True):
      np.testing.assert_allclose(ours, ref, rtol=1e-6, atol=1e-6)
