"""Muon and SWAN: what becomes of the singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax
from sage_optax.core import orthogonal
from tests.support import oracles, replays, stepping

_SHAPES = ((8, 24), (24, 8), (12, 12), (3, 8, 24))


def _normal(shape, seed=0, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _singular(x):
  return np.linalg.svd(np.asarray(x), compute_uv=False)


def _run(tx, grads):
  """Updates of all steps, the gradients being a list."""
  state, updates = tx.init(grads[0]), []
  for grad in grads:
    update, state = tx.update(grad, state)
    updates.append(update)
  return np.asarray(updates)


class NewtonSchulzTest(parameterized.TestCase):
  @parameterized.product(shape=_SHAPES, scale=[1e-3, 1.0, 1e4])
  def test_singular_values_end_near_1(self, shape, scale):
    x = scale * _normal(shape)
    relative = _singular(x) / np.linalg.norm(x, axis=(-2, -1))[..., None]
    self.assertGreater(relative.min(), 0.002)  # what the bounds ask for
    ours = _singular(orthogonal.newton_schulz(x, 5))
    self.assertGreater(ours.min(), 0.68)
    self.assertLess(ours.max(), 1.21)

  @parameterized.parameters(
    ('dion', 'frobenius', 0.85, 1.15),
    ('polar_express', 'frobenius', 0.87, 1.13),
    ('standard', 'schatten', 0.68, 1.21),
    ('polar_express', 'schatten8', 0.87, 1.13),
  )
  def test_presets_keep_their_bounds(self, coeffs, norm, low, high):
    # Singular values from 0.01 to 1 of the largest.
    u, _, vh = np.linalg.svd(_normal((24, 40)), full_matrices=False)
    x = jnp.asarray(u @ np.diag(np.geomspace(0.01, 1, 24)) @ vh)
    ours = _singular(
      orthogonal.newton_schulz(x, 5, ns_coeffs=coeffs, preconditioning=norm)
    )
    self.assertGreater(ours.min(), low)
    self.assertLess(ours.max(), high)

  @parameterized.parameters(('dion', 'frobenius'), ('standard', 'schatten'))
  def test_presets_are_those_of_optax(self, coeffs, norm):
    grads = _normal((8, 24))
    kwargs = {'ns_coeffs': coeffs, 'preconditioning': norm, 'nesterov': False}
    theirs = optax.contrib.muon(1.0, **kwargs)
    expected, _ = theirs.update(grads, theirs.init(grads), grads)
    ours = sage_optax.scale_by_muon(**kwargs)
    found, _ = ours.update(grads, ours.init(grads))
    np.testing.assert_allclose(found, -expected, atol=2e-5)

  @parameterized.parameters('muon', 'muon_eq')
  def test_bfloat16_on_accelerators_only(self, recipe):
    params = {'proj': {'kernel': _normal((8, 16))}}
    tx = sage_optax.recipe(recipe, 0.1)
    traced = jax.jit(tx.update).trace(params, tx.init(params), params)

    def products(platform):
      text = traced.lower(lowering_platforms=(platform,)).as_text()
      # The coefficients of the 5 steps are not rounded.
      self.assertIn('tensor<5x3xf32>', text)
      self.assertNotIn('tensor<5x3xbf16>', text)
      return [line for line in text.splitlines() if 'dot_general' in line]

    for platform, has, lacks in (
      ('tpu', 'bf16', 'f32>'),
      ('cuda', 'bf16', 'f32>'),
      ('cpu', 'f32>', 'bf16'),
    ):
      self.assertNotEmpty(products(platform))
      for line in products(platform):
        self.assertIn(has, line, platform)
        self.assertNotIn(lacks, line, platform)

  def test_one_step_each_is_the_polynomial(self):
    x = jnp.diag(jnp.array([0.6, 0.8]))
    expected = [3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5 for s in (0.6, 0.8)]
    np.testing.assert_allclose(
      jnp.diag(orthogonal.newton_schulz(x, 1)), expected, rtol=1e-5
    )


class WhitenTest(parameterized.TestCase):
  @parameterized.product(shape=_SHAPES[:2] + _SHAPES[3:], scale=[1e-30, 1e4])
  def test_singular_values_end_at_1(self, shape, scale):
    ours = _singular(orthogonal.whiten(scale * _normal(shape), 10))
    np.testing.assert_allclose(ours, 1.0, rtol=1e-4)

  def test_is_the_polar_factor(self):
    x = _normal((8, 24))
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(orthogonal.whiten(x, 12), u @ vh, atol=1e-5)

  def test_either_gram_matrix_gives_the_same(self):
    # Before it has converged, too.
    x = _normal((8, 24))
    np.testing.assert_allclose(
      orthogonal.whiten(x, 3), orthogonal.whiten(x.T, 3).T, atol=1e-6
    )
    text = str(jax.make_jaxpr(lambda x: orthogonal.whiten(x, 3))(x.T))
    self.assertIn('f32[8,8]', text)
    self.assertNotIn('f32[24,24]', text)

  def test_full_precision_on_accelerators(self):
    traced = jax.jit(lambda x: orthogonal.whiten(x, 3)).trace(_normal((8, 24)))
    text = traced.lower(lowering_platforms=('tpu',)).as_text()
    products = [line for line in text.splitlines() if 'dot_general' in line]
    self.assertNotEmpty(products)
    for line in products:
      self.assertIn('precision = [HIGHEST, HIGHEST]', line)

  def test_an_empty_direction_stays_empty(self):
    x = _normal((16, 16))
    x = x - x.mean(0, keepdims=True)
    for ns_steps in (10, 20):
      ours = orthogonal.whiten(x, ns_steps)
      np.testing.assert_allclose(ours.mean(0), 0.0, atol=1e-3)
      self.assertLess(_singular(ours).max(), 1.001)


class SwanTest(parameterized.TestCase):
  @parameterized.parameters(*_SHAPES)
  def test_the_mean_of_a_unit_never_trains(self, *shape):
    with jax.enable_x64(True):
      grads = _normal(shape, dtype=jnp.float64) + 5.0
      ours = _run(sage_optax.scale_by_swan(), [grads])
      loose = _run(sage_optax.scale_by_swan(center=False), [grads])
    np.testing.assert_allclose(ours.mean(axis=-2), 0.0, atol=1e-12)
    self.assertGreater(np.abs(loose.mean(axis=-2)).max(), 0.1)

  @parameterized.parameters(*_SHAPES)
  def test_entries_have_rms_1(self, *shape):
    ours = _run(sage_optax.scale_by_swan(), [100.0 * _normal(shape)])[0]
    rms = np.sqrt(np.mean(np.square(ours), axis=(-2, -1)))
    np.testing.assert_allclose(rms, 1.0, rtol=1e-4)

  def test_gradients_below_the_floor_stay_small(self):
    # 1e-6 / sqrt(1e-12 + 1e-8): a hundredth.
    ours = _run(sage_optax.scale_by_swan(), [1e-6 * _normal((32, 8))])[0]
    np.testing.assert_allclose(np.sqrt(np.mean(ours**2)), 1e-2, rtol=0.1)

  def test_without_rescaling_singular_values_are_1(self):
    tx = sage_optax.scale_by_swan(rescale=False, ns_steps=12)
    ours = _run(tx, [_normal((24, 8))])[0]
    np.testing.assert_allclose(_singular(ours), 1.0, rtol=1e-4)

  @parameterized.parameters('default', 'nopost', 'ns10_wd')
  def test_recorded_runs_divide_by_the_trace_and_nothing_else_is_new(self, run):
    recording = replays.Recording(f'swan/ethansmith_{run}_std')
    hyper = recording.hyper
    first, grads = recording.tree('param0'), recording.tree('grads')
    recorded = recording.tree('params')
    for leaf in recording.leaves:
      # The embedding is one more [out, in] matrix there.
      flip = (lambda x: x.T) if leaf == 'embed' else (lambda x: x)
      updates = oracles.swan(
        [flip(grad).astype(np.float64) for grad in grads[leaf]],
        ns_steps=hyper['ns_steps'],
        rescale=hyper['post_norm'],
        size_of=np.sum,
      )
      param = first[leaf].astype(np.float64)
      for update, expected in zip(updates, recorded[leaf], strict=True):
        decay = hyper['lr'] * hyper['weight_decay'] * param
        param = param - decay - hyper['lr'] * flip(update)
        np.testing.assert_allclose(param, expected, atol=1e-12)

  def test_wrong_arguments(self):
    with self.assertRaisesRegex(ValueError, 'ns_steps must be at least 1'):
      sage_optax.scale_by_swan(ns_steps=0)
    with self.assertRaisesRegex(ValueError, 'core_ndim must be one of None, 2'):
      sage_optax.scale_by_swan(core_ndim=1)


class MuonTest(parameterized.TestCase):
  @parameterized.product(
    shape=[(8, 24), (24, 8), (12, 12)], consistent_rms=[None, 0.2]
  )
  def test_is_optax_without_nesterov(self, shape, consistent_rms):
    grads = [100.0 * _normal(shape, seed, jnp.float32) for seed in range(4)]
    kwargs = {'nesterov': False, 'consistent_rms': consistent_rms}
    theirs = optax.contrib.muon(1.0, **kwargs)
    ours = _run(sage_optax.scale_by_muon(**kwargs), grads)
    state = theirs.init(grads[0])
    for grad, update in zip(grads, ours, strict=True):
      expected, state = theirs.update(grad, state, grad)
      np.testing.assert_allclose(update, -expected, atol=2e-5)

  def test_optax_corrects_the_bias_of_nesterov_terms(self):
    grads = [_normal((8, 24), seed) for seed in range(2)]
    theirs = _run(optax.contrib.scale_by_muon(), grads)
    ours = _run(sage_optax.scale_by_muon(consistent_rms=24**-0.5), grads)
    # The first is the gradient's direction in both.
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-5)
    self.assertGreater(np.abs(ours[1] - theirs[1]).max(), 1e-2)

  def test_optax_gives_stacked_kernels_to_adam(self):
    stacked = {'layers': {'proj': {'kernel': _normal((3, 8, 24))}}}
    single = {
      str(i): {'proj': {'kernel': _normal((3, 8, 24))[i]}} for i in range(3)
    }

    def update(tx, tree):
      return tx.update(tree, tx.init(tree), tree)[0]

    theirs = update(optax.contrib.muon(0.1), stacked)['layers']['proj']
    adam = update(optax.adamw(0.1, weight_decay=0.0, nesterov=True), stacked)
    np.testing.assert_allclose(
      theirs['kernel'], adam['layers']['proj']['kernel'], rtol=1e-5
    )
    # So a stack trains otherwise than its layers there, and not here.
    muon = sage_optax.muon(0.1, stacked='layers/')
    ours = update(muon, stacked)['layers']['proj']['kernel']
    layers = update(sage_optax.muon(0.1), single)
    theirs_single = update(optax.contrib.muon(0.1), single)
    for i in range(3):
      expected = layers[str(i)]['proj']['kernel']
      np.testing.assert_allclose(ours[i], expected, atol=1e-6)
      apart = theirs['kernel'][i] - theirs_single[str(i)]['proj']['kernel']
      self.assertGreater(np.abs(apart).max(), 0.01)

  @parameterized.parameters((8, 24), (24, 8), (3, 12, 12))
  def test_size_of_the_update(self, *shape):
    rms = sage_optax.scale_by_muon(consistent_rms=0.2)
    ours = _run(rms, [_normal(shape)])
    # A mean of the squared singular values, which are 0.68 to 1.21.
    entries = np.sqrt(np.mean(np.square(ours), axis=(-2, -1)))
    self.assertBetween(entries.min() / 0.2, 0.68, 1.21)
    self.assertBetween(entries.max() / 0.2, 0.68, 1.21)
    fan_in, fan_out = shape[-2:]
    ratio = _run(sage_optax.scale_by_muon(), [_normal(shape)]) / ours
    expected = max(1, fan_out / fan_in) ** 0.5
    expected /= 0.2 * max(fan_in, fan_out) ** 0.5
    np.testing.assert_allclose(ratio, expected, rtol=1e-5)

  @parameterized.parameters(('fan_out', (1, 24)), ('fan_in', (8, 1)))
  def test_equilibration_hides_the_size_of_units(self, sides, units):
    grads = _normal((8, 24))
    loud = grads * 10.0 ** np.random.default_rng(1).uniform(-2, 2, units)
    tx = sage_optax.scale_by_muon(equilibrate=sides)
    np.testing.assert_allclose(_run(tx, [grads]), _run(tx, [loud]), atol=1e-4)
    plain = sage_optax.scale_by_muon()
    apart = _run(plain, [grads]) - _run(plain, [loud])
    self.assertGreater(np.abs(apart).max(), 0.1)

  def test_equilibration_lets_quiet_units_through(self):
    # One loud unit leaves too little for an iteration of 5 steps.
    grads = _normal((24, 8)) * jnp.array([[1e4] + [1.0] * 7])
    plain = _singular(_run(sage_optax.scale_by_muon(), [grads])[0])
    both = _singular(
      _run(sage_optax.scale_by_muon(equilibrate='fan_out'), [grads])[0]
    )
    self.assertLess(plain.min(), 0.2)
    self.assertGreater(both.min(), 0.68)

  def test_injected(self):
    grads = [_normal((8, 24), seed) for seed in range(3)]
    inject = optax.inject_hyperparams
    tx = inject(sage_optax.scale_by_muon, static_args='ns_steps')(
      momentum=0.8, consistent_rms=0.3
    )
    expected = sage_optax.scale_by_muon(0.8, consistent_rms=0.3)
    np.testing.assert_allclose(
      _run(tx, grads), _run(expected, grads), atol=1e-5
    )
    with self.assertRaisesRegex(ValueError, "static_args=.'ns_steps', ...."):
      jax.jit(inject(sage_optax.scale_by_muon)().init)(grads[0])

  def test_wrong_arguments(self):
    with self.assertRaisesRegex(ValueError, "one of None, 'fan_out'.*'rows'"):
      sage_optax.scale_by_muon(equilibrate='rows')
    with self.assertRaisesRegex(ValueError, 'ns_steps must be at least 1'):
      sage_optax.scale_by_muon(ns_steps=0)


class LowRankTest(parameterized.TestCase):
  """`ortho_rank`: the part in the span of some units, orthogonalized."""

  def _update(self, grads, **kwargs):
    # A factor of 1: nothing but the direction.
    tx = sage_optax.scale_by_muon(momentum=None, **kwargs)
    update, _ = tx.update(grads, tx.init(grads))
    fan_in, fan_out = grads.shape[-2:]
    return np.asarray(update) / max(1, fan_out / fan_in) ** 0.5

  @parameterized.parameters(*_SHAPES)
  def test_as_the_equations(self, *shape):
    with jax.enable_x64(True):
      grads = _normal(shape, dtype=jnp.float64)
      ours = self._update(grads, ortho_rank=3, key=7)
      key = jax.random.fold_in(jax.random.key(7, impl='threefry2x32'), 0)
      key = jax.random.fold_in(key, 0)  # the first leaf
      chosen = orthogonal.draw_columns(key, shape, 3)
    units = ours.reshape(-1, *shape[-2:])
    drawn = np.asarray(chosen).reshape(len(units), 3)
    self.assertLen(set(map(tuple, drawn)), len(units))  # its own in each layer
    for x, grad, columns in zip(
      units, np.asarray(grads).reshape(units.shape), drawn, strict=True
    ):
      turned = shape[-1] <= shape[-2]
      u = grad.T if turned else grad
      basis, _ = np.linalg.qr(u[:, columns])
      expected = basis @ oracles.newton_schulz(basis.T @ u)
      np.testing.assert_allclose(x.T if turned else x, expected, atol=1e-9)

  def test_norm_is_the_root_of_the_rank(self):
    sizes = _singular(self._update(_normal((16, 40)), ortho_rank=5))
    np.testing.assert_allclose(sizes[5:], 0, atol=1e-5)
    self.assertGreater(sizes[:5].min(), 0.68)
    self.assertLess(sizes[:5].max(), 1.21)

  def test_of_enough_rank_it_is_muon(self):
    grads = _normal((16, 4)) @ _normal((4, 24), seed=1)
    whole = self._update(grads)
    np.testing.assert_allclose(
      self._update(grads, ortho_rank=6), whole, atol=2e-3
    )
    np.testing.assert_array_equal(self._update(grads, ortho_rank=16), whole)

  def test_other_units_in_each_step_and_leaf(self):
    grads = {'a': _normal((8, 24)), 'b': _normal((8, 24))}
    tx = sage_optax.scale_by_muon(ortho_rank=2, nesterov=False)
    first, state = tx.update(grads, tx.init(grads))
    second, _ = tx.update(grads, state)
    for x, y in ((first['a'], first['b']), (first['a'], second['a'])):
      self.assertGreater(np.abs(x - y).max(), 0.01)

  def test_sharded_as_on_one_device(self):
    grads = _normal((4, 16, 24))
    tx = sage_optax.scale_by_muon(ortho_rank=4)
    expected = stepping.updates(tx, grads[None])
    for axis_type in (
      jax.sharding.AxisType.Auto,
      jax.sharding.AxisType.Explicit,
    ):
      for update, _ in stepping.on_mesh(tx, grads[None], axis_type):
        np.testing.assert_allclose(update, expected[0], rtol=1e-4, atol=1e-4)
    # Whole layers on the devices, as `with_mesh` places them.
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ('a', 'b'), auto)
    spec = jax.P(None, 'a', 'b')
    on_mesh = sage_optax.sharding.with_mesh(tx, mesh, spec)
    placed = jax.device_put(grads, jax.sharding.NamedSharding(mesh, spec))
    update, _ = jax.jit(on_mesh.update)(placed, tx.init(grads))
    np.testing.assert_allclose(update, expected[0], rtol=1e-4, atol=1e-4)

  def test_wrong_arguments(self):
    for kwargs, message in (
      ({'ortho_rank': 0}, 'ortho_rank must be at least 1'),
      ({'ns_coeffs': 'new'}, "ns_coeffs must be one of 'standard'"),
      ({'preconditioning': 'aol'}, "preconditioning must be one of 'frob"),
      ({'normalize_after': 'both'}, 'normalize_after must be one of None'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        sage_optax.scale_by_muon(**kwargs)
