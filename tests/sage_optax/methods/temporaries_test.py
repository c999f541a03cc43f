"""Optimizers write no temporary of the size of a matrix, on one CPU."""

import json
import os
import pathlib
import subprocess
import sys

_NAMES = ('lion', 'sage', 'scale', 'sage_hybrid', 'sinkgd_pure')
# A stacked kernel of llama_60m has 22.5 MB, its embedding 65.5.
_LIMIT = 16e6


def test_no_temporary_has_the_size_of_a_kernel():
  # In a process with one device; the tests have eight.
  done = subprocess.run(
    [sys.executable, '-m', 'tests.support.temporaries', *_NAMES],
    cwd=pathlib.Path(__file__).parents[3],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert set(found) == set(_NAMES)
  assert {n: b for n, b in found.items() if b >= _LIMIT} == {}
