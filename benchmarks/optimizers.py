"""Times optimizer steps: python -m benchmarks.optimizers.

The optimizers update the same stacked Llama with the same gradients on one CPU
device, one after the other in several rounds. The jitted step is the update and
its application, with parameters and state donated. README.md describes the
columns.
"""

import argparse
import dataclasses
import gc
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import on_tpu, results, rounds, torch_optimizers
from benchmarks import optimizers_under_test as under_test
from train.errors import UserError
from train.plan import targets

_MIB = 2**20
_NAME = 'optimizers'
_SLOW_FIRST_STEP = 5  # times an ordinary step
_PROJECTORS = ('apollo', 'fira', 'galore', 'soap')


@dataclasses.dataclass(frozen=True)
class Row:
  """An optimizer's figures on one tree.

  Attributes:
    name: Name of the optimizer.
    timing: Its times, and the ratio to the baseline's.
    floor: Its median divided by the shortest time to move floor_bytes.
    floor_bytes: Bytes that any update with this state must move; None for
      PyTorch's.
    state_bytes: Size of its state.
    temp_bytes: Size of the temporaries.
    compile_seconds: Compilation time.
    first_seconds: Time of a run's first step, if measured.
    tpu: Figures of the TPU compiler, if requested.
  """

  name: str
  timing: rounds.Timing
  floor: float | None = None
  floor_bytes: int | None = None
  state_bytes: int | None = None
  temp_bytes: int | None = None
  compile_seconds: float | None = None
  first_seconds: float | None = None
  tpu: on_tpu.Figures | None = None


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  args = _parser().parse_args(argv)
  try:
    _check(args)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  # Compilation is timed.
  jax.config.update('jax_enable_compilation_cache', False)
  machine = results.machine()
  tables = {}
  for size in args.params:
    tables[size] = _measure(size, args, machine)
    gc.collect()
  text = markdown(tables, machine)
  print(text)
  if args.json:
    found = {
      'machine': machine,
      'rows': {k: list(map(dataclasses.asdict, v)) for k, v in tables.items()},
    }
    args.json.write_text(json.dumps(found, indent=2) + '\n')
  if args.markdown:
    results.put(args.markdown, _NAME, text)
  return 0


def _check(args: argparse.Namespace) -> None:
  """Raises UserError if the benchmark cannot be run."""
  every = (*under_test.names(), *torch_optimizers.NAMES)
  for option, given, known in (
    ('--params', args.params, tuple(under_test.SIZES)),
    ('--methods', args.methods or (), every),
  ):
    if unknown := [name for name in given if name not in known]:
      raise UserError(
        f'{option} has {unknown[0]!r}: use some of {", ".join(known)}'
      )
  if args.tpu:
    targets.check_installed(targets.parse(on_tpu.TOPOLOGY))
  if jax.device_count() != 1 or jax.default_backend() != 'cpu':
    raise UserError(
      f'got {jax.device_count()} {jax.default_backend()} devices, expected one '
      'CPU: set JAX_PLATFORMS=cpu and unset XLA_FLAGS'
    )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.optimizers',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )

  def names(text: str) -> list[str]:
    return text.split(',')

  add = parser.add_argument
  sizes = ','.join(under_test.SIZES)
  add('--params', type=names, default=names(sizes), help=f'some of {sizes}')
  add('--methods', type=names, help='comma-separated names (default: all)')
  add('--rounds', type=int, default=5, help='timings of each; slow ones have 2')
  add('--tpu', action='store_true', help='compile the first size for a TPU')
  add('--torch-python', default=sys.executable, help='Python that has torch')
  results.add_outputs(parser)
  return parser


def _measure(size: str, args: Any, machine: dict[str, Any]) -> list[Row]:
  """Compiles and times the optimizers on the tree of one size."""
  to = under_test.tree(under_test.SIZES[size]())
  tensors = rounds.Tensors(to)
  ours = {}
  for name in chosen(args.methods):
    _say(f'{size}: compiling {name}')
    optimizer = under_test.make(name, to, _one_device())
    ours[name] = rounds.JaxOptimizer(optimizer, tensors)
  first = {}
  # Decompositions take minutes on larger trees, so time them on the first only.
  for name in ours if size == next(iter(under_test.SIZES)) else ():
    _say(f'{size}: first step of {name}')
    first[name] = ours[name].first_step()
  python = args.torch_python
  with torch_optimizers.start(python, torch_shapes(to)) as (theirs, versions):
    machine['versions'] |= versions
    wanted = args.methods or torch_optimizers.NAMES
    theirs = [optimizer for optimizer in theirs if optimizer.name in wanted]
    found = rounds.time_rounds(
      [*ours.values(), *theirs], args.rounds, lambda s: _say(f'{size}: {s}')
    )
  timings = rounds.summary(found, under_test.BASELINE)
  floor = ours[under_test.FLOOR]
  speed = floor.floor_bytes / timings[under_test.FLOOR].ms
  tpu = {}
  if args.tpu and size == args.params[0]:
    _say(f'{size}: compiling for {on_tpu.TOPOLOGY}')
    tpu = on_tpu.figures(list(ours), size)
  _say('')
  return [
    Row(
      name=name,
      timing=timings[name],
      floor=timings[name].ms * speed / optimizer.floor_bytes,
      floor_bytes=optimizer.floor_bytes,
      state_bytes=optimizer.state_bytes,
      temp_bytes=optimizer.compiled.temp_bytes,
      compile_seconds=optimizer.compiled.seconds,
      first_seconds=first.get(name),
      tpu=tpu.get(name),
    )
    for name, optimizer in ours.items()
  ] + [Row(name=x.name, timing=timings[x.name]) for x in theirs]


