"""Races optimizers on a small tree, on one device, for speed_test.

Prints JSON: name -> seconds of the fastest step, and bytes of the temporaries
of a step on a larger tree, which is only compiled.
"""

import json
import sys

import jax

from benchmarks import optimizers_under_test as under_test
from benchmarks import rounds
from configs import llama_60m, quickstart

_ROUNDS = 5


def tree():
  """About 5 million parameters: too many for a CPU's caches."""
  config = quickstart.get_config()
  config.model.vocab_size = 8192
  config.model.hidden_size = 256
  config.model.intermediate_size = 704
  return under_test.tree(config)


def main(names):
  assert jax.device_count() == 1, jax.devices()
  to = tree()
  tensors = rounds.Tensors(to)
  mesh = jax.make_mesh((1,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  racers = [
    rounds.Subject(under_test.make(name, to, mesh), tensors) for name in names
  ]
  found = rounds.race(racers, _ROUNDS)
  large = under_test.tree(llama_60m.get_config())
  result = {}
  for name in names:
    tx = under_test.make(name, large, mesh).tx
    result[name] = {
      # The fastest of many: what else the machine does slows the others.
      'seconds': min(min(turn) for turn in found[name]),
      'temp_bytes': rounds.compile_update(tx, large.params).temp_bytes,
    }
  print(json.dumps(result))


if __name__ == '__main__':
  main(sys.argv[1:])
