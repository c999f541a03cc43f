"""Who imports whom, and limits of size, read from the syntax trees."""

import ast
import collections
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
from tests.support import cases, mutations

_ROOT = pathlib.Path(__file__).parent.parent
_FOREIGN = {
  'sage_optax': {'jax', 'optax', 'sage_optax'},
  'models': {'flax', 'jax', 'models', 'numpy'},
  'configs': {'configs', 'train'},
}


# Without examples/, whose files are copied one by one and repeat each other.
_PACKAGES = (
  *('sage_optax', 'models', 'train', 'configs', 'benchmarks', 'experiments'),
  *('docs', 'tests'),
)
_MODULES, _LINES, _ARGUMENTS, _REPEATED = 16, 300, 6, 6
_METHODS = pathlib.Path('sage_optax/methods')


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
  @parameterized.parameters(*(name for name in _PACKAGES if name != 'tests'))
  def test_every_module_can_be_imported(self, folder):
    for path in _files(folder):
      parts = path.relative_to(_ROOT).with_suffix('').parts
      importlib.import_module('.'.join(parts))

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
    self.assertEqual(used, set(recipes.METHODS), 'RECIPES of recipe_table.py')
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


def _sources():
  """The Python files of the repository: path -> text."""
  return {
    path.relative_to(_ROOT): path.read_text()
    for folder in _PACKAGES
    for path in _files(folder)
  }


def _full_folders(paths):
  """Folders of more than 16 modules, but for the folder of the methods."""
  counts = collections.Counter(
    path.parent for path in paths if path.name != '__init__.py'
  )
  del counts[_METHODS]  # It grows with every method.
  return [folder for folder, n in counts.items() if n > _MODULES]


def _long_files(sources):
  """Files of more than 300 lines, but for tests."""
  return [
    path
    for path, text in sources.items()
    if path.parts[0] != 'tests' and text.count('\n') > _LINES
  ]


def _wide_functions(sources):
  """Functions of more than 6 arguments.

  Exempt are the public functions of the library, whose arguments are the
  options of a method, as in Optax; tests, whose oracles take the numbers of a
  paper; and functions within functions, since a Pallas kernel takes one
  argument per array.
  """
  found = []
  for path, text in sources.items():
    if path.parts[0] == 'tests':
      continue
    tree = ast.parse(text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for owner in (tree, *classes):
      for node in owner.body:
        if not isinstance(node, ast.FunctionDef):
          continue
        args = node.args
        names = [*args.posonlyargs, *args.args, *args.kwonlyargs]
        count = len([a for a in names if a.arg not in ('self', 'cls')])
        is_public = path.parts[0] == 'sage_optax' and owner is tree
        is_public &= node.name in sage_optax.__all__
        if count > _ARGUMENTS and not is_public:
          found.append(f'{path}: {node.name}')
  return found


def _lines(text):
  """Numbered lines of code, without indentation.

  Left out are lines of brackets only; imports; docstrings and signatures, which
  repeat the options that recipes have in common; and tables, that is,
  assignments in a module.
  """
  tree = ast.parse(text)
  left_out = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      left_out.update(range(node.lineno, node.end_lineno + 1))
    elif isinstance(node, ast.FunctionDef):
      left_out.update(range(node.lineno, node.body[0].lineno))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
      ast.get_docstring(node) is not None
    ):
      docstring = node.body[0]
      left_out.update(range(docstring.lineno, docstring.end_lineno + 1))
  for node in tree.body:
    if isinstance(node, ast.Assign | ast.AnnAssign):
      left_out.update(range(node.lineno, node.end_lineno + 1))
  for number, line in enumerate(text.splitlines(), 1):
    if re.search(r'\w', line) and number not in left_out:
      yield number, ' '.join(line.split())


def _repeated_blocks(sources):
  """Six successive lines that occur twice."""
  places = collections.defaultdict(list)
  for path, text in sources.items():
    lines = list(_lines(text))
    for start in range(len(lines) - _REPEATED + 1):
      block = lines[start : start + _REPEATED]
      places[tuple(line for _, line in block)].append(f'{path}:{block[0][0]}')
  return [where for where in places.values() if len(where) > 1]


class SizeTest(parameterized.TestCase):
  def test_folders_have_few_modules(self):
    self.assertEqual(_full_folders(_sources()), [])
    folder = pathlib.Path('train/new')
    planted = [folder / f'module{i}.py' for i in range(17)]
    self.assertEqual(_full_folders(planted), [folder])
    self.assertEqual(_full_folders([folder / '__init__.py', *planted[1:]]), [])
    methods = [_METHODS / path.name for path in planted]
    self.assertEqual(_full_folders(methods), [])

  def test_files_are_short(self):
    self.assertEqual(_long_files(_sources()), [])
    path = pathlib.Path('train/new.py')
    self.assertEqual(_long_files({path: 'x = 1\n' * 301}), [path])
    self.assertEqual(_long_files({path: 'x = 1\n' * 300}), [])

  def test_interfaces_are_narrow(self):
    self.assertEqual(_wide_functions(_sources()), [])
    path = pathlib.Path('train/new.py')
    planted = 'def f(a, b, c, d, *, e, f, g):\n  pass\n'
    self.assertEqual(_wide_functions({path: planted}), [f'{path}: f'])
    method = 'class A:\n  def f(self, a, b, c, d, e, f, g):\n    pass\n'
    self.assertEqual(_wide_functions({path: method}), [f'{path}: f'])
    self.assertEqual(_wide_functions({path: planted.replace(', g', '')}), [])
    # In the library, only what is public.
    path = pathlib.Path('sage_optax/new.py')
    self.assertEqual(_wide_functions({path: planted}), [f'{path}: f'])
    self.assertEqual(
      _wide_functions({path: planted.replace('f(', 'apollo(')}), []
    )

  def test_no_block_is_repeated(self):
    self.assertEqual(_repeated_blocks(_sources()), [])
    body = '\n\n'.join(f'  call({i})' for i in range(6))
    first, second = pathlib.Path('train/a.py'), pathlib.Path('train/b.py')
    other = f'def g(x):\n  if x:\n{body.replace("  ", "    ")}\n'
    planted = {first: f'def f():\n  pass\n{body}\n', second: other}
    self.assertEqual(_repeated_blocks(planted), [[f'{first}:3', f'{second}:3']])
    planted[second] = other.replace('call(3)', 'call(4)')
    self.assertEqual(_repeated_blocks(planted), [])

  def test_mutations_find_their_text(self):
    # Else a mutation would not be tried once its code has moved.
    for mutation in mutations.MUTATIONS:
      text = (_ROOT / mutation.file).read_text()
      self.assertEqual(text.count(mutation.old), 1, mutation.name)
      for test in mutation.tests.split():
        self.assertTrue((_ROOT / test).exists(), mutation.name)
