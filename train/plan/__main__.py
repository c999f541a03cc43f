"""Plans a run: python -m train.plan --config configs/<name>.py --topology ...

Compiles the trainer's own step ahead of time for hardware you don't have, and
prints memory, traffic and a lower bound of the time for every recipe. Exit
status: 0; 1 if a compiler fails; 2 for bad input, with a one-line message.
docs/planning.md explains the columns.
"""

import argparse
import json
import os
import re
import sys
from typing import Any

from train import errors, files


def _parser() -> argparse.ArgumentParser:
  parser = errors.Parser(
    prog='python -m train.plan',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    epilog='Override fields of the configuration as for train.main, such as '
    '--config.train.microbatch=64.',
  )
  add = parser.add_argument
  add('--config', required=True, help='configuration file')
  add(
    '--topology', required=True, help='v5e:4x4, v5p:2x2x4, h100:8, cpu:8, ...'
  )
  add('--recipes', help='comma-separated names, or all (default: the config)')
  add('--mesh', help='axis=size,...; other axes are 1 (default: config.mesh)')
  add('--batch', type=int, help='sequences per step (default: the config)')
  add('--find-batch', action='store_true', help='find the largest batch')
  add(
    '--collectives',
    action='store_true',
    help='report only what each optimizer communicates',
  )
  add(
    '--no-advice',
    action='store_true',
    help='do not search for changes that make a recipe fit',
  )
  add(
    '--quick',
    action='store_true',
    help='compile with less effort (TPUs only); leaves out bytes and time',
  )
  add('--json', type=files.path, metavar='FILE', help='write all figures')
  add('--png', type=files.path, metavar='FILE', help='draw the peaks')
  add(
    '--markdown',
    type=files.path,
    metavar='FILE',
    help='write the table into a document, replacing the previous one',
  )
  return parser


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  # Set before jax is imported: nothing runs, and libtpu would print warnings.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from train.plan import sweep as sweep_lib

  parser = _parser()
  args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
  for option in ('find_batch', 'quick', 'png', 'markdown'):
    if args.collectives and getattr(args, option):
      name = option.replace('_', '-')
      parser.error(f'give --collectives or --{name}, not both')
  try:
    return _run(args, _overrides(args, rest))
  except (errors.UserError, OSError) as error:
    print(f'error: {errors.of_system(error) or error}', file=sys.stderr)
    return 2
  except sweep_lib.Failure as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    return 130


def _overrides(args: argparse.Namespace, rest: list[str]) -> list[str]:
  """Returns overrides of the configuration, such as 'train.steps=10'."""
  result = []
  for arg in rest:
    match = re.fullmatch(r'--?config\.(.+=.*)', arg)
    if match is None:
      raise errors.UserError(
        f'unexpected argument {arg!r}: set fields of the configuration with '
        '--config.section.field=value; --help lists the other arguments'
      )
    result.append(match[1])
  if args.mesh:
    sizes = {'data': 1, 'fsdp': 1, 'tensor': 1}
    for item in args.mesh.split(','):
      match = re.fullmatch(r'(data|fsdp|tensor)=(-?\d+)', item)
      if match is None:
        raise errors.UserError(
          f'--mesh has {item!r}: give axis=size, such as data=2,fsdp=8; the '
          'axes are data, fsdp and tensor'
        )
      sizes[match[1]] = int(match[2])
    result += [f'mesh.{axis}={size}' for axis, size in sizes.items()]
  if args.batch is not None:
    result.append(f'train.batch_size={args.batch}')
  return result


def _recipes(args: argparse.Namespace, overrides: list[str]) -> list[str]:
  import sage_optax
  from train import config as config_lib
  from train.plan import targets

  if args.recipes == 'all':
    names = list(sage_optax.recipe_names())
    if targets.parse(args.topology).chip.platform == 'tpu':
      names.remove('soap')
      print(
        'soap is left out: its eigenvectors do not compile for TPUs in '
        'reasonable time; name it in --recipes to wait for it',
        file=sys.stderr,
      )
    return names
  if args.recipes:
    return args.recipes.split(',')
  rate = 'optimizer.learning_rate=0.001'
  return [config_lib.load(args.config, rate, *overrides).optimizer.recipe]


def _check_outputs(args: argparse.Namespace) -> None:
  """Raises UserError if an output cannot be written; plans take hours."""
  from train import files

  if args.png and args.png.suffix != '.png':
    raise errors.UserError(f'--png is {str(args.png)!r}: give a .png file')
  for option in ('json', 'png', 'markdown'):
    path = getattr(args, option)
    if path is None:
      continue
    reason = 'its directory is missing, or its permissions forbid it'
    writable = False
    try:
      # Not a directory or a FIFO, and a document is text.
      (files.read_text if option == 'markdown' else files.read_bytes)(path)
      writable = os.access(path, os.W_OK)
    except FileNotFoundError:
      writable = os.access(path.parent, os.W_OK)
    except (OSError, ValueError) as error:
      reason = errors.first_line(error)
    if not writable:
      raise errors.UserError(
        f'--{option} {path} cannot be written ({reason}): give another file'
      )


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
  from train import files
  from train.plan import chart, table
  from train.plan import sweep as sweep_lib

  _check_outputs(args)
  recipes = _recipes(args, overrides)
  sweep = sweep_lib.Sweep(
    args.config, overrides, args.topology, recipes, _say, quick=args.quick
  )
  collectives: list[dict[str, Any]] = []
  rows: list[sweep_lib.RecipePlan] = []
  for recipe in recipes:
    if args.collectives:
      collectives += sweep.collectives(recipe)
    else:
      rows.append(
        sweep.row(recipe, find_batch=args.find_batch, advise=not args.no_advice)
      )
  _say('')
  print(
    table.collectives(collectives)
    if args.collectives
    else table.text(rows, sweep)
  )
  if args.json:
    found = table.to_json(rows, sweep, collectives)
    files.write_text(args.json, json.dumps(found, indent=2) + '\n')
  if args.png:
    chart.stacked_bars(rows, sweep, args.png)
  if args.markdown:
    name = f'{sweep.config.name} {sweep.target.name}'
    old = files.read_text(args.markdown) if args.markdown.exists() else ''
    new = files.replace_block(old, 'plan', name, table.markdown(rows, sweep))
    files.write_text(args.markdown, new)
  return 0


def _say(line: str) -> None:
  """Shows what is being compiled, on a terminal only."""
  if sys.stderr.isatty():
    print(f'\r\x1b[K{line}', end='', file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
