"""Optax's own tests of its contributed optimizers, run on our recipes.

The wheel of Optax ships them, with the optimizers under test in two module
constants; they are loaded with those rows exchanged for ours.
"""

import importlib.util
import pathlib
from unittest import mock

import optax
from absl.testing import absltest, parameterized

import sage_optax

_LEARNING_RATES = {
  'adamw': 1e-3,
  'lion': 1e-3,
  'sage': 1e-3,
  'sage_hybrid': 1e-3,
  'lion_hybrid': 1e-3,
  'sinkgd': 1e-2,
  'sinkgd_pure': 1e-3,
  'stable_spam': 1e-3,
  'spam': 1e-3,
  'sgd_sai': 1e-3,
  'scale': 1e-3,
  'apollo': 1e-3,
  'apollo_mini': 1e-3,
  'galore': 1e-2,
  'fira': 1e-3,
  'swan': 1e-3,
  'muon': 1e-3,
  'muon_eq': 1e-3,
  'sage_muon': 1e-3,
  'sage_scale': 1e-3,
  'adafactor': 1e-3,
  'adam_mini': 1e-3,
  'coupled_adam': 1e-3,
}
# SWAN's centring keeps the mean of a unit where it is, which is not where the
# targets are.
_ARGUMENTS = {'swan': {'center': False}}
_IN_BFLOAT16 = ('sage', 'galore', 'stable_spam')


def _row(name, **more):
  rate = _LEARNING_RATES[name]
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


def _load():
  product = parameterized.product

  def our_product(*rows, **kwargs):
    if rows and rows[0][0].keys() >= {'opt_name'}:
      rows = (_ROWS, *rows[1:])
    return product(*rows, **kwargs)

  path = pathlib.Path(optax.contrib.__file__).parent / '_common_test.py'
  spec = importlib.util.spec_from_file_location('optax_contrib_tests', path)
  module = importlib.util.module_from_spec(spec)
  with mock.patch.object(parameterized, 'product', our_product):
    spec.loader.exec_module(module)
  module._get_opt_factory = lambda name: getattr(sage_optax, name)
  return module


_module = _load()


class ContribTest(_module.ContribTest):
  def test_rows_are_ours(self):
    names = [n for n in dir(self) if n.startswith('test_optimizers')]
    self.assertGreater(len(names), 4 * len(_ROWS))
    self.assertEqual(
      {row['opt_name'] for row in _ROWS}, set(sage_optax.recipe_names())
    )


if __name__ == '__main__':
  absltest.main()
