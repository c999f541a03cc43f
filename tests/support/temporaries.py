"""Prints the bytes of temporaries of one step, for temporaries_test.

JSON: name -> bytes, for a tree of 60 million parameters on one device, which
is compiled only.
"""

import json
import sys

import jax

from benchmarks import optimizers_under_test as under_test
from benchmarks import rounds
from configs import llama_60m


def main(names):
  assert jax.device_count() == 1, jax.devices()
  mesh = jax.make_mesh((1,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  tree = under_test.tree(llama_60m.get_config())
  found = {}
  for name in names:
    tx = under_test.make(name, tree, mesh).tx
    found[name] = rounds.compile_update(tx, tree.params).temp_bytes
  print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1:])
