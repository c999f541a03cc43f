"""Compiles updates for a TPU ahead of time; no TPU is needed.

Every method is compiled in its own process, which has a time limit.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent import futures
from typing import Any

from train.plan import hbm_bytes, hlo, hlo_walk, targets

TOPOLOGY = 'v5e:1x1'
_SECONDS = 180  # time limit per method
_AT_ONCE = 2  # concurrent compilations


@dataclasses.dataclass(frozen=True)
class Figures:
  """One update and its application on one chip.

  Attributes:
    bytes: Bytes read from and written to main memory.
    temp_bytes: Size of the temporaries.
    cycles: The compiler's estimate, with loops multiplied by their trip count.
    kernels: Calls of Pallas kernels, whose cycles the compiler does not know.
    note: How the compiled program differs from the request, or why it failed.
  """

  bytes: int | None = None
  temp_bytes: int | None = None
  cycles: int | None = None
  kernels: int = 0
  note: str = ''


def figures(names: Sequence[str], size: str) -> dict[str, Figures]:
  """Returns the figures of the named optimizers, or a note on the failure."""
  with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    found = pool.map(lambda name: _figures(name, size), names)
    return dict(zip(names, found, strict=True))


def _figures(name: str, size: str) -> Figures:
  target = targets.parse(TOPOLOGY)
  command = [sys.executable, '-m', 'benchmarks.on_tpu', name, size]
  try:
    done = subprocess.run(
      command,
      env=os.environ | targets.environment(target),
      cwd=pathlib.Path(__file__).parent.parent,
      capture_output=True,
      text=True,
      timeout=_SECONDS,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return Figures(note=f'not compiled within {_SECONDS} s')
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no message']
    return Figures(note=f'not compiled: {lines[-1][:200]}')
  return Figures(**json.loads(done.stdout.splitlines()[-1]))


def estimated_cycles(module: hlo.Module) -> int:
  """Returns the compiler's estimate, loops multiplied by their trip count."""
  total = 0
  for visit in hlo_walk.walk(module):
    text = visit.instruction.attributes
    match = re.search(r'"estimated_cycles":"?(\d+)', text)
    if match and not visit.fused:
      total += visit.times * int(match[1])
  return total


def compile_here(name: str, size: str) -> Figures:
  """Compiles an optimizer in this process."""
  import jax
  from jax.sharding import Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from benchmarks import optimizers_under_test as under_test
  from benchmarks import rounds

  target = targets.parse(TOPOLOGY)
  mesh = Mesh(targets.devices(target), ('fsdp',))
  config = under_test.SIZES[size]()
  options, note = _plannable(name, config, target)
  optimizer = under_test.make(name, under_test.tree(config), mesh, **options)
  params = under_test.tree(config).params
  if optimizer.unstacked:
    params = jax.eval_shape(under_test.unstack, params)
  params, state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, P())
    ),
    (params, jax.eval_shape(optimizer.tx.init, params)),
  )
  compiled = rounds.lower(optimizer.tx, params, state).compile()
  module = hlo.parse(compiled.as_text())
  return Figures(
    # Each Pallas kernel counts as reading its inputs once, which it does.
    bytes=hbm_bytes.accessed(module),
    temp_bytes=compiled.memory_analysis().temp_size_in_bytes,
    cycles=estimated_cycles(module),
    kernels=kernels(module),
    note=note,
  )


def kernels(module: hlo.Module) -> int:
  """Returns the number of calls of Pallas kernels."""
  return sum(
    visit.times
    for visit in hlo_walk.walk(module)
    if visit.instruction.opcode == 'custom-call'
    and 'tpu_custom_call' in visit.instruction.attributes
  )


def _plannable(
  name: str, config: Any, target: targets.Target
) -> tuple[dict[str, Any], str]:
  """Returns options that make a recipe compile in reasonable time, and why."""
  import sage_optax
  from train.plan import measure

  if name not in sage_optax.recipe_names():
    return {}, ''
  config.optimizer.recipe = name
  config.optimizer.learning_rate = 1e-3
  changed, notes = measure.plannable(config, target)
  if not notes:
    return {}, ''
  return {'projector': changed.optimizer.projector}, '; '.join(notes)


if __name__ == '__main__':
  print(json.dumps(dataclasses.asdict(compile_here(*sys.argv[1:]))))
