"""Parameters of public models are routed right, or refused."""

import ast
import dataclasses
import re

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from absl.testing import parameterized

import sage_optax
from sage_optax import layout, roles
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


def _refusal(params, **said):
  """The message that refuses the parameters; '' if none does."""
  try:
    routing.resolve(params, routing.Routing(**said))
  except ValueError as error:
    return str(error)
  return ''


def _pasted(message):
  """The arguments that a message suggests."""
  return {
    key: ast.literal_eval(f'[{lines}]')
    for key, lines in re.findall(
      r'^(rules|matrix_axes)=\[\n(.*?)^\],', message, re.DOTALL | re.MULTILINE
    )
  }


class RefusalTest(parameterized.TestCase):
  """The message is a line to paste."""

  @parameterized.parameters(
    ('Mamba', None),
    ('Equinox', None),
    ('Hugging Face Llama', None),
    ('LoRA in PEFT', None),
    ('Mamba', layout.TORCH),
    ('MaxText MoE, layers apart', None),
    ('MaxText DeepSeek, boxed', None),
    ('bonsai Qwen3', None),
    ('bonsai U-Net', None),
  )
  def test_pasted_it_is_right(self, name, preset):
    project = _PROJECTS[name]._replace(preset=preset)
    params = leaf_count.tree(project)
    message = _refusal(params, preset=preset)
    self.assertIn('They are a guess', message)
    for leaf in routing.records(params, routing.Routing(preset=preset)).leaves:
      self.assertEqual(f'\n  {leaf.path} (' in message, bool(leaf.doubt))
    said = routing.Routing(preset=preset, **_pasted(message))
    found = leaf_count.count(project, params, said)
    self.assertEqual((found.refused, found.wrong), (0, []))
    sage_optax.explain('lion', params, preset=preset, **_pasted(message))

  @parameterized.parameters(*_PROJECTS)
  def test_pasted_it_is_accepted(self, name):
    params = leaf_count.tree(_PROJECTS[name])
    for path in leaf_count.paths(_PROJECTS[name]):
      alone = leaf_count.alone(params, path)
      for preset in {None, _PROJECTS[name].preset}:
        message = _refusal(alone, preset=preset)
        again = _refusal(alone, preset=preset, **_pasted(message))
        if 'batch statistics' in message:  # Nothing to paste.
          self.assertEqual(_pasted(message), {})
        else:
          self.assertEqual(again, '', path)

  def test_the_first_axis_alone_is_suggested(self):
    params = {'mlp': {'bias': jax.ShapeDtypeStruct((16, 4, 1, 1), jnp.float32)}}
    message = _refusal(params, preset=layout.MAXTEXT)
    self.assertIn("(r'^mlp/bias$', ((), (0,))),", message)
    said = _pasted(message)
    self.assertEqual(_refusal(params, preset=layout.MAXTEXT, **said), '')

  @parameterized.parameters((None,), (layout.EQUINOX,))
  def test_a_table_of_positions_is_an_embedding(self, preset):
    params = {'pos': jax.ShapeDtypeStruct((16, 32), jnp.float32)}
    said = _pasted(_refusal(params, preset=preset))
    self.assertEqual(said, {'rules': [('^pos$', 'embedding')]})
    row = sage_optax.explain('lion', params, preset=preset, **said).rows[0]
    self.assertEqual(row.axes, ((), (0,), (1,)))

  def test_a_matrix_without_room_for_a_stack(self):
    kernel = jax.ShapeDtypeStruct((16, 64), jnp.float32)
    params = {'decoder': {'logits_dense': {'kernel': kernel}}}
    said = _pasted(_refusal(params, stacked='decoder/'))
    (pair,) = said['matrix_axes']
    self.assertEqual(pair[1], ((0,), (1,)))
    self.assertEqual(_refusal(params, stacked='decoder/', **said), '')

  def test_patterns_match_the_refused_leaves_only(self):
    # Layers with other shapes, and one that is not refused.
    shapes = ((6, 4), 6), ((6, 4), 6), ((8, 2), 8), ((4, 8), 8)
    params = {
      'h': [
        {'f': {'kernel': jnp.ones(shape), 'bias': jnp.ones(bias)}}
        for shape, bias in shapes
      ]
    }
    said = routing.Routing(**_pasted(_refusal(params)))
    leaves = [
      leaf for leaf in routing.resolve(params, said) if 'kernel' in leaf.path
    ]
    self.assertEqual([x.axes.fan_out for x in leaves], [(0,)] * 3 + [(1,)])

  def test_presets_are_suggested_where_they_help(self):
    weights = {'f': {'weight': jnp.ones((8, 8))}}
    self.assertIn('preset=sage_optax.layout.TORCH', _refusal(weights))
    self.assertNotIn('TORCH', _refusal(weights, preset=layout.HALIAX))
    gpt2 = {'c_proj': {'weight': jnp.ones((8, 8))}}
    for preset in (None, layout.TORCH):
      self.assertIn('GPT-2 is kept as', _refusal(gpt2, preset=preset))
      self.assertNotIn('TORCH', _refusal(gpt2, preset=preset))

  @parameterized.parameters(
    ({'a': {'z': jnp.ones((4, 4))}}, 'a/z .*: no rule matches the name'),
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
    ({'embed': {'kernel': jnp.ones((9, 4))}}, 'an embedding and a projection'),
    (
      {
        'wte': {'embedding': jnp.ones((9, 4))},
        'lm_head': {'kernel': jnp.ones((9, 4))},
      },
      'lm_head/kernel .*: the vocabulary of wte/embedding comes first',
    ),
    ({'tok': {'kernel': jnp.ones((2000, 8))}}, 'it may be an embedding'),
    (
      {'emb': {'weight': jnp.ones((9, 4)), 'bias': jnp.ones(9)}},
      r'(?s)emb/weight .*: the bias beside it is \(9,\)'
      r".*'matrix'.*\(\(1,\), \(0,\)\)",
    ),
    ({'Einsum_0': {'kernel': jnp.ones((8, 6))}}, 'einsum can have any order'),
    ({'patch_embedding': jnp.ones((8, 6))}, 'no rule matches the name'),
    (
      # Two layers of a convolution over time, or three experts.
      {
        'layers': [
          {'kernel': jnp.ones((3, 8, 6))},
          {'kernel': jnp.ones((3, 6, 8))},
        ]
      },
      'layers/0/kernel .*: 3 axes and no proof of a stack',
    ),
    (
      {'query': {'kernel': jnp.ones((3, 32, 32))}},
      r'(?s)it is too wide for heads.*\(\(1,\), \(2,\)\)',
    ),
    (
      {'query': {'kernel': jnp.ones((3, 8, 8)), 'bias': jnp.ones((2, 8))}},
      r'query/bias .*: the kernel beside it is \(3, 8, 8\)',
    ),
    (
      # A norm per head, or two axes that count layers.
      {
        'q_norm': {'scale': jnp.ones((8, 8))},
        'query': {'kernel': jnp.ones((64, 8, 8))},
        'out': {'kernel': jnp.ones((8, 8, 64))},
      },
      'q_norm/scale .*: 2 axes and no proof of a stack',
    ),
    (
      {
        'norm': {'scale': jnp.ones((4, 16))},
        'out': {'kernel': jnp.ones((4, 16, 64))},
      },
      'norm/scale .*: 2 axes and no proof of a stack',
    ),
    (
      {'f': {'weight': jnp.ones((3, 8)), 'bias': jnp.ones((3, 8))}},
      r"(?s)the bias beside it is \(3, 8\).*'vector'.*\(\(\), \(1,\)\)",
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
    # Heads may be many where the bias shows them.
    (
      {'query': {'kernel': jnp.ones((3, 8, 64)), 'bias': jnp.ones((8, 64))}},
      'kernel',
      (),
    ),
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

  def test_siblings_tell_the_order(self):
    # HF's GPT-2: one class makes all of them, with or without a preset.
    for name in ('Hugging Face GPT-2', 'Hugging Face Flax GPT-2'):
      for preset in (None, layout.TORCH):
        project = _PROJECTS[name]._replace(preset=preset)
        self.assertEqual(leaf_count.count(project).refused, 0)
    params = {
      'c_attn': {'kernel': jnp.ones((4, 6)), 'bias': jnp.ones(6)},
      'c_fc': {'kernel': jnp.ones((6, 4)), 'bias': jnp.ones(6)},
      'c_proj': {'kernel': jnp.ones((4, 4)), 'bias': jnp.ones(4)},
    }
    self.assertIn('c_proj/kernel (4, 4): GPT-2 is kept', _refusal(params))
    self.assertNotIn('c_fc/kernel', _refusal(params))

  @parameterized.parameters(
    ('fc', (6, 4), (6,), (1,)),
    ('fc', (4, 6), (6,), (0,)),
    ('conv', (8, 3, 5), (8,), (1, 2)),
    ('conv', (5, 3, 8), (8,), (0, 1)),
    ('lm_head', (6, 4), (6,), (1,)),
    ('f', (6, 4), (6,), (1,)),
    ('f', (4, 6), (6,), (0,)),
  )
  def test_a_bias_tells_the_order_of_weights(self, name, shape, bias, fan_in):
    params = {name: {'weight': jnp.ones(shape), 'bias': jnp.ones(bias)}}
    self.assertEqual(_axes(params)[f'{name}/weight'][1], fan_in)

  def test_users_decide_what_may_be_a_table(self):
    params = {'tok': {'kernel': jnp.ones((2000, 8))}}
    for said in ({'rules': [('kernel', 'matrix')]}, {'default_role': 'auto'}):
      (leaf,) = routing.resolve(params, routing.Routing(**said))
      self.assertEqual((leaf.role, leaf.axes.fan_in), ('matrix', (0,)))
    with self.assertRaisesRegex(ValueError, 'it may be an embedding'):
      roles.assign(params)
    # A weight without a bias may be one too, of any length.
    with self.assertRaisesRegex(ValueError, 'others as .in, out.'):
      roles.assign({'tok': {'weight': jnp.ones((9, 4))}})
    weights = {'tok': {'weight': jnp.ones((2000, 8))}}
    self.assertEqual(
      _pasted(_refusal(weights, preset=layout.TORCH)),
      {
        'rules': [('^tok/weight$', 'embedding')],
        'matrix_axes': [('^tok/weight$', ((0,), (1,)))],
      },
    )
    # Nor are the names of rules in the library confused with patterns.
    params = {
      'embed': {'embedding': jnp.ones((9, 4))},
      'f': {'kernel': jnp.ones((9, 5))},
    }
    for said in ({'rules': [('kernel', 'matrix')]}, {'default_role': 'matrix'}):
      leaves = routing.resolve(params, routing.Routing(**said))
      self.assertEqual(leaves[1].role, 'matrix')

  def test_a_head_is_one_matrix(self):
    # With bytes as tokens, the vocabulary is as long as hidden layers.
    embed = {'embed': {'embedding': jnp.ones((32, 8))}}
    kernel = {'kernel': jnp.ones((8, 32))}
    leaves = routing.resolve({**embed, 'f': kernel}, routing.Routing())
    self.assertEqual(leaves[1].role, 'head')
    for hidden in (
      {'q_proj': kernel},
      {'f': kernel, 'g': kernel},
      {'f': {'kernel': jnp.ones((4, 32))}},
    ):
      message = _refusal({**embed, **hidden})
      self.assertIn('an axis is as long as embed/embedding', message)

  def test_tables_of_classes_and_positions(self):
    params = {'class_embedding': jnp.ones((10, 8))}
    self.assertEqual(
      _axes(params), {'class_embedding': ('embedding', (0,), (1,))}
    )
    params = {'class_embedding': jnp.ones((1, 8))}
    self.assertEqual(_axes(params), {'class_embedding': ('vector', (), (1,))})
    params = {'rel_embedding': jnp.ones((6, 32))}
    self.assertEqual(roles.assign(params), {'rel_embedding': 'embedding'})
    message = _refusal(params)
    self.assertIn('[heads, positions] are both usual', message)
    self.assertEqual(
      _pasted(message),
      {'matrix_axes': [('^rel_embedding$', ((0,), (1,)))]},
    )

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
    params = {'layers': {'query': {'bias': jnp.ones((2, 4))}}}
    self.assertIn(
      'it has no axis 2', _refusal(params, stacked='layers/', scan_axis=2)
    )
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

  @parameterized.parameters('lnq', 'ln_f', 'lnpre', 'bna', 'bnorm1', 'norm1')
  def test_stacked_norms(self, name):
    params = {'blocks': {name: {'weight': jnp.ones((12, 64))}}}
    message = _refusal(params, preset=layout.TORCH)
    self.assertIn('where a vector has one axis', message)

  def test_unknown_names_have_no_order_in_torch(self):
    params = {'attn': {'in_proj_weight': jnp.ones((24, 8))}}
    for given in ({}, {'rules': [('in_proj', 'matrix')]}):
      message = _refusal(params, preset=layout.TORCH, **given)
      pasted = given | _pasted(message)
      (leaf,) = routing.resolve(
        params, routing.Routing(preset=layout.TORCH, **pasted)
      )
      self.assertEqual((leaf.role, leaf.axes.fan_in), ('matrix', (1,)))
    table = routing.Routing(
      preset=layout.TORCH, rules=[('in_proj', 'embedding')]
    )
    (leaf,) = routing.resolve(params, table)
    self.assertEqual(leaf.axes.fan_in, (0,))

  def test_a_bias_shows_the_outputs_of_an_einsum(self):
    einsum = {'kernel': jnp.ones((64, 4, 16)), 'bias': jnp.ones((4, 16))}
    params = {'EinsumDense_0': einsum}
    pasted = _pasted(_refusal(params))
    leaves = routing.resolve(params, routing.Routing(**pasted))
    axes = {leaf.path.rpartition('/')[2]: leaf.axes for leaf in leaves}
    self.assertEqual(axes['kernel'][1:], ((0,), (1, 2)))

  def test_a_wide_convolution_has_no_heads(self):
    params = {'Conv_0': {'kernel': jnp.ones((7, 512, 1))}}
    self.assertEqual(
      _axes(params, None)['Conv_0/kernel'][:2], ('matrix', (0, 1))
    )

  def test_a_named_head_is_the_head(self):
    params = {
      'wte': {'weight': jnp.ones((256, 64))},
      'h': {'x': {'weight': jnp.ones((256, 64))}},
      'lm_head': {'weight': jnp.ones((256, 64))},
    }
    message = _refusal(params, preset=layout.TORCH)
    self.assertIn('h/x/weight (256, 64): an axis is as long as', message)

  def test_batch_statistics_are_never_trained(self):
    params = {'batch_stats': {'bn': {'mean': jnp.ones(8), 'var': jnp.ones(8)}}}
    message = _refusal(params, default_role='auto')
    self.assertIn('remove them from the tree', message)
    self.assertEqual(_pasted(message), {})

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
    vocab, z = boxes.Axis('vocab', 9), boxes.Axis('z', 4)

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
    space = boxes.Axis('h', 3), boxes.Axis('w', 3)
    conv = array(y, x, *space), array(layers, y)
    params = {
      'conv': boxes.HaliaxConv(*conv, space, x, y),
      'up': boxes.HaliaxConv(
        array(layers, x, y, *space), None, ('h', 'w'), y, x
      ),
      'split': boxes.HaliaxLinear(array(z, y, x), array(z, y), x, (z, y)),
      'scalar': boxes.HaliaxLinear(array(x), array(), x, ()),
    }
    self.assertEqual(
      _axes(params),
      {
        'conv/bias': ('vector', (), (1,)),
        'conv/weight': ('matrix', (1, 2, 3), (0,)),
        'split/bias': ('vector', (), (0, 1)),
        'split/weight': ('matrix', (2,), (0, 1)),
        'scalar/bias': ('vector', (), ()),
        'scalar/weight': ('vector', (), (0,)),
        'up/weight': ('matrix', (2, 3, 4), (1,)),
      },
    )
    weights = {'first': {'weight': jnp.ones((8, 8))}}
    with self.assertRaisesRegex(ValueError, r'\[in, out\] or \[out, in\]'):
      _axes(weights, layout.HALIAX)

  @parameterized.parameters('In', 'Vocab', 'use_weight', 'num_embeddings')
  def test_modules_of_others(self, field):
    # A weight of unknown axes is refused, whatever the module has besides.
    kind = dataclasses.make_dataclass('Other', ['weight', field])
    jax.tree_util.register_dataclass(kind, ['weight'], [field])
    axes = boxes.Axis('x', 8), boxes.Axis('y', 8)
    for weight in (jnp.ones((8, 8)), boxes.HaliaxArray(jnp.ones((8, 8)), axes)):
      message = _refusal({'f': kind(weight, axes[0])})
      self.assertIn('f/weight (8, 8): PyTorch and Equinox', message)

  def test_an_axis_of_the_module_that_is_no_side(self):
    kind = dataclasses.make_dataclass('Other', ['weight', 'In', 'Out', 'Third'])
    jax.tree_util.register_dataclass(kind, ['weight'], ['In', 'Out', 'Third'])
    x, y, z = (boxes.Axis(name, 4) for name in ('x', 'y', 'z'))
    weight = boxes.HaliaxArray(jnp.ones((4, 4, 4)), (x, y, z))
    self.assertIn('f/weight', _refusal({'f': kind(weight, x, y, z)}))
    experts = boxes.Axis('experts', 4)
    weight = boxes.HaliaxArray(jnp.ones((4, 4, 4)), (x, y, experts))
    self.assertEqual(
      _axes({'f': kind(weight, x, y, experts)}),
      {'f/weight': ('matrix', (0,), (1,))},
    )

  def test_equinox_linear(self):
    key = jax.random.key(0)
    stack = eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 4, key=k))
    params = {
      'wide': eqx.nn.Linear(6, 2000, use_bias=False, key=key),
      'stack': stack(jax.random.split(key, 3)),
      'scalar': eqx.nn.Linear('scalar', 4, key=key),
      'lm_head': eqx.nn.Linear(4, 9, use_bias=False, key=key),
      'norm': eqx.nn.LayerNorm((4, 6)),
      'layers': [eqx.nn.Conv1d(3, 8, 5, key=key)],
    }
    for preset in (None, layout.EQUINOX):
      self.assertEqual(
        _axes(eqx.filter(params, eqx.is_inexact_array), preset),
        {
          'layers/0/bias': ('vector', (), (0,)),
          'layers/0/weight': ('matrix', (1, 2), (0,)),
          'lm_head/weight': ('head', (1,), (0,)),
          'norm/bias': ('vector', (), (0, 1)),
          'norm/weight': ('vector', (), (0, 1)),
          'scalar/bias': ('vector', (), (0,)),
          'scalar/weight': ('matrix', (1,), (0,)),
          'stack/bias': ('vector', (), (1,)),
          'stack/weight': ('matrix', (2,), (1,)),
          'wide/weight': ('matrix', (1,), (0,)),
        },
      )
    # Which of them is the head, is shown by the vocabulary.
    params = {
      'tokens': eqx.nn.Embedding(9, 4, key=key),
      'out': eqx.nn.Linear(4, 9, use_bias=False, key=key),
    }
    self.assertEqual(_axes(params)['out/weight'], ('head', (1,), (0,)))
    for role in ('matrix', 'embedding'):
      said = routing.Routing(rules=[('out', role)])
      leaf = routing.resolve(params, said)[0]
      self.assertEqual((leaf.role, leaf.axes.fan_in), (role, (1,)))
    params['in'] = eqx.nn.Linear(9, 5, use_bias=False, key=key)
    self.assertIn('in/weight (5, 9): an axis is as long', _refusal(params))

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


