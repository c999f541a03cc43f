"""Parameters of public models are routed right, or refused."""

import ast
import re

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from absl.testing import parameterized

import sage_optax
from sage_optax import layout
from sage_optax.leaves import routing
from tests.support import boxes, leaf_count, leaf_table

_PROJECTS = {project.name: project for project in leaf_table.PROJECTS}


class TableTest(parameterized.TestCase):
  def test_the_table_is_large(self):
    rows = [row for p in leaf_table.PROJECTS for row in p.rows]
    self.assertGreaterEqual(len(rows), 150)
    self.assertGreaterEqual(len(leaf_table.PROJECTS), 12)

  def test_none_is_wrong_and_most_are_right(self):
    right = total = 0
    for project in leaf_table.PROJECTS:
      found = leaf_count.count(project)
      self.assertEqual(found.wrong, [], project.name)
      right += found.right
      total += found.right + found.refused
    self.assertGreaterEqual(right, 0.6 * total)

  @parameterized.parameters('Mamba', 'Equinox', 'Hugging Face Llama')
  def test_without_the_preset_none_is_wrong(self, name):
    project = _PROJECTS[name]._replace(preset=None)
    found = leaf_count.count(project)
    self.assertEqual(found.wrong, [])
    self.assertGreater(found.refused, 0)

  @parameterized.parameters(*_PROJECTS)
  def test_each_leaf_alone_is_not_wrong(self, name):
    # As under optax.masked: evidence beside the leaf is missing.
    project = _PROJECTS[name]
    params = leaf_count.tree(project)
    for path in leaf_count.paths(project):
      found = leaf_count.count(project, leaf_count.alone(params, path))
      self.assertEqual(found.wrong, [], path)


