"""What APOLLO, GaLore and Fira promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

import sage_optax
from tests.support import stepping
from tests.support.low_rank import KINDS, METHODS, drawn


def _identity(key, matrix, count):
  del key, count
  return jnp.eye(min(matrix.shape))


class LimitsTest(parameterized.TestCase):
  """Where the methods become others."""

  @parameterized.parameters((4, 6), (6, 4), (5, 5), (2, 4, 6))
  def test_galore_of_the_identity_is_adam(self, *shape):
    grads = stepping.grads(shape, 4)
    tx = sage_optax.scale_by_galore(99, 2, 1.0, eps=1e-12, projector=_identity)
    np.testing.assert_allclose(
      stepping.updates(tx, grads),
      stepping.updates(optax.scale_by_adam(eps=1e-12), grads),
      rtol=1e-4,
    )

  def test_galore_on_square_matrices_is_optax(self):
    # Of other matrices Optax projects the larger side.
    grads = stepping.grads((6, 6), 7)
    base = optax.scale_by_adam(eps=1e-12)
    theirs = optax.contrib.scale_by_galore(2, 3, 0.25, base)
    ours = sage_optax.scale_by_galore(2, 3, eps=1e-12)
    np.testing.assert_allclose(
      stepping.updates(ours, grads),
      stepping.updates(theirs, grads),
      rtol=1e-3,
      atol=1e-5,
    )

  def test_optax_does_not_project_stacked_matrices(self):
    grads = stepping.grads((3, 6, 6), 4)
    theirs = optax.contrib.scale_by_galore(2)
    np.testing.assert_array_equal(
      stepping.updates(theirs, grads),
      stepping.updates(optax.scale_by_adam(), grads),
    )
    batched = optax.contrib.GaLoreDimensionNumbers(1, 2)
    with self.assertRaisesRegex(ValueError, 'All axes must be specified'):
      optax.contrib.scale_by_galore(2, weight_dimension_numbers=batched).init(
        grads[0]
      )
    # Here each layer's update is of rank 2, and what it is alone.
    ours = stepping.updates(sage_optax.scale_by_galore(2), grads)
    values = np.linalg.svd(ours, compute_uv=False)
    self.assertLess(values[..., 2:].max(), 1e-5 * values.max())
    for layer in range(3):
      alone = stepping.updates(sage_optax.scale_by_galore(2), grads[:, layer])
      np.testing.assert_allclose(ours[:, layer], alone, rtol=1e-4, atol=1e-6)

  @parameterized.parameters((4, 6), (6, 4))
  def test_fira_without_residual_is_galore(self, *shape):
    # A rank above the smaller side spans all of it.
    grads = stepping.grads(shape, 4)
    fira = sage_optax.scale_by_fira(99, 2, 0.5, exact_residual=True)
    galore = sage_optax.scale_by_galore(99, 2, 0.5)
    np.testing.assert_allclose(
      stepping.updates(fira, grads), stepping.updates(galore, grads), atol=1e-4
    )
    half = sage_optax.scale_by_fira(99, 2, 0.5)
    apart = stepping.updates(half, grads) - stepping.updates(galore, grads)
    self.assertGreater(np.abs(apart).max(), 0.1)

  @parameterized.parameters((4, 6), (6, 4), (3, 4, 6))
  def test_apollo_scales_channels(self, *shape):
    grads = stepping.grads(shape, 3)
    tx = sage_optax.scale_by_apollo(2)
    ratios = stepping.updates(tx, grads) / grads
    smaller, larger = (-2, -1) if shape[-1] >= shape[-2] else (-1, -2)
    # One positive factor per index of the larger side, not one for all.
    self.assertLess(np.ptp(ratios, smaller).max(), 1e-4 * ratios.max())
    self.assertGreater(ratios.min(), 0)
    self.assertGreater(np.ptp(ratios, larger).min(), 0.1)
    whole = sage_optax.scale_by_apollo(2, per_unit=False)
    ratios = stepping.updates(whole, grads) / grads
    self.assertLess(np.ptp(ratios, (-2, -1)).max(), 1e-4 * ratios.max())

  def test_apollo_scale_enters_as_its_root(self):
    grads = stepping.grads((4, 6), 3)
    for front in (False, True):
      plain = sage_optax.scale_by_apollo(2, scale_front=front)
      scaled = sage_optax.scale_by_apollo(2, scale=128.0, scale_front=front)
      np.testing.assert_allclose(
        stepping.updates(scaled, grads),
        128**0.5 * stepping.updates(plain, grads),
        rtol=1e-4,
      )


class GrowthTest(parameterized.TestCase):
  @parameterized.product(
    make=[
      functools.partial(sage_optax.scale_by_apollo, per_unit=False),
      sage_optax.scale_by_fira,
    ],
    limit=[1.01, 1.5],
  )
  def test_norms_grow_by_the_limit_at_most(self, make, limit):
    # b1 = 0 and b2 = 0.5: factors jump by up to 1.4.
    grads = stepping.grads((2, 6, 8), 30)
    tx = make(2, 5, b1=0.0, b2=0.5, norm_growth_limit=limit)
    norms = np.stack([state.norm for state in stepping.states(tx, grads)])
    growth = norms[1:] / norms[:-1]
    self.assertLess(growth.max(), limit * (1 + 1e-5))
    self.assertGreater(growth.max(), limit * (1 - 1e-5))
    # Each layer has its own.
    self.assertEqual(norms.shape, (30, 2, 1, 1))
    self.assertGreater(np.abs(norms[-1, 0] - norms[-1, 1]).max(), 0)

  @parameterized.parameters('apollo', 'fira')
  def test_a_zero_gradient_does_not_freeze(self, method):
    grads = stepping.grads((6, 8), 8).at[4].set(0.0)
    updates = stepping.updates(METHODS[method](2), grads)
    sizes = np.linalg.norm(updates, axis=(1, 2))
    self.assertGreater(sizes[5:].min(), 0.2 * sizes[3])

  @parameterized.parameters('apollo', 'fira')
  def test_none_switches_it_off(self, method):
    grads = stepping.grads((6, 8), 5)
    free = METHODS[method](2, norm_growth_limit=None)
    high = METHODS[method](2, norm_growth_limit=1e9)
    np.testing.assert_allclose(
      stepping.updates(free, grads), stepping.updates(high, grads), rtol=1e-6
    )

  @parameterized.parameters(1e-14, 1e-30)
  def test_a_collapsed_gradient_is_forgotten(self, size):
    grads = np.random.default_rng(0).standard_normal((30, 16, 24))
    grads[10] *= size
    tx = sage_optax.scale_by_apollo(4, projector='svd')
    state = tx.init(jnp.asarray(grads[0], jnp.float32))
    norms = []
    for grad in grads:
      update, state = jax.jit(tx.update)(jnp.asarray(grad, jnp.float32), state)
      norms.append(np.linalg.norm(update))
    self.assertGreater(min(norms[11:]), 0.3 * min(norms[5:10]))

  def test_a_residual_that_is_rounding_is_none(self):
    rng = np.random.default_rng(0)
    first = np.outer(rng.standard_normal(16), rng.standard_normal(24))
    tx = sage_optax.scale_by_fira(2, exact_residual=True)
    _, state = tx.update(jnp.asarray(first, jnp.float32), tx.init(first))
    np.testing.assert_array_equal(state.norm, 0.0)  # not limited by noise
    later = jnp.asarray(rng.standard_normal((16, 24)), jnp.float32)
    _, state = tx.update(later, state)
    self.assertGreater(float(state.norm[0, 0]), 0.01)

  @parameterized.parameters('svd', 'subspace')
  def test_a_zero_first_gradient_chooses_no_rows(self, projector):
    tx = sage_optax.scale_by_galore(4, projector=projector)
    later = np.random.default_rng(0).standard_normal((32, 64))
    later = jnp.asarray(later, jnp.float32)
    _, state = tx.update(jnp.zeros((32, 64)), tx.init(later))
    update, _ = tx.update(later, state)
    self.assertEqual(int((jnp.abs(update).max(1) > 0).sum()), 32)


class ShardedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f'{axis_type.name}_{method}_{name}', method, kind, axis_type)
    for method in METHODS
    for name, kind in (*zip(KINDS, KINDS, strict=True), ('drawn', drawn))
    for axis_type in (
      jax.sharding.AxisType.Auto,
      jax.sharding.AxisType.Explicit,
    )
  )
  @pytest.mark.nightly_except(
    *('Explicit_galore_subspace', 'Explicit_fira_svd'),
    *('Auto_apollo_gaussian', 'Explicit_apollo_drawn'),
  )
  def test_mesh_changes_nothing(self, method, kind, axis_type):
    # Stacked, with refreshes, and with numbers that are traced.
    tx = optax.inject_hyperparams(
      METHODS[method], static_args=('rank', 'update_proj_gap', 'projector')
    )(rank=2, update_proj_gap=2, projector=kind)
    grads = stepping.grads((2, 8, 12), 5)
    expected, states = stepping.updates(tx, grads), stepping.states(tx, grads)
    steps = stepping.on_mesh(tx, grads, axis_type)
    for (ours, state), reference, alone in zip(
      steps, expected, states, strict=True
    ):
      np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)
      if kind in ('gaussian', drawn) and method != 'apollo':
        # Drawn numbers are the same to the last bit.
        np.testing.assert_array_equal(
          state.inner_state.projector, alone.inner_state.projector
        )


class CompositionTest(parameterized.TestCase):
  @parameterized.parameters(*METHODS)
  def test_injected(self, method):
    make = METHODS[method]
    grads = stepping.grads((6, 8), 5)
    inject = optax.inject_hyperparams
    static = ('rank', 'update_proj_gap')
    tx = inject(make, static_args=static)(rank=2, update_proj_gap=2, key=3)
    np.testing.assert_allclose(
      stepping.updates(tx, grads),
      stepping.updates(make(2, 2, key=3), grads),
      rtol=1e-3,
    )
    name = 'alpha' if method == 'fira' else 'scale'
    state = tx.init(grads[0])
    state.hyperparams[name] = jnp.float32(0.7)
    bare = make(2, 2, key=3, **{name: 0.7})
    np.testing.assert_allclose(
      tx.update(grads[0], state)[0],
      bare.update(grads[0], bare.init(grads[0]))[0],
      rtol=1e-3,
    )
    with self.assertRaisesRegex(ValueError, "static_args=.'rank', ...."):
      jax.jit(inject(make)(rank=2).init)(grads[0])

  @parameterized.parameters(
    ('apollo', 'subspace'), ('galore', 'svd'), ('fira', 'subspace')
  )
  def test_vmap_of_the_whole(self, method, kind):
    grads = stepping.grads((3, 6, 8), 5)
    tx = METHODS[method](2, 2, projector=kind)
    mapped = optax.GradientTransformation(
      jax.vmap(tx.init), lambda g, s: jax.vmap(tx.update)(g, s)
    )
    alone = [stepping.updates(tx, grads[:, i]) for i in range(3)]
    np.testing.assert_allclose(
      stepping.updates(mapped, grads), np.stack(alone, 1), rtol=1e-3, atol=1e-5
    )

  @parameterized.parameters('apollo', 'apollo_mini', 'galore', 'fira')
  def test_other_kinds_through_the_recipe(self, name):
    params = {'layers': {'proj': {'kernel': jnp.ones((2, 8, 6))}}}
    tx = getattr(sage_optax, name)(
      0.1, rank=3, projector='subspace', stacked='layers'
    )
    state = tx.init(params)
    inner = state.inner_states['matrix'].inner_state[0]
    projector = inner.projector['layers']['proj']['kernel']
    self.assertEqual(projector.shape, (2, 3, 6))
    updates, _ = tx.update(params, state, params)
    self.assertLess(updates['layers']['proj']['kernel'].max(), 0)