# Preset, then 'path shape role in -> out', as in the table. All are accepted.
_ACCEPTED = {
  'linears called convolution or patch': (
    layout.TORCH,
    """
    pwconv1/weight 384x96 matrix 1->0
    pwconv1/bias 384 vector ->0
    conv_out_layer/weight 64x96 matrix 1->0
    patch_embedding/weight 64x588 matrix 1->0
    patch_embedding/bias 64 vector ->0
    embeddings/patch_embeddings/projection/weight 64x3x16x16 matrix 123->0
    """,
  ),
  'linears in embeddings of patches and times': (
    layout.TORCH,
    """
    patch_embedding/value_embedding/weight 64x16 matrix 1->0
    temporal_embedding/embed/weight 64x4 matrix 1->0
    """,
  ),
  'weights with a bias': (
    None,
    """
    f/weights 16x24 matrix 0->1
    f/bias 24 vector ->0
    """,
  ),
  'codes of a quantizer': (
    layout.HAIKU,
    """
    vector_quantizer/embeddings 64x512 embedding 1->0
    conv/w 3x3x64x64 matrix 012->3
    """,
  ),
  'positions with a prefix': (
    None,
    'decoder_pos_embed 1x197x64 embedding 1->2',
  ),
  'adapters of Gemma': (
    None,
    """
    linear/lora/a 64x4 matrix 0->1
    linear/lora/b 4x96 matrix 0->1
    """,
  ),
}
# The same; all matrices are refused, and what is pasted is right.
_REFUSED = {
  'a linear called embedder, and one as long': (
    layout.TORCH,
    """
    x_embedder/weight 96x64 matrix 1->0
    x_embedder/bias 96 vector ->0
    f_proj/weight 96x96 matrix 1->0
    """,
  ),
  'a table called embedding/kernel': (
    None, 'embedding/kernel 512x64 embedding|matrix 0->1',
  ),
  'convolutions after an interpolation, or transposed': (
    layout.TORCH, 'upconv/weight 64x64x2x2 matrix 123->0',
  ),
  'transposed in Haiku, too': (
    layout.HAIKU, 'up_conv/w 4x4x64x96 matrix 012->3',
  ),
  'convolutions of unknown names': (
    layout.TORCH, 'features/0/weight 64x3x3x3 matrix 123->0',
  ),
  'projections as long as a vocabulary': (
    None,
    '''
    shared/embedding 384x96 embedding 0->1
    q/kernel 96x384 matrix 0->1
    o/kernel 384x96 matrix 0->1
    ''',
  ),
  'experts that are narrow': (None, 'layers_0/moe/wo 8x24x64 matrix 1->2'),
  'stacked attention without norms': (
    None, 'attn/query/kernel 12x64x8x16 matrix 1->23',
  ),
  'a table of relative positions': (
    layout.TORCH, 'relative_position_bias_table 169x3 embedding 0->1',
  ),
  'three layers, or a convolution over time': (
    None,
    '''
    blocks/a/up/kernel 3x64x96 matrix 1->2
    blocks/a/down/kernel 3x96x64 matrix 1->2
    ''',
  ),
}  # fmt: skip