class RefusalTest(parameterized.TestCase):
  """The message is a line to paste."""

  @parameterized.parameters('Mamba', 'Hugging Face GPT-2', 'MaxText MoE')
  def test_pasted_it_works(self, name):
    if name == 'MaxText MoE':
      project = _PROJECTS['MaxText MoE, layers apart']
    else:
      project = _PROJECTS[name]._replace(preset=None)
    params = leaf_count.tree(project)
    with self.assertRaises(ValueError) as caught:
      jax.eval_shape(sage_optax.sage_hybrid(0.1).init, params)
    message = str(caught.exception)
    pasted = {
      key: ast.literal_eval(f'[{lines}]')
      for key, lines in re.findall(
        r'^(rules|matrix_axes)=\[\n(.*?)^\],', message, re.DOTALL | re.MULTILINE
      )
    }
    self.assertNotEmpty(pasted)
    for leaf in routing.records(params, routing.Routing()).leaves:
      if leaf.doubt:
        self.assertIn(f'{leaf.path} ', message)
    tx = sage_optax.sage_hybrid(0.1, **pasted)
    jax.eval_shape(tx.init, params)

  @parameterized.parameters(
    ({'a': {'z': jnp.ones((4, 4))}}, 'a/z .*: no rule knows the name'),
    ({'a': {'kernel': jnp.ones((4, 4), int)}}, 'integers cannot be trained'),
    ({'a': {'kernel': jnp.ones((2, 4, 4))}}, '3 axes and no proof of a stack'),
    ({'a': {'weight': jnp.ones((4, 5))}}, r'preset=sage_optax.layout.TORCH'),
    ({'a': {'scale': jnp.ones((2, 4))}}, '2 axes and no proof of a stack'),
    (
      {
        'wte': {'embedding': jnp.ones((9, 4))},
        'f': {'kernel': jnp.ones((9, 5))},
      },
      'f/kernel .*: an axis is as long as wte/embedding',
    ),
    ({'embed': {'kernel': jnp.ones((9, 4))}}, 'a table and a projection'),
    (
      {
        'wte': {'embedding': jnp.ones((9, 4))},
        'lm_head': {'kernel': jnp.ones((9, 4))},
      },
      'lm_head/kernel .*: the vocabulary of wte/embedding comes first',
    ),
    ({'tok': {'kernel': jnp.ones((2000, 8))}}, 'it may be a table'),
    (
      {'emb': {'weight': jnp.ones((9, 4)), 'bias': jnp.ones(9)}},
      r'emb/weight .*: the bias beside it is \(9,\)',
    ),
    (
      {
        'query': {'kernel': jnp.ones((3, 8, 6)), 'bias': jnp.ones((3, 6))},
        'out': {'kernel': jnp.ones((3, 6, 8))},
        'norm': {'scale': jnp.ones(8)},
      },
      'out/kernel .*: the kernel of query beside it',
    ),
  )
  def test_doubts(self, params, message):
    with self.assertRaisesRegex(ValueError, message):
      sage_optax.adamw(0.1).init(params)

  @parameterized.parameters(
    (
      {
        'layers': {
          'f': {'kernel': jnp.ones((3, 8, 8))},
          'norm': {'scale': jnp.ones((3, 8))},
        }
      },
      'f/kernel',
      (0,),
    ),
    (
      {
        'layers': {
          'f': {'kernel': jnp.ones((8, 3, 6))},
          'g': {'kernel': jnp.ones((6, 3, 8))},
          'norm': {'scale': jnp.ones((8, 3))},
        }
      },
      'f/kernel',
      (1,),
    ),
    (
      {
        'experts': {
          'f': {'kernel': jnp.ones((3, 8, 6))},
          'g': {'kernel': jnp.ones((3, 6, 8))},
        }
      },
      'f/kernel',
      (0,),
    ),
    (
      {'f': {'kernel': jnp.ones((3, 8, 6)), 'bias': jnp.ones((3, 6))}},
      'f/bias',
      (0,),
    ),
    ({'kernel': jnp.ones((3, 8, 6)), 'bias': jnp.ones((3, 6))}, 'kernel', (0,)),
  )
  def test_proved_stacks(self, params, name, batch):
    leaves = routing.resolve(params, routing.Routing())
    (leaf,) = (leaf for leaf in leaves if leaf.path.endswith(name))
    self.assertEqual(leaf.axes.batch, batch)

  @parameterized.parameters(
    ((4, 6), (6,), (0,)), ((6, 4), (6,), (1,)), ((6, 6), (6,), None)
  )
  def test_a_bias_tells_the_order(self, shape, bias, fan_in):
    params = {'c_fc': {'kernel': jnp.ones(shape), 'bias': jnp.ones(bias)}}
    leaves = routing.records(params, routing.Routing()).leaves
    axes = leaves[1].axes
    self.assertEqual(axes and axes.fan_in, fan_in)
    # Other kernels have one order: the bias can only contradict it.
    params = {'f': {'kernel': jnp.ones((6, 4)), 'bias': jnp.ones(6)}}
    with self.assertRaisesRegex(ValueError, r'the bias beside it is \(6,\)'):
      sage_optax.adamw(0.1).init(params)

  def test_long_matrices(self):
    params = {
      'gate': {'kernel': jnp.ones((2000, 8))},
      'f': {'kernel': jnp.ones((2000, 8)), 'bias': jnp.ones(8)},
    }
    leaves = routing.resolve(params, routing.Routing())
    self.assertEqual([x.role for x in leaves], ['vector', 'matrix', 'matrix'])
    params = {'tok': {'kernel': jnp.ones((2000, 8))}}
    said = routing.Routing(rules=[('tok', 'embedding')])
    self.assertEqual(routing.resolve(params, said)[0].axes.fan_in, (0,))

  def test_said_stacks(self):
    params = {'f': {'kernel': jnp.ones((8, 3, 6)), 'bias': jnp.ones((6, 3))}}
    said = routing.Routing(stacked='^f/', scan_axis=1)
    leaves = routing.resolve(params, said)
    self.assertEqual([leaf.axes.batch for leaf in leaves], [(1,), (1,)])
    leaves = routing.resolve(
      {'z': jnp.ones((8, 3))}, routing.Routing(default_role='auto')
    )
    self.assertEqual(leaves[0].role, 'matrix')

  def test_scan_axis(self):
    # Biases do not have an axis 2; one that is not counted from 0 is refused.
    params = {'f': {'kernel': jnp.ones((8, 6, 3)), 'bias': jnp.ones((6, 3))}}
    leaves = routing.records(params, routing.Routing(scan_axis=2)).leaves
    self.assertIn('no proof of a stack', leaves[0].doubt)
    for axis in (-1, 1.0):
      with self.assertRaisesRegex(ValueError, 'scan_axis must be None or an'):
        sage_optax.sage_hybrid(0.1, scan_axis=axis)


