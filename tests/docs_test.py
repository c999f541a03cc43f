"""The generated pages are what the code says today."""

import pathlib
import re

import pytest
from absl.testing import parameterized

from docs import choices, conformance, pages
from sage_optax import recipes
from tests.support import replays
from train.config import help as config_help

_DOCS = pathlib.Path(conformance.__file__).parent
_AGAIN = 'python -m docs.generate writes them again'
_PACKAGES = ('sage_optax', 'models', 'train')
_FOLDERS = ('configs', 'benchmarks', 'examples', 'experiments')
_WITH_PAGES = (
  'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'benchmarks', 'docs', 'tests',
)  # fmt: skip


class PagesTest(parameterized.TestCase):
  def test_are_up_to_date(self):
    made = pages.all_pages()
    files = {p.stem: p.read_text() for p in (_DOCS / 'methods').glob('*.md')}
    self.assertEqual(set(files), set(made), _AGAIN)
    for name, text in made.items():
      self.assertEqual(files[name], text, f'{name}: {_AGAIN}')
    configuration = (_DOCS / 'configuration.md').read_text()
    self.assertEqual(configuration, config_help.markdown(), _AGAIN)

  @parameterized.parameters(*pages.FUNCTIONS)
  def test_are_whole(self, name):
    text = pages.page(name, pages.FUNCTIONS[name])
    for part in (
      '```math',
      '## Learning rates',
      '## Arguments',
      '## Returns',
      '## Example',
      '## References',
    ):
      self.assertIn(part, text)
    self.assertRegex(text, 'State', 'what it keeps per parameter')
    self.assertNotIn('.. math::', text)
    self.assertNotIn(':math:', text)

  def test_arguments_are_all_told(self):
    for name, function in pages.FUNCTIONS.items():
      told = re.findall(
        r'^\| `(\w+)` \|', pages.page(name, function), re.MULTILINE
      )
      expected = list(pages.inspect.signature(function).parameters)
      self.assertEqual(told, expected, name)


class LinksTest(parameterized.TestCase):
  def test_files_and_headings_exist(self):
    root = _DOCS.parent
    headings, links = {}, []
    for path in (*root.glob('*.md'), *root.glob('*/**/*.md')):
      if path.relative_to(root).parts[0] not in _WITH_PAGES:
        continue
      text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
      headings[path] = {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in re.findall(r'^#+ (.*)$', text, re.MULTILINE)
      }
      for link in re.findall(r'\]\((?!https?:)([^)\s]+)\)', text):
        links.append((path, *link.partition('#')[::2]))
    self.assertGreater(len(links), 100)
    for path, file, anchor in links:
      target = (path.parent / file).resolve() if file else path
      self.assertTrue(target.exists(), f'{path}: {file}')
      if anchor:
        self.assertIn(anchor, headings[target], f'{path}: {file}#{anchor}')


class ConformanceTest(parameterized.TestCase):
  def test_every_method_has_its_choices_and_replays(self):
    methods = set(recipes.METHODS)
    self.assertEqual(set(choices.CHOICES), methods, 'docs/choices.py')
    replayed = {replay.method for replay in replays.REPLAYS}
    self.assertEqual(
      methods - replayed,
      set(choices.NOT_RECORDED),
      'rows of tests/support/replays.py',
    )

  @pytest.mark.nightly
  def test_table_is_measured(self):
    told = (_DOCS / 'conformance.md').read_text().splitlines()
    measured = conformance.page().splitlines()
    self.assertEqual(len(told), len(measured), _AGAIN)
    for told_line, line in zip(told, measured, strict=True):
      for cell, ours in zip(told_line.split('|'), line.split('|'), strict=True):
        if cell == ours:
          continue
        # The last digit shown may fall on its other side elsewhere.
        self.assertAlmostEqual(float(cell) / float(ours), 1.0, delta=0.5)


def test_architecture_names_existing_files():
  text = (_DOCS / 'architecture.md').read_text()
  names = re.findall(r'`((?:[\w.-]+/)+[\w.-]*|\w+\.md)`', text)
  assert len(names) > 30
  for name in names:
    path = _DOCS.parent / name
    assert path.exists(), f'docs/architecture.md names {name}, which is missing'


def test_architecture_names_every_folder():
  text = (_DOCS / 'architecture.md').read_text()
  packages = {
    path.parent.relative_to(_DOCS.parent).as_posix() + '/'
    for root in (*_PACKAGES, *_FOLDERS)
    for path in (_DOCS.parent / root).rglob('__init__.py')
  }
  named = set(re.findall(r'^\| `([\w/]+/)` \|', text, re.MULTILINE))
  assert packages <= named, f'docs/architecture.md lacks {packages - named}'
