"""Every parameter of other people's models is routed right, or refused."""

import ast
import re

import jax
import jax.numpy as jnp
from absl.testing import parameterized

import sage_optax
from sage_optax.leaves import routing
from tests.support import leaf_count, leaf_table

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
  )
  def test_proved_stacks(self, params, name, batch):
    leaves = routing.resolve(params, routing.Routing())
    (leaf,) = (leaf for leaf in leaves if leaf.path.endswith(name))
    self.assertEqual(leaf.axes.batch, batch)

  def test_said_stacks(self):
    params = {'f': {'kernel': jnp.ones((8, 3, 6)), 'bias': jnp.ones((6, 3))}}
    said = routing.Routing(stacked='^f/', scan_axis=1)
    leaves = routing.resolve(params, said)
    self.assertEqual([leaf.axes.batch for leaf in leaves], [(1,), (1,)])
    leaves = routing.resolve(
      {'z': jnp.ones((8, 3))}, routing.Routing(default_role='auto')
    )
    self.assertEqual(leaves[0].role, 'matrix')
