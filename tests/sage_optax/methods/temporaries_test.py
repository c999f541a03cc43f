"""Optimizers write no temporary of the size of a matrix, on one CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

# A stacked kernel of llama_60m has 22.5 MB, its embedding 65.5.
_LIMIT = 16e6


@pytest.mark.parametrize(
  'names',
  [
    ('scale', 'sage_hybrid'),
    pytest.param(('lion', 'sage', 'sinkgd_pure'), marks=pytest.mark.nightly),
  ],
)
def test_no_temporary_has_the_size_of_a_kernel(names):
  # In a process with one device; the tests have eight.
  done = subprocess.run(
    [sys.executable, '-m', 'tests.support.temporaries', *names],
    cwd=pathlib.Path(__file__).parents[3],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert set(found) == set(names)
  assert {n: b for n, b in found.items() if b >= _LIMIT} == {}
