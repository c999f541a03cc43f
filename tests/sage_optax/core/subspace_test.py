"""Projectors of APOLLO, GaLore and Fira, and when they are renewed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import sage_optax
from tests.support import replays, stepping
from tests.support.low_rank import KINDS, METHODS, drawn


def _decaying(shape, steps, decay):
  """Gradients whose singular values fall by `decay` each, and some noise."""
  rng = np.random.default_rng(1)
  u, _, vh = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
  size = decay ** np.arange(min(shape[-2:]))
  noise = rng.standard_normal((steps, *shape)) * 1e-6
  return jnp.asarray((u * size) @ vh + noise, jnp.float32)


def _rows(projector, shape):
  """As [..., rank, smaller side]."""
  return np.asarray(projector.mT if shape[-1] >= shape[-2] else projector)


class ProjectorTest(parameterized.TestCase):
  @parameterized.product(
    shape=[(24, 16), (16, 24), (3, 16, 16)], decay=[0.7, 0.3]
  )
  def test_svd_and_subspace_span_the_same(self, shape, decay):
    # With 0.3 the sixth singular value is 2e-3 of the first: its square would
    # hardly be seen in float32.
    grads = _decaying(shape, steps=9, decay=decay)
    spans = []
    for kind in ('svd', 'subspace'):
      tx = sage_optax.scale_by_galore(6, 2, projector=kind)
      p = _rows(stepping.states(tx, grads)[-1].projector, shape)
      np.testing.assert_allclose(
        p @ p.mT, np.broadcast_to(np.eye(6), (*shape[:-2], 6, 6)), atol=1e-5
      )
      spans.append(p)
    cosines = np.linalg.svd(spans[0] @ spans[1].mT, compute_uv=False)
    self.assertGreater(cosines.min(), 0.999)

  def test_directions_that_a_gradient_lacked_come_back(self):
    # A gradient of rank one leaves one direction; later ones find the rest.
    grads = np.asarray(_decaying((24, 64), steps=8, decay=0.5)).copy()
    grads[0] = np.outer(grads[0][:, 0], grads[0][0])
    tx = sage_optax.scale_by_galore(6, 1, projector='subspace')
    p = stepping.states(tx, jnp.asarray(grads))[-1].projector
    values = np.linalg.svd(np.asarray(p), compute_uv=False)
    np.testing.assert_allclose(values, 1.0, atol=1e-5)
    leading = np.linalg.svd(grads[-1])[0][:, :6]
    cosines = np.linalg.svd(leading.T @ np.asarray(p), compute_uv=False)
    self.assertGreater(cosines.min(), 0.99)

  def test_one_iteration_does_not_span_it_yet(self):
    # The subspace goes on from the last one: refreshes make it better.
    grads = _decaying((24, 64), steps=4, decay=0.9)
    leading = np.linalg.svd(np.asarray(grads[0]))[0][:, :6]
    tx = sage_optax.scale_by_galore(6, 1, projector='subspace')
    found = [
      np.linalg.norm(leading.T @ np.asarray(state.projector))
      for state in stepping.states(tx, grads)
    ]
    self.assertLess(found[0], found[-1] - 1e-3)

  @parameterized.parameters('galore', 'fira')
  def test_svd_is_that_of_the_released_code(self, method):
    recording = replays.Recording(f'{method}/official_r2_gap5')
    grads = recording.tree('grads')
    for leaf, shape in (('w6x4', (4, 6)), ('w4x12', (12, 4))):
      tx = METHODS[method](2, 5)
      states = stepping.states(tx, jnp.asarray(grads[leaf], jnp.float32))
      for t in (0, 4, 5, 11):
        ours = _rows(states[t].projector, shape)
        theirs = recording.projector(None, jnp.zeros(shape), t)
        # But for signs.
        np.testing.assert_allclose(ours.T @ ours, theirs.T @ theirs, atol=1e-5)

  @parameterized.parameters((256, 16), (4, 16), (16, 4))
  def test_gaussian_entries(self, smaller, rank):
    shape = (64, smaller, 256)
    tx = sage_optax.scale_by_galore(rank, projector='gaussian')
    p = _rows(stepping.states(tx, stepping.grads(shape, 1))[0].projector, shape)
    used = min(rank, smaller)
    self.assertEqual(p.shape, (64, used, smaller))
    n = p.size
    self.assertLess(abs(p.mean()) * (used * n) ** 0.5, 4)
    self.assertLess(abs(p.var() * used - 1) * (n / 2) ** 0.5, 4)
    self.assertLess(abs((p**4).mean() * used**2 - 3) * (n / 96) ** 0.5, 4)
    # No layer has another's.
    flat = p.reshape(64, -1)
    self.assertLen(np.unique(flat[:, 0]), 64)

  @parameterized.product(method=['galore'], kind=[*KINDS, drawn])
  def test_is_renewed_every_gap_steps(self, method, kind):
    tx = METHODS[method](2, 3, projector=kind)
    states = stepping.states(tx, stepping.grads((2, 6, 8), 7))
    p = [np.asarray(state.projector) for state in states]
    for t in range(1, 7):
      same = np.array_equal(p[t], p[t - 1])
      self.assertEqual(same, t % 3 != 0, t)

  def test_apollo_keeps_no_gaussian_projector(self):
    grads = stepping.grads((3, 6, 8), 7)
    kept = sage_optax.scale_by_galore(2, 3, projector='gaussian', key=5)
    projectors = [state.projector for state in stepping.states(kept, grads)]

    def recorded(key, matrix, count):
      # `count` tells the refresh; the matrix tells the layer.
      del key
      layers = jnp.stack([g[:, 0, 0] for g in grads])[count]
      layer = jnp.argmin(jnp.abs(layers - matrix[0, 0]))
      return jnp.stack(projectors)[count, layer].mT

    ours = sage_optax.scale_by_apollo(2, 3, key=5)
    same = sage_optax.scale_by_apollo(2, 3, projector=recorded)
    np.testing.assert_allclose(
      stepping.updates(ours, grads), stepping.updates(same, grads), rtol=1e-5
    )
    state = ours.init(grads[0])
    self.assertIsNone(state.projector)
    sizes = [x.size for x in (state.mu, state.nu, state.norm)]
    self.assertEqual(sizes, [3 * 2 * 8, 3 * 2 * 8, 3])  # 2 rank * larger + 1

  def test_draws_depend_on_key_leaf_and_refresh_only(self):
    def projectors(key, names='ab', scale=1.0):
      tx = sage_optax.scale_by_fira(2, 1, projector='gaussian', key=key)
      grads = {name: scale * stepping.grads((6, 8), 1)[0] for name in names}
      state = tx.init(grads)
      found = []
      for _ in range(2):
        state = tx.update(grads, state)[1]
        found.append(state.projector)
      return found

    first, second = projectors(0)
    jax.tree.map(
      np.testing.assert_array_equal, projectors(0, scale=3.0)[0], first
    )
    # The leaf's place counts, not its name.
    np.testing.assert_array_equal(projectors(0, 'cd')[1]['d'], second['b'])
    others = (second['a'], first['b'], projectors(1)[0]['a'])
    for other in others:
      self.assertGreater(np.abs(first['a'] - other).min(), 0)

  @parameterized.parameters(*METHODS)
  def test_keys(self, method):
    make = functools.partial(METHODS[method], 2)
    param = jnp.zeros((4, 6))
    seed = make(key=7).init(param).rng_key
    self.assertEqual((seed.shape, seed.dtype), ((2,), jnp.uint32))
    np.testing.assert_array_equal(make(key=seed).init(param).rng_key, seed)
    for impl in ('threefry2x32', 'rbg'):
      typed = make(key=jax.random.key(7, impl=impl)).init(param).rng_key
      self.assertEqual((typed.shape, typed.dtype), ((2,), jnp.uint32))

  @parameterized.parameters(
    ('apollo', 'gaussian'), ('galore', 'svd'), ('fira', 'subspace')
  )
  def test_zero_gradients_at_first(self, method, kind):
    grads = stepping.grads((2, 6, 8), 6).at[:3].set(0.0)
    updates = stepping.updates(METHODS[method](2, 2, projector=kind), grads)
    self.assertTrue(np.isfinite(updates).all())
    np.testing.assert_array_equal(updates[:3], 0.0)
    self.assertGreater(np.abs(updates[4:]).min(), 0.0)  # refreshed at 4

  @parameterized.product(
    method=list(METHODS), kind=[*KINDS, drawn], shape=[(0, 4), (2, 4, 0)]
  )
  def test_empty_matrices(self, method, kind, shape):
    tx = METHODS[method](2, projector=kind)
    updates, _ = tx.update(jnp.ones(shape), tx.init(jnp.ones(shape)))
    self.assertEqual(updates.shape, shape)

  @parameterized.parameters(*METHODS)
  def test_wrong_arguments(self, method):
    make = METHODS[method]
    with self.assertRaisesRegex(ValueError, 'rank must be at least 1, got 0'):
      make(0)
    with self.assertRaisesRegex(ValueError, 'update_proj_gap must be at'):
      make(2, 0)
    with self.assertRaisesRegex(ValueError, "gaussian, svd.* got 'qr'"):
      make(2, projector='qr')
    tx = make(3, projector=drawn)
    with self.assertRaisesRegex(
      ValueError, r'\[3, 4\] .* \[6, 4\], got \[2, 4'
    ):
      tx.update(jnp.ones((6, 4)), tx.init(jnp.ones((6, 4))))
    with self.assertRaisesRegex(
      ValueError, f'scale_by_{method} needs matrices'
    ):
      make(2).init(jnp.ones(3))

  @parameterized.product(method=list(METHODS), kind=KINDS)
  def test_a_refresh_is_computed_when_it_is_due_only(self, method, kind):
    # Outside of any vmap `cond` stays one: the branch is not always computed.
    if method == 'apollo' and kind == 'gaussian':
      self.skipTest('draws in each step')
    tx = METHODS[method](2, projector=kind)
    grad = jnp.ones((3, 6, 8))
    jaxpr = jax.make_jaxpr(tx.update)(grad, tx.init(grad))
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    self.assertEqual(names.count('cond'), 1)
    inside = str([e for e in jaxpr.eqns if e.primitive.name == 'cond'])
    outside = str([e for e in jaxpr.eqns if e.primitive.name != 'cond'])
    work = {'gaussian': 'erf_inv', 'svd': 'svd', 'subspace': 'scan['}
    self.assertIn(work[kind], inside)
    self.assertNotIn(work[kind], outside)
