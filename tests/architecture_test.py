"""The walls of the house, read from the syntax trees."""

import ast
import doctest
import importlib
import inspect
import pathlib
import re
import sys

import jax
from absl.testing import parameterized

import sage_optax
from sage_optax import recipes
from tests.support import cases

_ROOT = pathlib.Path(__file__).parent.parent
_FOREIGN = {
  'sage_optax': {'jax', 'optax', 'sage_optax'},
  'models': {'flax', 'jax', 'models', 'numpy'},
  'configs': {'configs', 'train'},
}


_PACKAGES = (
  *('sage_optax', 'models', 'train', 'configs', 'benchmarks', 'experiments'),
  'tests',
)


def _files(folder):
  return sorted((_ROOT / folder).glob('**/*.py'))


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


class WallsTest(parameterized.TestCase):
  @parameterized.parameters(*_FOREIGN)
  def test_imports(self, folder):
    files = _files(folder)
    self.assertNotEmpty(files)
    for path in files:
      for name in _imports(path):
        allowed = _FOREIGN[folder] | sys.stdlib_module_names
        self.assertIn(name.split('.')[0], allowed, path)

  def test_only_public_optax(self):
    for folder in ('sage_optax', 'models', 'train', 'experiments'):
      for path in _files(folder):
        for name in _imports(path):
          self.assertNotRegex(name, r'^(optax|jax)\._|optax\.contrib\._')
        self.assertNotIn('._src', path.read_text(), path)

  @parameterized.parameters(
    ('methods', ('core', 'rounding')),
    ('core', ('core', 'kernels', 'rounding')),
    ('kernels', ('core', 'kernels')),
  )
  def test_folders_of_the_library(self, folder, allowed):
    # So no method uses another, and kernels are reached through core alone.
    paths = _files(f'sage_optax/{folder}')
    self.assertNotEmpty(paths)
    for path in paths:
      for name in _imports(path):
        if name.startswith('sage_optax'):
          self.assertIn(name.split('.')[1], allowed, path)

  def test_configs_import_train_config_only(self):
    for path in _files('configs'):
      for name in _imports(path):
        if name.startswith('train'):
          self.assertRegex(name, r'^train\.config\b', path)

  @parameterized.parameters('sage_optax', 'models', 'train/step.py')
  def test_the_default_backend_is_never_asked(self, where):
    # While planning for another platform it names the wrong one.
    path = _ROOT / where
    for file in [path] if path.suffix else _files(where):
      self.assertNotIn('default_backend', file.read_text(), file)

  def test_method_modules_keep_their_annotations(self):
    # Optax's inject_hyperparams tests read them from the signature.
    for path in _files('sage_optax/methods'):
      self.assertNotIn('__future__', path.read_text(), path)


class CompletenessTest(parameterized.TestCase):
  """Names the place that is missing when a method is added halfway."""

  def test_every_method_has_cases(self):
    have = {case.method for case in cases.CASES}
    self.assertEqual(
      have, set(recipes.METHODS), 'rows of tests/support/cases.py'
    )

  def test_every_method_is_public_and_in_a_recipe(self):
    used = {
      part.method for row in recipes.RECIPES.values() for part in row[1:5]
    }
    self.assertEqual(used, set(recipes.METHODS), 'RECIPES of table.py')
    for function in recipes.METHODS.values():
      self.assertIn(function.__name__, sage_optax.__all__, 'add to __init__.py')

  def test_every_recipe_is_public(self):
    for name in sage_optax.recipe_names():
      self.assertIn(name, sage_optax.__all__, f'add {name} to __init__.py')
      self.assertTrue(callable(getattr(sage_optax, name)))

  def test_every_recipe_has_a_row_in_the_readme(self):
    readme = (_ROOT / 'README.md').read_text()
    rows = set(re.findall(r'^\| `(\w+)`', readme, re.MULTILINE))
    self.assertEqual(rows, set(sage_optax.recipe_names()), 'table of README.md')

  def test_public_functions_are_documented(self):
    for name in sage_optax.__all__:
      thing = getattr(sage_optax, name)
      if inspect.isfunction(thing) and name.startswith('scale_by'):
        for section in ('Args:', 'Returns:', 'Example:', 'References:'):
          self.assertIn(section, inspect.getdoc(thing), name)

  def test_examples_run(self):
    tried = 0
    for path in _files('sage_optax'):
      name = '.'.join(path.relative_to(_ROOT).with_suffix('').parts)
      module = importlib.import_module(name)
      with jax.numpy_rank_promotion('allow'):
        result = doctest.testmod(module)
      self.assertEqual(result.failed, 0, path)
      tried += result.attempted
    self.assertGreater(tried, 20)
