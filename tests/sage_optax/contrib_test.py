"""Optax's own tests of its contributed optimizers, run on our recipes.

The wheel of Optax ships them, with the optimizers under test in two module
constants; they are loaded with those rows exchanged for ours.
"""

import importlib.util
import pathlib
from unittest import mock

import optax
import pytest
from absl.testing import absltest, parameterized

import sage_optax

# The others learn with 1e-3.
_LEARNING_RATES = {'sinkgd': 1e-2, 'galore': 1e-2, 'rms_muon': 4e-3}
# SWAN's centering keeps the mean of a unit where it is, which is not where the
# targets are.
_ARGUMENTS = {'swan': {'center': False}}
_IN_BFLOAT16 = ('sage', 'galore', 'stable_spam')


def _row(name, **more):
  rate = _LEARNING_RATES.get(name, 1e-3)
  return {
    'opt_name': name,
    'opt_kwargs': {
      'learning_rate': rate,
      'default_role': 'auto',  # One vector without a name is a vector.
      **_ARGUMENTS.get(name, {}),
      **more,
    },
    'wrapper_name': None,
    'wrapper_kwargs': None,
  }


_ROWS = (
  *(_row(name) for name in sage_optax.recipe_names()),
  *(_row(name, state_dtype='bfloat16') for name in _IN_BFLOAT16),
)


# A recipe for each method, and three that combine methods.
_FEW = tuple(
  row
  for row in _ROWS
  if row['opt_name'] not in ('sinkgd', 'apollo_mini', 'muon_eq', 'sage_scale')
  and 'state_dtype' not in row['opt_kwargs']
)


def _load(rows, choose):
  """Optax's module of tests with our rows.

  Args:
    rows: the optimizers under test.
    choose: the values of a test's other argument -> those to be tried.
  """
  product = parameterized.product

  def our_product(theirs, **kwargs):
    if theirs and theirs[0].keys() >= {'opt_name'}:
      theirs = rows
      kwargs = {name: choose(values) for name, values in kwargs.items()}
    return product(theirs, **kwargs)

  path = pathlib.Path(optax.contrib.__file__).parent / '_common_test.py'
  spec = importlib.util.spec_from_file_location('optax_contrib_tests', path)
  module = importlib.util.module_from_spec(spec)
  with mock.patch.object(parameterized, 'product', our_product):
    spec.loader.exec_module(module)
  module._get_opt_factory = lambda name: getattr(sage_optax, name)
  return module.ContribTest


class ContribTest(_load(_FEW, lambda values: values[-1:])):
  """On the last of each test's values: trees, float64."""


@pytest.mark.nightly
class AllContribTest(_load(_ROWS, lambda values: values)):
  def test_rows_are_ours(self):
    names = [n for n in dir(self) if n.startswith('test_optimizers')]
    self.assertGreater(len(names), 4 * len(_ROWS))
    self.assertEqual(
      {row['opt_name'] for row in _ROWS}, set(sage_optax.recipe_names())
    )


if __name__ == '__main__':
  absltest.main()
