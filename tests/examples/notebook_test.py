"""The notebook runs, but for the cells that call a shell."""

import json

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from tests.support import runs

_PATH = runs.ROOT / 'examples' / 'quickstart.ipynb'
_NOTEBOOK = json.loads(_PATH.read_text(encoding='utf-8'))


def _code(tag=None):
  return [
    ''.join(cell['source'])
    for cell in _NOTEBOOK['cells']
    if cell['cell_type'] == 'code'
    and cell['metadata'].get('tags', []) == ([tag] if tag else [])
  ]


def test_is_in_the_format_of_notebooks():
  assert _NOTEBOOK['nbformat'] == 4
  identifiers = [cell['id'] for cell in _NOTEBOOK['cells']]
  assert len(set(identifiers)) == len(identifiers)
  for cell in _NOTEBOOK['cells']:
    expected = {'id', 'cell_type', 'metadata', 'source'}
    if cell['cell_type'] == 'code':
      expected |= {'execution_count', 'outputs'}
      assert cell['outputs'] == []  # Nothing of a run is kept.
    assert set(cell) == expected


def test_has_the_lines_of_the_readme():
  readme = (runs.ROOT / 'README.md').read_text()
  start = readme.index('tx = optax.chain(')
  lines = readme[start : readme.index('```', start)].strip()
  assert any(lines in cell for cell in _code())
  (command,) = _code('shell')
  assert 'configs/quickstart.py' in command


@pytest.mark.nightly
def test_cells_run(capsys):
  mpl.use('Agg')
  scope = {}
  with jax.numpy_rank_promotion('allow'):
    for cell in _code():
      exec(cell.replace('4, 32, 200\n', '4, 32, 9\n'), scope)
  plt.close('all')
  assert scope['STEPS'] == 9
  for losses in scope['curves'].values():
    assert losses[-1] < losses[0]
  printed = capsys.readouterr().out
  assert 'recipe sage_hybrid' in printed
  assert 'adamw: loss' in printed