def chosen(methods: Sequence[str] | None) -> list[str]:
  """Returns the chosen JAX optimizers, always including the references."""
  always = (under_test.BASELINE, under_test.FLOOR)
  return [
    name
    for name in under_test.names()
    if methods is None or name in always or name in methods
  ]


def torch_shapes(
  to: under_test.Tree,
) -> list[tuple[tuple[int, ...], bool]]:
  """Returns the parameters with unstacked layers, as PyTorch stores them."""
  params = jax.eval_shape(under_test.unstack, to.params)
  roles = {**to.roles, 'layers': [to.roles['layers']] * len(params['layers'])}
  return [
    (leaf.shape, role == 'matrix')
    for leaf, role in zip(
      jax.tree.leaves(params), jax.tree.leaves(roles), strict=True
    )
  ]


def markdown(tables: dict[str, list[Row]], machine: dict[str, Any]) -> str:
  """Returns the report."""
  blocks = [results.caption(machine)]
  for size, rows in tables.items():
    params = under_test.tree(under_test.SIZES[size]()).params
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    floor = next(row for row in rows if row.name == under_test.FLOOR)
    speed = (floor.floor_bytes or 0) / floor.timing.ms / 1e6
    blocks.append(
      f'{count:,} parameters of `{under_test.SIZES[size].__module__}`, '
      f'float32; memory at {speed:.1f} GB/s.'
    )
    blocks.append(_table(rows))
    blocks += [
      f'{row.name}: the first step and any step that renews projectors take '
      f'{row.first_seconds:.1f} s.'
      for row in rows
      if row.name.removeprefix('optax.') in _PROJECTORS
      and (row.first_seconds or 0) > _SLOW_FIRST_STEP * row.timing.ms / 1e3
    ]
    blocks += [
      f'{row.name} for TPU: {row.tpu.note}.'
      for row in rows
      if row.tpu and row.tpu.note
    ]
  return '\n\n'.join(blocks)


def _table(rows: Sequence[Row]) -> str:
  with_tpu = any(row.tpu for row in rows)
  header = [
    *('optimizer', 'ms', 'quartiles', '× adamw', '× floor', 'state, MiB'),
    *('temporary, MiB', 'compiled, s'),
  ]
  if with_tpu:
    header += ['TPU: GB', '× adamw', 'temporary, MiB', 'Mcycles']
  base = next(row for row in rows if row.name == under_test.BASELINE)
  return results.table(
    header,
    [_cells(row) + (_tpu_cells(row, base) if with_tpu else []) for row in rows],
  )


def _cells(row: Row) -> list[str]:
  timing, number = row.timing, results.number
  return [
    row.name,
    number(timing.ms, 1),
    f'{timing.low:,.1f} – {timing.high:,.1f}',
    number(timing.ratio),
    number(row.floor),
    number(_mib(row.state_bytes), 1),
    number(_mib(row.temp_bytes), 1),
    number(row.compile_seconds, 1),
  ]


def _tpu_cells(row: Row, base: Row) -> list[str]:
  tpu, number = row.tpu or on_tpu.Figures(), results.number
  if tpu.bytes is None or tpu.cycles is None:
    return ['-'] * 4
  ratio = '-'
  if base.tpu and base.tpu.bytes:
    ratio = number(tpu.bytes / base.tpu.bytes)
  cycles = number(tpu.cycles / 1e6)
  if tpu.kernels:
    cycles += f' + {tpu.kernels} kernels'
  temporary = number(_mib(tpu.temp_bytes), 1)
  return [number(tpu.bytes / 1e9), ratio, temporary, cycles]


def _mib(value: int | None) -> float | None:
  return None if value is None else value / _MIB


def _one_device() -> Any:
  auto = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((1,), ('fsdp',), axis_types=auto)


def _say(line: str) -> None:
  """Shows the progress, on a terminal only."""
  if sys.stderr.isatty():
    print(f'\r\x1b[K{line}', end='', file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
