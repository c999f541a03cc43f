"""Each file of examples/ runs, and trains."""

import importlib.util
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest

from tests.support import runs
from train.hf import files

_FILES = sorted(
  path
  for path in (runs.ROOT / 'examples').glob('*.py')
  if path.stem != '__init__'
)
_LLAMA3 = pathlib.Path(__file__).parents[1] / 'fixtures' / 'hf_llama3'
# The others train for a few steps on sequences that count.
_OPTIONS = {'maxtext_factory': {'steps': 5}, 'vit': {'steps': 5}}


def _main(name, *args, **kwargs):
  scope = runpy.run_path(str(runs.ROOT / 'examples' / f'{name}.py'))
  # A random key that is used twice is an error.
  with jax.numpy_rank_promotion('allow'), jax.debug_key_reuse(True):
    return scope['main'](*args, **kwargs)


@pytest.mark.parametrize('name', [path.stem for path in _FILES])
def test_runs(name, tmp_path, capsys):
  args = []
  if name == 'hf_import':
    args = [str(_LLAMA3), str(tmp_path / 'new')]
  losses = _main(name, *args, **_OPTIONS.get(name, {'steps': 20}))
  assert np.isfinite(losses).all()
  assert losses[-1] < losses[0]
  printed = capsys.readouterr().out
  assert f'{losses[0]:.2f}'[:3] in printed
  assert 'recipe sage_hybrid' in printed  # what every parameter gets
  if args:
    config, old = (
      files.read_json(path / files.CONFIG)
      for path in (tmp_path / 'new', _LLAMA3)
    )
    assert config == old | {'dtype': 'float32'}
    weights = files.Weights(tmp_path / 'new')
    assert {weights[name].dtype.name for name in weights} == {'float32'}


@pytest.mark.parametrize(
  ('args', 'fragment'),
  [
    ((), 'usage: '),
    (('{tmp}',), 'config.json'),
    ((str(_LLAMA3), '{tmp}'), 'exists'),
  ],
)
def test_import_refuses_bad_arguments_before_it_trains(
  args, fragment, tmp_path, monkeypatch, capsys
):
  path = str(runs.ROOT / 'examples' / 'hf_import.py')
  args = [arg.format(tmp=tmp_path) for arg in args]
  monkeypatch.setattr('sys.argv', [path, *args])
  with pytest.raises(SystemExit) as end:
    runpy.run_path(path, run_name='__main__')
  assert end.value.code == 2
  out, err = capsys.readouterr()
  assert not out
  assert fragment in err


def test_the_page_lists_all():
  page = (runs.ROOT / 'docs' / 'examples.md').read_text()
  named = re.findall(r'^\| `(.*?)`', page, re.MULTILINE)
  assert sorted(named) == [path.name for path in _FILES]


@pytest.mark.parametrize('path', _FILES, ids=lambda path: path.stem)
def test_can_be_copied(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 80
  assert f'python examples/{path.name}' in text
  # A script's folder comes first in the search for modules.
  assert importlib.util.find_spec(path.stem) is None
