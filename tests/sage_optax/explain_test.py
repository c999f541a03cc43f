"""explain, memory and sharding, before a state is allocated."""

import functools
import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax

P = jax.P


def _params(dtype=jnp.float32):
  shapes = {
    'embed': {'embedding': (12, 8)},
    'layers': {
      'proj': {'kernel': (3, 8, 6)},
      'norm': {'scale': (3, 8)},
    },
    'lm_head': {'kernel': (8, 12)},
  }
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, dtype),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


_SPECS = {
  'embed': {'embedding': P('tensor', 'fsdp')},
  'layers': {
    'proj': {'kernel': P(None, 'fsdp', 'tensor')},
    'norm': {'scale': P(None, 'fsdp')},
  },
  'lm_head': {'kernel': P('fsdp', 'tensor')},
}


class ExplainTest(parameterized.TestCase):
  def test_rows(self):
    explanation = sage_optax.explain(
      'sage_hybrid',
      _params(),
      weight_decay=0.1,
      matrix={'lr_scale': 0.5, 'weight_decay': 0.2},
    )
    rows = {row.path: row for row in explanation.rows}
    kernel = rows['layers/proj/kernel']
    self.assertEqual(kernel.shape, (3, 8, 6))
    self.assertEqual((kernel.role, kernel.method), ('matrix', 'sinkgd'))
    self.assertEqual((kernel.lr_scale, kernel.weight_decay), (0.5, 0.2))
    self.assertEqual(kernel.state_bytes, 0)
    embedding = rows['embed/embedding']
    self.assertEqual(embedding.state_bytes, 4 * (12 * 8 + 8))
    self.assertEqual((embedding.lr_scale, embedding.weight_decay), (1.0, 0.1))
    self.assertEqual(rows['lm_head/kernel'].state_bytes, 4 * (8 * 12 + 8))
    norm = rows['layers/norm/scale']
    self.assertEqual((norm.state_bytes, norm.weight_decay), (4 * 48, 0.0))

  @parameterized.parameters(*sage_optax.recipe_names())
  def test_totals_are_the_real_state(self, name):
    params = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _params()
    )
    explanation = sage_optax.explain(name, _params())
    state = sage_optax.recipe(name, 0.1).init(params)
    real = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    self.assertEqual(explanation.totals['all'].state_bytes, real)
    self.assertEqual(
      sage_optax.memory.state_bytes(sage_optax.recipe(name, 0.1), _params()),
      real,
    )
    by_role = [t for role, t in explanation.totals.items() if role != 'all']
    self.assertEqual(sum(t.leaves for t in by_role), 4)
    shared = sum(  # counters and random keys
      leaf.nbytes
      for leaf in jax.tree.leaves(state)
      if leaf.ndim == 0 or leaf.dtype == jnp.uint32
    )
    self.assertEqual(sum(t.state_bytes for t in by_role) + shared, real)

  def test_patterns_that_match_nothing(self):
    options = {
      'rules': [('embed', 'embedding'), (re.compile('^rout'), 'matrix')],
      'matrix_axes': [('moe', ((0,), (1,)))],
      'stacked': 'layrs',
    }
    explanation = sage_optax.explain('sage_hybrid', _params(), **options)
    self.assertEqual(
      explanation.unmatched,
      ("rules '^rout'", "matrix_axes 'moe'", "stacked 'layrs'"),
    )
    self.assertTrue(
      str(explanation).endswith(
        "No parameter matches rules '^rout', matrix_axes 'moe', stacked "
        "'layrs'."
      )
    )
    plain = sage_optax.explain('sage_hybrid', _params())
    self.assertEqual(plain.unmatched, ())
    self.assertNotIn('No parameter matches', str(plain))

  def test_table_and_json(self):
    explanation = sage_optax.explain('sage_hybrid', _params())
    lines = str(explanation).splitlines()
    self.assertEqual(lines[0], 'recipe sage_hybrid')
    (line,) = (x for x in lines if x.startswith('layers/proj/kernel'))
    self.assertRegex(
      line,
      r'^layers/proj/kernel +3x8x6 +3 of 8x6 +matrix +kernel +sinkgd +0.33 +0 '
      r'+0 B +- +-$',
    )
    data = json.loads(explanation.to_json())
    self.assertEqual(data['rows'][0]['path'], 'embed/embedding')
    self.assertEqual(data['totals']['all']['parameters'], 96 + 144 + 24 + 96)

  def test_axes_that_the_mesh_does_not_divide(self):
    mesh = jax.sharding.AbstractMesh((2, 4), ('fsdp', 'tensor'))
    explanation = sage_optax.explain(
      'lion', _params(), param_specs=_SPECS, mesh=mesh
    )
    replicated = {row.path: row.replicated for row in explanation.rows}
    self.assertEqual(replicated['layers/proj/kernel'], (2,))
    self.assertEqual(replicated['embed/embedding'], ())
    self.assertIn('axis 2', str(explanation))
    with self.assertRaisesRegex(ValueError, 'both param_specs= and mesh='):
      sage_optax.explain('lion', _params(), mesh=mesh)

  def test_axes_sharded_over_two_mesh_axes(self):
    undivided = sage_optax.sharding.undivided_axes
    mesh_shape = {'fsdp': 2, 'tensor': 3}
    spec = P(('fsdp', 'tensor'), None)
    self.assertEqual(undivided((12, 5), spec, mesh_shape), ())
    self.assertEqual(undivided((8, 5), spec, mesh_shape), (0,))

  def test_rules_of_a_partial_are_named(self):
    roles = functools.partial(
      sage_optax.roles.assign, rules=[('lm_head', 'matrix')]
    )
    explanation = sage_optax.explain('sage_hybrid', _params(), roles=roles)
    rows = {row.path: row for row in explanation.rows}
    head = rows['lm_head/kernel']
    self.assertEqual(
      (head.role, head.rule, head.method), ('matrix', 'lm_head', 'sinkgd')
    )
    self.assertEqual(rows['embed/embedding'].rule, 'embedding')
    # The total is that of the recipe with the same arguments.
    tx = sage_optax.sage_hybrid(0.1, roles=roles)
    with self.assertWarnsRegex(
      sage_optax.roles.RoutingWarning,
      'lm_head/kernel .* the vocabulary of embed',
    ):
      size = sage_optax.memory.state_bytes(tx, _params())
    self.assertEqual(explanation.totals['all'].state_bytes, size)
    self.assertIn('the vocabulary of embed', head.second_look)

  def test_given_roles(self):
    roles = {
      'embed': {'embedding': 'matrix'},
      'layers': {'proj': {'kernel': 'matrix'}, 'norm': {'scale': 'vector'}},
      'lm_head': {'kernel': 'head'},
    }
    prefix = {**roles, 'layers': {**roles['layers'], 'proj': 'matrix'}}
    for given in (roles, prefix, lambda params: roles):
      rows = sage_optax.explain('sinkgd', _params(), roles=given).rows
      self.assertEqual(
        (rows[0].role, rows[0].method, rows[0].rule),
        ('matrix', 'sinkgd', 'given'),
      )

  def test_unknown_recipe(self):
    with self.assertRaisesRegex(ValueError, "Unknown recipe 'adam'"):
      sage_optax.explain('adam', _params())

  def test_sage_papers_figure(self):
    # Lee and Kim, 1.3B: vocabulary 128256, width 2048, tied, 1.3197e9
    # parameters; state in GiB.
    table = 128256 * 2048
    params = {
      'embed': {'embedding': jax.ShapeDtypeStruct((128256, 2048), jnp.float32)},
      'proj': {
        'kernel': jax.ShapeDtypeStruct(
          (1, 2048, (1_319_700_000 - table) // 2048), jnp.float32
        )
      },
    }
    for name, gib in (
      ('sage_hybrid', 0.98),
      ('sinkgd', 1.96),
      ('lion', 4.92),
      ('adamw', 9.83),
    ):
      total = sage_optax.explain(name, params).totals['all']
      self.assertAlmostEqual(total.state_bytes / 2**30, gib, delta=0.005)


class SecondLookTest(parameterized.TestCase):
  """What is clear, but may not be what was meant."""

  def setUp(self):
    super().setUp()
    self.params = {
      'wte': {'embedding': jnp.ones((40, 8))},
      'tower': {
        'many': {'kernel': jnp.ones((24, 4, 4))},
        'few': {'kernel': jnp.ones((3, 4, 5))},
        'conv': {'kernel': jnp.ones((3, 5, 4, 6))},
      },
      'thin': {'kernel': jnp.ones((8, 1))},
      'long': {'kernel': jnp.ones((40, 6))},
      'usual': {'kernel': jnp.ones((8, 6))},
    }
    self.options = {
      'rules': [('^long/', 'matrix')],
      'stacked': ['/many/', '/few/'],
    }
    self.notes = {
      'tower/many/kernel': '24 units of 4x4',
      'tower/conv/kernel': 'axis 0 is a batch elsewhere',
      'thin/kernel': 'a side of 1 in 8x1',
      'long/kernel': 'as long as the vocabulary of wte/embedding',
    }

  def test_explain_marks_it(self):
    explanation = sage_optax.explain('adamw', self.params, **self.options)
    found = {r.path: r.second_look for r in explanation.rows if r.second_look}
    self.assertEqual(found, self.notes)
    for note in self.notes.values():
      self.assertIn(note, str(explanation))

  def test_init_warns_once(self):
    tx = sage_optax.adamw(0.1, **self.options)
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      state = tx.init(self.params)
      tx.update(self.params, state, self.params)
      tx.init(self.params)
    messages = [str(w.message) for w in caught]
    self.assertLen(messages, len(self.notes))
    for (path, note), message in zip(
      sorted(self.notes.items()), sorted(messages), strict=True
    ):
      self.assertStartsWith(message, f'{path} (')
      self.assertIn(note, message)

  def test_schedules(self):
    params = {'dense': {'kernel': jnp.ones((8, 4))}}
    explanation = sage_optax.explain(
      'lion', params, learning_rate=0.1, weight_decay=lambda step: 0.1
    )
    self.assertEqual(explanation.rows[0].weight_decay, 'schedule')
    self.assertIn('  schedule  ', str(explanation))

  def test_mask(self):
    mask = jax.tree.map(lambda p: p.ndim == 2, self.params)
    options = {'rules': [('^long/', 'matrix')]}
    for given in (mask, lambda params: mask):
      rows = sage_optax.explain(
        'adamw', self.params, mask=given, **options
      ).rows
      self.assertCountEqual(
        [row.path for row in rows],
        ['long/kernel', 'thin/kernel', 'usual/kernel', 'wte/embedding'],
      )
    # As the state of optax.masked, which has fewer bytes than the whole.
    tx = optax.masked(sage_optax.adamw(0.1, **options), mask)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', sage_optax.roles.RoutingWarning)
      size = sage_optax.memory.state_bytes(tx, self.params)
    explanation = sage_optax.explain('adamw', self.params, mask=mask, **options)
    self.assertEqual(explanation.totals['all'].state_bytes, size)


class StateSpecsTest(parameterized.TestCase):
  def test_every_leaf(self):
    tx = optax.chain(
      optax.clip_by_global_norm(1.0),
      sage_optax.sage_hybrid(optax.constant_schedule(0.1)),
    )
    specs = sage_optax.sharding.state_specs(tx, _params(), _SPECS)
    shapes = jax.eval_shape(tx.init, _params())
    self.assertEqual(jax.tree.structure(specs), jax.tree.structure(shapes))
    inner = specs[1].inner_states
    sage = inner['embedding'].inner_state[0]
    self.assertEqual(sage.count, P())
    self.assertEqual(sage.mu['embed']['embedding'], P('tensor', 'fsdp'))
    self.assertEqual(sage.abs_mean['embed']['embedding'], P(None, 'fsdp'))
    head = inner['head'].inner_state[0]
    self.assertEqual(head.abs_mean['lm_head']['kernel'], P('fsdp', None))
    vector = inner['vector'].inner_state[0]
    self.assertEqual(
      vector.abs_mean['layers']['norm']['scale'], P(None, 'fsdp')
    )
    self.assertIsInstance(vector.mu['embed']['embedding'], optax.MaskedNode)

  def test_specs_that_do_not_fit(self):
    leaf, lion = jax.ShapeDtypeStruct((4, 8), jnp.float32), sage_optax.lion(0.1)
    state_specs = sage_optax.sharding.state_specs
    for spec, mesh, message in (
      (P('a'), {'x': 2, 'y': 2}, "names the mesh axis 'a', .* has 'x', 'y'"),
      (P('x', None, 'x'), {'x': 2}, 'has 3 entries, .* only 2 axes'),
      (P('x', None, 'x'), None, 'has 3 entries, .* only 2 axes'),
      (jax.devices()[0], None, 'must be a tree of PartitionSpecs, got Cpu'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        state_specs(lion, {'kernel': leaf}, {'kernel': spec}, mesh)

  def test_short_specs_mean_replicated_axes(self):
    leaf = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    specs = sage_optax.sharding.state_specs(
      sage_optax.scale_by_lion(), leaf, P('fsdp')
    )
    self.assertEqual(specs.mu, P('fsdp', None))

  def test_specs_that_a_mesh_can_hold(self):
    params = jax.ShapeDtypeStruct((3, 2048, 5461), jnp.float32)
    spec = P(None, ('data', 'fsdp'), 'tensor')
    mesh_shape = {'data': 2, 'fsdp': 4, 'tensor': 2}
    for tx, expected in (
      (sage_optax.scale_by_lion(), P(None, ('data', 'fsdp'), None)),
      (sage_optax.scale_by_galore(64), P(None, ('data', 'fsdp'), None)),
      (sage_optax.scale_by_galore(60), P(None, None, None)),
    ):
      found = sage_optax.sharding.state_specs(tx, params, spec, mesh_shape)
      self.assertEqual(found.mu, expected)

  def test_state_is_created_sharded(self):
    mesh = jax.make_mesh(
      (2, 2), ('fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    tx = sage_optax.adamw(0.1)
    specs = sage_optax.sharding.state_specs(tx, _params(), _SPECS)
    shardings = jax.tree.map(
      lambda spec: jax.sharding.NamedSharding(mesh, spec), specs
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), _params())
    state = jax.jit(tx.init, out_shardings=shardings)(zeros)
    mu = state.inner_states['matrix'].inner_state[0].mu
    shard = mu['layers']['proj']['kernel'].addressable_shards[0]
    np.testing.assert_array_equal(shard.data.shape, (3, 4, 3))
