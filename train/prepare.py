"""Turns text into token shards.

  python -m train.prepare --source bundled --vocab_size 4096 --max_mb 12 \
    --output data/bundled
  python -m train.prepare --input 'pile/*.jsonl.zst' \
    --tokenizer tokenizer.json --output data/pile
  python -m train.prepare --input tasks.jsonl --instructions \
    --tokenizer tokenizer.json --output data/tasks

The shards are written to `<output>.partial`, which is renamed at the end, so an
output directory that exists is complete. With --input, rerun the same command
to resume an interrupted preparation.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import tqdm

from train import errors, files, output
from train.data import atomic_dir, bundled, documents, readers
from train.data import tokenizer as tokenizer_lib
from train.data.source import Source, identities
from train.data.streaming import Stream
from train.data.writer import Writer
from train.distributed import signals
from train.errors import Interrupted, UserError

Log = Callable[[str], None]
ShouldStop = Callable[[], bool]
_MOST_WORKERS_PER_CPU = 16
# Options that apply to one source of text only.
_ONLY_FILES = (
  'instructions', 'validation', 'validation_fraction', 'max_bad_lines',
  'workers',
)  # fmt: skip
_ONLY_BUNDLED = ('vocab_size', 'max_mb')
_VOCAB_SIZE = 4096


def prepare_files(
  output: str | pathlib.Path,
  source: Source,
  tokenizer: str | pathlib.Path,
  *,
  workers: int = 0,
  should_stop: ShouldStop = lambda: False,
  log: Log = print,
) -> dict[str, Any]:
  """Prepares a user's files, streamed; returns at once if already done.

  After an interruption, the same call resumes. The result is bit-identical, and
  does not depend on the number of workers.

  Args:
    output: Directory to create.
    source: The files.
    tokenizer: A tokenizer.json or SentencePiece model.
    workers: Number of processes that encode; 0 encodes in this process.
      Workers start a new Python, so the script needs `if __name__ ==
      '__main__'`.
    should_stop: Polled; preparation stops when it returns True.
    log: Receives messages.

  Returns:
    The manifest.

  Raises:
    UserError: If `output` exists with other content, `<output>.partial` is an
      unfinished preparation of something else, the input is bad or too small
      for a validation split, or a worker died.
    Interrupted: If `should_stop` returned True; `output` then does not exist,
      and finished work is kept.
  """
  source.check()
  most = _MOST_WORKERS_PER_CPU * _usable_cpus()
  if not 0 <= workers <= most:
    raise UserError(
      f'--workers is {workers}: give 0 to {most}, which is '
      f'{_MOST_WORKERS_PER_CPU} for each usable CPU.'
    )
  held_out, files = source.find(log)
  model = tokenizer_lib.load(tokenizer)
  settings = {
    'source': 'files',
    'files': identities(files),
    'validation': identities(held_out) or source.validation_fraction,
    'tokenizer': model.fingerprint,
    **({'instructions': True} if source.instructions else {}),
  }

  def build(directory: pathlib.Path) -> None:
    start = time.monotonic()
    stream = Stream(directory, model, source, held_out, files, log)
    with contextlib.closing(stream.writer) as writer:
      stream.run(workers, should_stop)
      _check_splits(writer, source, directory)
      corpus_hash = stream.corpus_hash.value
      writer.finish(
        should_stop, corpus_hash=corpus_hash, settings=settings, versions={}
      )
    if stream.bad.count:
      log(f'Skipped {stream.bad.count} lines without a document.')
    if stream.holdout.dropped:
      log(f'Left out {stream.holdout.dropped} copies of validation documents.')
    log(f'Tokens: {writer.counts()} ({time.monotonic() - start:.1f} s).')

  output = pathlib.Path(output)
  return atomic_dir.prepare(output, settings, build, resumes=True)


def _check_splits(
  writer: Writer, source: Source, directory: pathlib.Path
) -> None:
  """Raises UserError if a split is empty; a rerun then starts from scratch."""
  for split in ('train', 'validation'):
    if split not in writer.splits:
      (directory.parent / atomic_dir.RESUME_STATE).unlink(missing_ok=True)
      raise UserError(
        f'The input has no document for the {split} split: pass more text, '
        '--validation FILES, or another --validation_fraction (now '
        f'{source.validation_fraction}).'
      )


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  with output.guarded():
    return _main(argv)


def _main(argv: list[str] | None) -> int:
  parser = _parser()
  args = parser.parse_args(argv)
  bundled_text = args.source == 'bundled'
  if bool(args.input) == bundled_text:
    both = ', not both' if bundled_text else ''
    parser.error(f'give --source bundled or --input GLOB{both}')
  for option in _ONLY_FILES if bundled_text else _ONLY_BUNDLED:
    value = getattr(args, option)
    if value is not None and value is not False:
      other = '--input GLOB' if bundled_text else '--source bundled'
      parser.error(f'--{option} needs {other}')
  if args.validation and args.validation_fraction is not None:
    parser.error('give --validation or --validation_fraction, not both')
  try:
    with signals.catch() as stop, output.stops(stop):
      _run(args, stop)
  except (UserError, OSError) as error:
    print(f'error: {errors.of_system(error) or error}', file=sys.stderr)
    return 2
  except Interrupted:
    partial = atomic_dir.partial_of(pathlib.Path(args.output))
    kept = 'nothing was kept'
    if (partial / atomic_dir.RESUME_STATE).exists():
      kept = f'rerun the same command to resume from {partial}'
    print(f'stopped; {kept}', file=sys.stderr)
    return stop.status
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = errors.Parser(
    prog='python -m train.prepare',
    description='Turns text into token shards. With --input, rerun the same '
    'command to resume an interrupted preparation.',
  )
  parser.add_argument(
    '--source',
    choices=['bundled', 'files'],
    help='text of installed packages, or the files of --input',
  )
  parser.add_argument(
    '--input',
    help=f'glob of {", ".join(readers.SUFFIXES)}; ** stands for any '
    'directories',
  )
  parser.add_argument(
    '--instructions',
    action='store_true',
    help='JSON lines and Parquet rows may have "messages", or "prompt" and '
    '"completion", in place of "text"; the loss covers only completions and '
    'messages of the assistant',
  )
  parser.add_argument(
    '--validation',
    help='glob of the validation files; they and copies of their documents '
    'are left out of the training split',
  )
  parser.add_argument(
    '--validation_fraction',
    type=float,
    help='without --validation: share of documents to hold out, chosen by '
    f'hash, up to {documents.MAX_HELD_OUT_BYTES // 10**6} MB of text (default: '
    f'{Source.validation_fraction})',
  )
  parser.add_argument(
    '--max_bad_lines',
    type=int,
    help='number of lines without a document to skip (default: '
    f'{Source.max_bad_lines})',
  )
  parser.add_argument(
    '--tokenizer', type=files.path, help='tokenizer.json or .model'
  )
  parser.add_argument(
    '--workers',
    type=int,
    help='number of processes that encode the files of --input; 0 encodes in '
    f'this process (default: number of CPUs, {_usable_cpus()} here); does not '
    'change the result',
  )
  parser.add_argument(
    '--vocab_size',
    type=int,
    help=f'entries of the BPE trained on bundled text (default: {_VOCAB_SIZE})',
  )
  parser.add_argument(
    '--max_mb', type=float, help='megabytes of bundled text (default: all)'
  )
  parser.add_argument(
    '--output', type=files.path, required=True, help='directory to create'
  )
  return parser


def _usable_cpus() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _run(args: argparse.Namespace, stop: ShouldStop) -> None:
  if args.source == 'bundled':
    bundled.prepare_bundled(
      args.output,
      _VOCAB_SIZE if args.vocab_size is None else args.vocab_size,
      bundled.bytes_of(args.max_mb),
      tokenizer=args.tokenizer,
      should_stop=stop,
    )
  else:
    if not args.tokenizer:
      raise UserError('--input also needs --tokenizer FILE.')
    names = ('validation_fraction', 'max_bad_lines')
    given = {n: v for n in names if (v := getattr(args, n)) is not None}
    prepare_files(
      args.output,
      Source(
        args.input,
        args.validation,
        instructions=args.instructions,
        **given,
      ),
      args.tokenizer,
      workers=_usable_cpus() if args.workers is None else args.workers,
      should_stop=stop,
      log=tqdm.tqdm.write,  # Does not break the progress bar.
    )
  print(f'Complete: {args.output}')


if __name__ == '__main__':
  sys.exit(main())
