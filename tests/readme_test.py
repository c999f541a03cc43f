"""The claims of README.md and docs/recipes.md about the library are true."""

import ast
import inspect
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from absl.testing import parameterized

import sage_optax
from configs import llama_1_3b
from models import llama
from sage_optax import recipes, roles
from tests.support import cases, leaf_count, leaf_table
from train import config as config_lib

_ROOT = pathlib.Path(__file__).parent.parent
_README = (_ROOT / 'README.md').read_text()
_RECIPES = (_ROOT / 'docs' / 'recipes.md').read_text()


def _table(document, header):
  """Rows of the table whose header line starts with `header`, as cells."""
  lines = document[document.index(header) :].splitlines()
  rows = []
  for line in lines[2:]:
    if not line.startswith('|'):
      break
    rows.append([cell.strip() for cell in line.strip('|').split('|')])
  return rows


def _five_lines():
  blocks = re.findall(r'```python\n(.*?)```', _README, re.DOTALL)
  return next(block for block in blocks if 'clip_by_global_norm' in block)


class TableTest(parameterized.TestCase):
  def test_recipes(self):
    for name, *parts, _, _ in _table(_README, '| recipe |'):
      row = recipes.RECIPES[name.strip('`')]
      for role, cell in zip(roles.ROLES, parts, strict=True):
        part = getattr(row, role)
        factor = '' if part.lr_scale == 1 else f' ×{part.lr_scale:g}'
        self.assertEqual(cell, part.method + factor, f'{name}, {role}')

  def test_state_of_the_1_3b_model(self):
    model = config_lib.model_config(llama_1_3b.get_config(), 'cpu')
    params = jax.eval_shape(lambda: llama.init(jax.random.key(0), model))
    for name, *_, cell, _ in _table(_README, '| recipe |'):
      tx = sage_optax.recipe(name.strip('`'), 1e-3)
      gib = sage_optax.memory.state_bytes(tx, params) / 2**30
      self.assertEqual(cell, f'{gib:.2f} GiB', name)

  def test_state_formulas(self):
    rows = {row[0]: row for row in _table(_RECIPES, '| method |')}
    self.assertEqual(set(rows), set(recipes.METHODS), 'docs/recipes.md')
    m, n, d = 7, 5, 6
    for method, (_, transformation, matrix, vector, _) in rows.items():
      name = transformation.strip('`').removeprefix('optax.')
      self.assertEqual(name, recipes.METHODS[method].__name__)
      for formula, kwargs in _formulas(matrix):
        value = _evaluate(formula, m=m, n=n, r=3, l=m, s=n)
        if 'rank' in inspect.signature(recipes.METHODS[method]).parameters:
          kwargs = {'rank': 3, **kwargs}
        self.assertEqual(_elements(method, (m, n), 2, kwargs), value, method)
      takes_vectors = any(
        case.vector_state for case in cases.CASES if case.method == method
      )
      self.assertEqual(vector != '-', takes_vectors, method)
      for formula, kwargs in _formulas(vector) if takes_vectors else ():
        value = _evaluate(formula, d=d)
        self.assertEqual(_elements(method, (d,), 1, kwargs), value, method)
    self.assertLen({case.name for case in cases.CASES}, len(cases.CASES))


def _formulas(cell):
  """'mn + n (axis -2), mn (axis -1)': a formula per value of an argument."""
  found = re.findall(r'([^,(]+?)(?: \((\w+) ([-\w.]+)\))?(?:, |$)', cell)
  return [
    (formula, {name: ast.literal_eval(value)} if name else {})
    for formula, name, value in found
  ]


def _evaluate(formula, **values):
  """'2mn + n' with numbers for the letters."""
  total = 0
  for term in formula.split('+'):
    number, letters = re.fullmatch(r'\s*(\d*)([a-z]*)\s*', term).groups()
    factor = int(number) if number else 1
    total += factor * math.prod(values[letter] for letter in letters)
  return total


def _elements(method, shape, core_ndim, kwargs):
  """Elements of state of one unit, counters left out."""
  part = recipes.Part(method, kwargs)
  tx = recipes.build_method(part, 'vector' if core_ndim == 1 else 'matrix')
  state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct(shape, jnp.float32))
  return sum(
    leaf.size
    for leaf in jax.tree.leaves(state)
    if leaf.ndim and leaf.dtype != jnp.uint32  # a random key
  )


def test_length():
  assert len(_README.splitlines()) <= 200


def test_five_lines():
  params = {'embed': {'embedding': jnp.ones((8, 4))}}
  scope = {'params': params, 'grads': params}
  exec(_five_lines(), scope)
  assert (scope['params']['embed']['embedding'] < 1).all()


def test_own_rules():
  blocks = re.findall(r'```python\n(.*?)```', _README, re.DOTALL)
  block = next(block for block in blocks if 'rules=' in block)
  scope = {'sage_optax': sage_optax}
  exec(block, scope)
  params = {
    'decoder': {'mixer': jnp.ones((8, 512, 64)), 'router': jnp.ones((512, 8))}
  }
  with pytest.raises(ValueError, match='It is not clear') as caught:
    sage_optax.sage_hybrid(0.1).init(params)
  message = f'ValueError: {caught.value}'
  assert f'```\n{message}\n```' in _README
  updates, _ = scope['tx'].update(params, scope['tx'].init(params), params)
  assert (updates['decoder']['mixer'] < 0).all()


def test_the_count_of_routed_parameters():
  outcomes = [leaf_count.count(project) for project in leaf_table.PROJECTS]
  right = sum(found.right for found in outcomes)
  refused = sum(found.refused for found in outcomes)
  text = ' '.join(_README.split())
  assert f'Of {right + refused} parameters of {len(outcomes)} models' in text
  assert f'{right} are right' in text
  assert f'{refused} are refused' in text
