"""Optimizers are not much slower than they were; benchmarks/ has how fast.

Only ratios and bytes are compared, never times. A limit is five times what is
reached: a broken fast form is far above, a busy machine is not.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# To optax.adamw: what benchmarks/README.md has, times five.
_LIMITS = {
  'lion': 3.75,
  'sage': 5.0,
  'scale': 5.0,
  'sage_hybrid': 5.5,
  'sinkgd_pure': 7.5,
}
# A stacked kernel of llama_60m has 22.5 MB, its embedding 65.5.
_TEMPORARIES = 16e6


@functools.cache
def _raced():
  """Results of a process with one device; the tests have eight."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.support.racing', 'optax.adamw', *_LIMITS],
    cwd=pathlib.Path(__file__).parents[3],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize('name', _LIMITS)
def test_time(name):
  found = _raced()
  ratio = found[name]['seconds'] / found['optax.adamw']['seconds']
  assert ratio < _LIMITS[name]


@pytest.mark.parametrize('name', _LIMITS)
def test_no_temporary_has_the_size_of_a_kernel(name):
  assert _raced()[name]['temp_bytes'] < _TEMPORARIES
