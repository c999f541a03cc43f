"""Imports and exports Hugging Face checkpoints.

python -m train.hf import DIR WORKDIR [--recipe RECIPE]
  checks the Llama in DIR (config.json, safetensors, a tokenizer) and writes
  WORKDIR/config.py, a configuration that starts from its weights:
  python -m train.main --config WORKDIR/config.py --config.data.path=SHARDS

python -m train.hf export WORKDIR DIR [--step N] [--tokenizer SHARDS]
  writes the parameters of a checkpoint as DIR/config.json and safetensors,
  and the tokenizer's files, for transformers' AutoModelForCausalLM.

Exit status: 0; 2 for bad input, with one line that states what to do.
"""

import argparse
import contextlib
import math
import sys

from train import errors, files


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  args = _parser().parse_args(argv)
  try:
    if args.command == 'import':
      from train.hf import importing

      print(importing.write_config(args.source, args.workdir, args.recipe))
    else:
      from train.hf import exporting

      print(
        exporting.export(
          args.workdir,
          args.target,
          exporting.Format(
            args.dtype, int(args.max_shard_gb * 1e9), args.tokenizer
          ),
          args.step,
        )
      )
  except (errors.UserError, OSError) as error:
    print(f'error: {errors.of_system(error) or error}', file=sys.stderr)
    return 2
  return 0


def _size(text: str) -> float:
  """Parses a number of GB."""
  with contextlib.suppress(ValueError):
    if 0 < (size := float(text)) < math.inf:
      return size
  raise argparse.ArgumentTypeError(f'give a positive number, not {text!r}')


def _parser() -> argparse.ArgumentParser:
  parser = errors.Parser(
    prog='python -m train.hf',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest='command', required=True)
  importer = commands.add_parser('import', help='start a run from weights')
  importer.add_argument(
    'source', metavar='DIR', type=files.path, help='directory of the Llama'
  )
  importer.add_argument(
    'workdir',
    metavar='WORKDIR',
    type=files.path,
    help='directory of the new run',
  )
  importer.add_argument(
    '--recipe',
    default='sage_hybrid',
    help='recipe of the optimizer (default: %(default)s)',
  )
  exporter = commands.add_parser('export', help='write weights')
  exporter.add_argument(
    'workdir',
    metavar='WORKDIR',
    type=files.path,
    help='directory of the run',
  )
  exporter.add_argument(
    'target', metavar='DIR', type=files.path, help='directory to create'
  )
  exporter.add_argument(
    '--step', type=int, help='step of the checkpoint (default: the last one)'
  )
  exporter.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='dtype of the weights (default: %(default)s)',
  )
  exporter.add_argument(
    '--tokenizer',
    type=files.path,
    help='file or directory of the tokenizer to copy; the directory of the '
    'shards has one',
  )
  exporter.add_argument(
    '--max_shard_gb',
    type=_size,
    default=5.0,
    help='largest file size in GB (default: %(default)s)',
  )
  return parser


if __name__ == '__main__':
  sys.exit(main())
