"""Each target of the fuzzer finds nothing in a few inputs."""

import pytest

from tests import fuzz

pytestmark = pytest.mark.nightly


@pytest.fixture(scope='module', name='good')
def _good(tmp_path_factory):
  root = tmp_path_factory.mktemp('fuzz') / 'good'
  fuzz.write_good(root)
  return root


@pytest.mark.parametrize('name', fuzz.TARGETS)
def test_finds_nothing(name, good):
  counts = fuzz.fuzz(fuzz.TARGETS[name], good, examples=20, seed=0)
  assert counts.total() >= 20
  assert len(counts) > 1 or name == 'json_lines', counts


def test_finds_what_is_accepted(good):
  def accept(draw, root):
    name = fuzz.shard(draw, root)
    if name == 'refused':
      raise fuzz.Found(name)
    return name

  with pytest.raises(fuzz.Found):
    fuzz.fuzz(accept, good, examples=20, seed=0)