class NamesTest(parameterized.TestCase):
  """A name is not found within another word."""

  @parameterized.parameters(
    ('conv_transpose', (3, 8, 2, 2), 'matrix', (0, 2, 3)),
    ('pos_key_proj', (8, 6), 'matrix', (1,)),
    ('compose', (8, 6), 'matrix', (1,)),
    ('bneck', (8, 6), 'matrix', (1,)),
    ('embed_positions', (8, 6), 'embedding', (0,)),
    ('abs_pos_embed', (8, 6), 'embedding', (0,)),
    ('position', (8, 6), 'embedding', (0,)),
  )
  def test_torch(self, name, shape, role, fan_in):
    params = {name: {'weight': jnp.ones(shape)}}
    self.assertEqual(
      _axes(params, layout.TORCH)[f'{name}/weight'][:2], (role, fan_in)
    )

  def test_dense_is_a_projection(self):
    params = {'Dense_0': {'kernel': jnp.ones((3072, 256))}}
    self.assertEqual(_axes(params), {'Dense_0/kernel': ('matrix', (0,), (1,))})


def _axes(params, preset=None):
  """Path -> role, axes of fan_in and of fan_out."""
  leaves = routing.resolve(params, routing.Routing(preset=preset))
  return {leaf.path: (leaf.role, *leaf.axes[1:]) for leaf in leaves}


class ModulesTest(parameterized.TestCase):
  """Modules show what the names and shapes of their weights do not."""

  def test_haliax(self):
    x, y = boxes.Axis('x', 8), boxes.Axis('y', 8)
    vocab = boxes.Axis('vocab', 9)

    def array(*axes):
      return boxes.HaliaxArray(jnp.ones([a.size for a in axes]), axes)

    layers = boxes.Axis('layers', 3)
    params = {
      'first': boxes.HaliaxLinear(array(x, y), array(y), x, y),
      'second': boxes.HaliaxLinear(array(layers, y, x), None, x, y),
      'out': boxes.HaliaxLinear(array(x, vocab), None, (x,), vocab),
      'tok': boxes.HaliaxEmbedding(array(y, x), y, x),
    }
    for preset in (None, layout.HALIAX):
      self.assertEqual(
        _axes(params, preset),
        {
          'first/bias': ('vector', (), (0,)),
          'first/weight': ('matrix', (0,), (1,)),
          'out/weight': ('head', (0,), (1,)),
          'second/weight': ('matrix', (2,), (1,)),
          'tok/weight': ('embedding', (0,), (1,)),
        },
      )
    weights = {'first': {'weight': jnp.ones((8, 8))}}
    with self.assertRaisesRegex(ValueError, r'\[in, out\] or \[out, in\]'):
      _axes(weights, layout.HALIAX)

  def test_equinox(self):
    key = jax.random.key(0)
    params = {
      'tok': eqx.nn.Embedding(9, 4, key=key),
      'scaling': eqx.nn.LayerNorm((4, 6), use_bias=False),
      'conv': eqx.nn.Conv2d(3, 8, 1, key=key),
      'up': {'conv_transpose': eqx.nn.ConvTranspose2d(3, 8, 2, key=key)},
    }
    params = eqx.filter(params, eqx.is_inexact_array)
    self.assertEqual(
      _axes(params, layout.EQUINOX),
      {
        'conv/bias': ('vector', (), (0,)),
        'conv/weight': ('matrix', (1, 2, 3), (0,)),
        'scaling/weight': ('vector', (), (0, 1)),
        'tok/weight': ('embedding', (0,), (1,)),
        'up/conv_transpose/bias': ('vector', (), (0,)),
        'up/conv_transpose/weight': ('matrix', (1, 2, 3), (0,)),
      },
    )

  def test_haiku(self):
    model = hk.transform(lambda x: hk.Conv2DTranspose(4, 3)(hk.Conv2D(4, 3)(x)))
    params = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    found = _axes(params, layout.HAIKU)
    self.assertEqual(found['conv2_d/w'], ('matrix', (0, 1, 2), (3,)))
    self.assertEqual(found['conv2_d_transpose/w'], ('matrix', (0, 1, 3), (2,)))
    with self.assertRaisesRegex(ValueError, 'conv2_d_transpose/w .*no bias'):
      _axes(params)
