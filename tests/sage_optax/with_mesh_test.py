"""Work on whole matrices under a mesh: `sharding.with_mesh`."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import sage_optax

_COLLECTIVES = (
  r' (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)'
  r'(?:-start)?\('
)


def _mesh(axis_type=jax.sharding.AxisType.Auto):
  return jax.make_mesh((4, 2), ('fsdp', 'tensor'), axis_types=(axis_type,) * 2)


def _grads(shape, seed=0):
  rng = np.random.default_rng(seed)
  return {'kernel': jnp.asarray(rng.standard_normal(shape), jnp.float32)}


def _compiled(tx, grads, spec, mesh):
  """The update on sharded gradients, and its arguments."""
  specs = {'kernel': spec}
  shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
  grads = jax.device_put(grads, shardings)
  state_shardings = jax.tree.map(
    lambda s: NamedSharding(mesh, s),
    sage_optax.sharding.state_specs(tx, grads, specs, mesh.shape),
  )
  state = jax.jit(tx.init, out_shardings=state_shardings)(grads)
  update = jax.jit(tx.update, out_shardings=(shardings, state_shardings))
  return update.lower(grads, state).compile(), (grads, state)


def _matrix_collectives(compiled, least):
  """Kinds of the collectives whose result has at least so many elements."""
  kinds = collections.Counter()
  for line in compiled.as_text().splitlines():
    if found := re.search(_COLLECTIVES, line):
      sizes = re.findall(r'\w+\[([\d,]*)\]', line[: found.start()])
      elements = [np.prod([int(n) for n in s.split(',') if n]) for s in sizes]
      if sum(elements) >= least:
        kinds[found.group(1)] += 1
  return kinds


_METHODS = {
  'muon': sage_optax.scale_by_muon,
  'swan': sage_optax.scale_by_swan,
}


def _assert_same(plain, grads, spec, mesh):
  """That an update on a mesh gives the same numbers; returns its program."""
  expected, _ = plain.update(grads, plain.init(grads))
  tx = sage_optax.sharding.with_mesh(plain, mesh, {'kernel': spec})
  compiled, args = _compiled(tx, grads, spec, mesh)
  ours, _ = compiled(*args)
  np.testing.assert_allclose(
    ours['kernel'], expected['kernel'], rtol=1e-4, atol=1e-5
  )
  return compiled


class WithMeshTest(parameterized.TestCase):
  @parameterized.parameters(  # 6 layers are padded
    ('muon', P(None, 'fsdp', 'tensor'), 6),
    ('swan', P(None, None, ('tensor', 'fsdp')), 6),
    ('swan', P(None, 'fsdp', 'tensor'), 16),
  )
  def test_two_all_to_alls_and_the_same_numbers(self, method, spec, layers):
    mesh, shape = _mesh(), (layers, 64, 32)
    plain = _METHODS[method]()
    grads = _grads(shape)
    compiled = _assert_same(plain, grads, spec, mesh)
    kinds = _matrix_collectives(compiled, 64 * 32)
    self.assertEqual(kinds, {'all-to-all': 2})
    without, _ = _compiled(plain, grads, spec, mesh)
    kinds = _matrix_collectives(without, 32 * 32)
    self.assertGreater(kinds['all-gather'] + kinds['all-reduce'], 0)

  @parameterized.parameters('svd', 'subspace')
  def test_decompositions_are_of_whole_matrices(self, projector):
    mesh, spec = _mesh(), P(None, 'fsdp', 'tensor')
    plain = sage_optax.scale_by_galore(rank=4, projector=projector)
    grads = _grads((6, 32, 64))
    expected, state = plain.update(grads, plain.init(grads))
    tx = sage_optax.sharding.with_mesh(plain, mesh, {'kernel': spec})
    compiled, args = _compiled(tx, grads, spec, mesh)
    ours, new_state = compiled(*args)
    for a, b in ((ours, expected), (new_state.projector, state.projector)):
      np.testing.assert_allclose(a['kernel'], b['kernel'], rtol=1e-3, atol=1e-4)
    # The gradient goes once; back comes the projector, of the rank's size.
    kinds = _matrix_collectives(compiled, 32 * 64)
    self.assertEqual(kinds, {'all-to-all': 1})

  @parameterized.product(
    method=(sage_optax.scale_by_apollo, sage_optax.scale_by_galore),
    shape=((8, 32, 64), (8, 64, 32)),
  )
  def test_low_rank_state_is_shared_out(self, method, shape):
    mesh, spec = _mesh(), P(None, 'fsdp', 'tensor')
    plain = method(rank=8, projector='gaussian')
    grads = _grads(shape)
    expected, state = plain.update(grads, plain.init(grads))
    tx = sage_optax.sharding.with_mesh(plain, mesh, {'kernel': spec})
    compiled, args = _compiled(tx, grads, spec, mesh)
    ours, new_state = compiled(*args)
    for a, b in ((ours, expected), (new_state.mu, state.mu)):
      np.testing.assert_allclose(a['kernel'], b['kernel'], rtol=1e-3, atol=1e-4)
    mu = new_state.mu['kernel']
    self.assertEqual(8 * mu.addressable_shards[0].data.size, mu.size)
    # What is projected goes to other devices; no gradient does.
    self.assertEmpty(_matrix_collectives(compiled, 8 * 32 * 64 // 4))

  def test_fewer_layers_than_devices_take_some_of_the_axes(self):
    mesh, spec = _mesh(), P(None, 'fsdp', 'tensor')
    plain = sage_optax.scale_by_muon()
    grads = _grads((2, 64, 32))
    _assert_same(plain, grads, spec, mesh)

  @parameterized.parameters('sage', 'lion', 'sinkgd_pure', 'scale', 'adamw')
  def test_others_are_as_they_were(self, name):
    roles = {'kernel': 'matrix'}
    plain = sage_optax.recipe(name, 1e-3, roles=roles, stacked='kernel')
    specs = {'kernel': P(None, 'fsdp', 'tensor')}
    tx = sage_optax.sharding.with_mesh(plain, _mesh(), specs)
    grads = _grads((8, 64, 32))
    texts = [
      jax.jit(t.update).lower(grads, t.init(grads), grads).as_text()
      for t in (plain, tx)
    ]
    self.assertEqual(*texts)

  def test_kernels_of_other_layouts(self):
    mesh, spec = _mesh(), P(None, 'fsdp', 'tensor', None)
    plain = sage_optax.with_matrix_axes(
      sage_optax.scale_by_muon(), [('kernel', ((-3,), (-2, -1)))]
    )
    grads = _grads((8, 64, 4, 8))
    compiled = _assert_same(plain, grads, spec, mesh)
    self.assertEqual(_matrix_collectives(compiled, 64 * 32), {'all-to-all': 2})

  def test_axes_that_are_not_divided_or_empty(self):
    mesh, spec = _mesh(), {'kernel': P(None, 'fsdp', 'tensor')}
    plain = sage_optax.scale_by_muon()
    tx = sage_optax.sharding.with_mesh(plain, mesh, spec)
    for shape in ((0, 16, 24), (8, 15, 24), (8, 16, 0)):
      grads = _grads(shape)
      expected, _ = plain.update(grads, plain.init(grads))
      ours, _ = jax.jit(tx.update)(grads, tx.init(grads))
      np.testing.assert_allclose(
        ours['kernel'], expected['kernel'], rtol=1e-4, atol=1e-5
      )

  def test_wrong_arguments(self):
    tx, mesh = sage_optax.scale_by_muon(), _mesh()
    explicit = _mesh(jax.sharding.AxisType.Explicit)
    with self.assertRaisesRegex(ValueError, 'automatic axes.*AxisType.Auto'):
      sage_optax.sharding.with_mesh(tx, explicit, {'kernel': P()})
    shardings = {'kernel': NamedSharding(mesh, P())}
    with self.assertRaisesRegex(ValueError, 'tree of PartitionSpecs'):
      sage_optax.sharding.with_mesh(tx, mesh, shardings)
    tx = sage_optax.sharding.with_mesh(tx, mesh, {'other': P()})
    grads = _grads((2, 4, 4))
    with self.assertRaisesRegex(ValueError, r"no entry for \['kernel'\]"):
      tx.update(grads, tx.init(grads))

  def test_through_a_recipe(self):
    # Masked trees keep their paths; other leaves are left alone.
    mesh = _mesh()
    params = {
      'embed': {'embedding': jnp.ones((32, 8))},
      'proj': {'kernel': jnp.ones((8, 16, 8))},
    }
    specs = {
      'embed': {'embedding': P('tensor', 'fsdp')},
      'proj': {'kernel': P(None, 'fsdp', 'tensor')},
    }
    plain = sage_optax.muon(0.1, stacked='proj/')
    tx = sage_optax.sharding.with_mesh(plain, mesh, specs)
    grads = jax.tree.map(
      lambda p: jnp.asarray(
        np.random.default_rng(p.size).standard_normal(p.shape), jnp.float32
      ),
      params,
    )
    expected, _ = plain.update(grads, plain.init(params), params)
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    update = jax.jit(tx.update)
    ours, _ = update(
      jax.device_put(grads, shardings),
      plain.init(params),
      jax.device_put(params, shardings),
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      ours,
      expected,
    )
    text = jax.jit(tx.update).lower(grads, plain.init(params), params).as_text()
    self.assertIn('all_to_all', text)