def _project(preset, text):
  return leaf_table.Project('', '', leaf_table.rows(text), preset)


class StrangersTest(parameterized.TestCase):
  @parameterized.parameters(*_ACCEPTED)
  def test_accepted(self, name):
    project = _project(*_ACCEPTED[name])
    self.assertEqual(
      leaf_count.count(project), (len(project.rows), 0, []), name
    )

  @parameterized.parameters(*_REFUSED)
  def test_refused_with_a_right_suggestion(self, name):
    project = _project(*_REFUSED[name])
    params = leaf_count.tree(project)
    message = _refusal(params, preset=project.preset)
    self.assertGreater(leaf_count.count(project).refused, 0)
    self.assertEqual(leaf_count.count(project).wrong, [])
    said = routing.Routing(preset=project.preset, **_pasted(message))
    found = leaf_count.count(project, params, said)
    self.assertEqual((found.refused, found.wrong), (0, []))

  def test_a_users_embedding_is_a_vocabulary(self):
    params = {'tok': jnp.ones((50, 8)), 'final': {'kernel': jnp.ones((8, 50))}}
    said = routing.Routing(rules=[('^tok$', 'embedding')])
    roles = [leaf.role for leaf in routing.resolve(params, said)]
    self.assertEqual(roles, ['head', 'embedding'])

  def test_what_a_user_calls_a_matrix_is_no_vocabulary(self):
    params = {
      'embedder': {'kernel': jnp.ones((96, 8))},
      'f_proj': {'kernel': jnp.ones((96, 96))},
    }
    said = routing.Routing(rules=[('embedder', 'matrix')])
    roles = [leaf.role for leaf in routing.resolve(params, said)]
    self.assertEqual(roles, ['matrix', 'matrix'])

  def test_a_head_beside_a_matrix_to_the_width(self):
    params = {
      'tok_emb': {'weight': jnp.ones((96, 8))},
      'to_logits': {'weight': jnp.ones((96, 8))},
      'mixer': {'weight': jnp.ones((8, 32))},
    }
    found = routing.resolve(params, routing.Routing(preset=layout.TORCH))
    roles = {leaf.path: leaf.role for leaf in found}
    self.assertEqual(roles['to_logits/weight'], 'head')

  def test_a_bottleneck_of_a_tables_size_is_no_head(self):
    params = {
      'speaker_embedding': {'embedding': jnp.ones((32, 64))},
      'bottleneck': {'kernel': jnp.ones((64, 32)), 'bias': jnp.ones(32)},
      'decoder': {'kernel': jnp.ones((32, 10)), 'bias': jnp.ones(10)},
    }
    self.assertIn('bottleneck/kernel', _refusal(params))
