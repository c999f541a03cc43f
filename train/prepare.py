"""Turns text into token shards.

  python -m train.prepare --source bundled --vocab_size 4096 --max_mb 12 \
    --output data/bundled
  python -m train.prepare --input 'pile/*.jsonl.zst' \
    --tokenizer tokenizer.json --output data/pile

The shards are written in `<output>.partial` and renamed at the end, so a
directory that exists is complete.
"""

import argparse
import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from train import corpus, encoding, readers, signals, staging
from train import holdout as holdout_lib
from train import tokenizer as tokenizer_lib
from train.corpus import Document
from train.encoding import Log, ShouldStop
from train.errors import Interrupted, UserError

_BPE_BYTES = 2**22  # A larger sample gains about 1 % fewer tokens.


def prepare_bundled(
  output: str | pathlib.Path,
  vocab_size: int,
  max_bytes: int | None,
  *,
  tokenizer: str | pathlib.Path | None = None,
  should_stop: ShouldStop = lambda: False,
  log: Log = print,
) -> dict[str, Any]:
  """Prepares the bundled corpus; returns at once if that is done.

  Args:
    output: Directory to make.
    vocab_size: Entries of the byte-level BPE trained on the text.
    max_bytes: Size of the sample of the corpus in bytes, None for all.
    tokenizer: A tokenizer to use instead; vocab_size is then not used.
    should_stop: Polled; preparation is given up when it returns True.
    log: Receives a line at each stage.

  Returns:
    The manifest.

  Raises:
    UserError: If output holds something else or the text is not installed.
    Interrupted: If should_stop returned True; output then does not exist.
  """
  given = tokenizer_lib.load(tokenizer) if tokenizer else None
  settings = {
    'source': 'bundled',
    'max_bytes': max_bytes,
    'tokenizer': given.fingerprint if given else f'bpe-{vocab_size}',
  }

  def build(directory: pathlib.Path) -> None:
    start = time.monotonic()
    documents = list(signals.watch(corpus.documents(max_bytes), should_stop))
    train, validation = corpus.split(documents)
    log(
      f'Text: {len(documents)} documents, {_megabytes(documents)} MB, of '
      f'{", ".join(corpus.SUBSETS)} ({time.monotonic() - start:.1f} s).'
    )
    start = time.monotonic()
    model = given
    if model is None:
      path = directory / 'tokenizer.json'
      texts = signals.watch(_bpe_sample(train), should_stop)
      model = tokenizer_lib.train_bpe(texts, vocab_size, path)
      log(
        f'Tokenizer: byte-level BPE of {vocab_size} entries trained '
        f'({time.monotonic() - start:.1f} s).'
      )
    encoding.write(
      directory,
      model,
      [*_labelled('train', train), *_labelled('validation', validation)],
      total=sum(d.num_bytes for d in documents),
      should_stop=should_stop,
      log=log,
      settings=settings,
      versions=corpus.versions(),
    )

  return staging.prepare(pathlib.Path(output), settings, build)


def prepare_files(
  output: str | pathlib.Path,
  pattern: str,
  tokenizer: str | pathlib.Path,
  *,
  validation_pattern: str | None = None,
  validation_fraction: float = 0.02,
  max_bad_lines: int = 1000,
  should_stop: ShouldStop = lambda: False,
  log: Log = print,
) -> dict[str, Any]:
  """Prepares a user's files, streamed; returns at once if that is done.

  Args:
    output: Directory to make.
    pattern: Glob of files whose suffix is one of `readers.SUFFIXES`.
    tokenizer: A tokenizer.json or SentencePiece model.
    validation_pattern: Glob of the validation files, which are not trained on
      even if `pattern` matches them, too, nor are copies of their documents.
    validation_fraction: Without a validation_pattern, about the share of the
      documents that are held out, chosen by hash, until these have
      `holdout.MAX_BYTES`.
    max_bad_lines: Lines without a document that are skipped.
    should_stop: As for `prepare_bundled`.
    log: As for `prepare_bundled`.

  Returns:
    The manifest.

  Raises:
    UserError: If output holds something else, or the input is bad or too
      small for a validation split.
    Interrupted: If should_stop returned True; output then does not exist.
  """
  if not 0 < validation_fraction < 1:
    raise UserError(
      f'--validation_fraction is {validation_fraction}, but must lie between 0 '
      'and 1.'
    )
  held_out = readers.find(validation_pattern) if validation_pattern else []
  files = readers.without(readers.find(pattern), held_out, log)
  model = tokenizer_lib.load(tokenizer)
  settings = {
    'source': 'files',
    'files': readers.identities(files),
    'validation': readers.identities(held_out) or validation_fraction,
    'tokenizer': model.fingerprint,
  }

  def build(directory: pathlib.Path) -> None:
    bad = readers.BadLines(max_bad_lines)
    holdout = holdout_lib.Holdout(0 if held_out else validation_fraction)

    def documents() -> Iterator[tuple[str, Document]]:
      for path in held_out:
        for document in readers.read_documents(path, bad):
          holdout.add(document)
          yield 'validation', document
      for path in files:
        for document in readers.read_documents(path, bad):
          if split := holdout.split(document):
            yield split, document

    written = encoding.write(
      directory,
      model,
      documents(),
      total=None,
      should_stop=should_stop,
      log=log,
      settings=settings,
      versions={},
    )
    if bad.count:
      log(f'Skipped {bad.count} lines that hold no document.')
    if holdout.dropped:
      log(f'Left out {holdout.dropped} copies of validation documents.')
    for split in ('train', 'validation'):
      if split not in written:
        raise UserError(
          f'The input gives no document for the {split} split: pass more '
          'text, --validation FILES, or another --validation_fraction '
          f'(now {validation_fraction}).'
        )

  return staging.prepare(pathlib.Path(output), settings, build)


def bytes_of(max_mb: float | None) -> int | None:
  """The bytes in that many MB; None is all there is.

  Args:
    max_mb: As the user gave it.

  Returns:
    What `prepare_bundled` takes.

  Raises:
    UserError: If it is not a positive number.
  """
  if max_mb is None:
    return None
  if not (math.isfinite(max_mb) and max_mb > 0):
    raise UserError(
      f'max_mb is {max_mb}, but must be a positive number of MB; leave it out '
      'for all the text.'
    )
  return int(max_mb * 1e6)


def _bpe_sample(train: list[Document]) -> Iterator[str]:
  """Texts of about 4 MB, spread evenly over the corpus."""
  step = max(1, round(sum(d.num_bytes for d in train) / _BPE_BYTES))
  return (document.text for document in train[::step])


def _labelled(
  split: str, documents: list[Document]
) -> list[tuple[str, Document]]:
  return [(split, document) for document in documents]


def _megabytes(documents: list[Document]) -> str:
  return f'{sum(d.num_bytes for d in documents) / 1e6:.1f}'


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m train.prepare',
    description='Turns text into token shards.',
  )
  parser.add_argument('--source', choices=['bundled', 'files'])
  parser.add_argument('--input', help='glob of ' + ', '.join(readers.SUFFIXES))
  parser.add_argument(
    '--validation',
    help='glob of the validation files; they, and copies of their documents, '
    'are not trained on',
  )
  parser.add_argument(
    '--validation_fraction',
    type=float,
    default=0.02,
    help='without --validation: the share of documents to hold out (by hash; '
    f'of the first ones, up to {holdout_lib.MAX_BYTES // 10**6} MB of text in '
    'all; default %(default)s)',
  )
  parser.add_argument('--max_bad_lines', type=int, default=1000)
  parser.add_argument('--tokenizer', help='tokenizer.json or .model')
  parser.add_argument('--vocab_size', type=int, default=4096)
  parser.add_argument('--max_mb', type=float, help='default: all there is')
  parser.add_argument('--output', required=True)
  args = parser.parse_args(argv)
  if (args.source or ('files' if args.input else None)) is None:
    parser.error('give --source bundled or --input GLOB')
  if args.input and args.source == 'bundled':
    parser.error('give --source bundled or --input GLOB, not both')
  try:
    with signals.catch() as stop:
      _run(args, stop)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except Interrupted:
    print('stopped; nothing was kept', file=sys.stderr)
    return stop.status
  return 0


def _run(args: argparse.Namespace, stop: ShouldStop) -> None:
  if args.source == 'bundled':
    prepare_bundled(
      args.output,
      args.vocab_size,
      bytes_of(args.max_mb),
      tokenizer=args.tokenizer,
      should_stop=stop,
    )
  else:
    if not (args.input and args.tokenizer):
      raise UserError('--input also needs --tokenizer FILE.')
    prepare_files(
      args.output,
      args.input,
      args.tokenizer,
      validation_pattern=args.validation,
      validation_fraction=args.validation_fraction,
      max_bad_lines=args.max_bad_lines,
      should_stop=stop,
    )
  print(f'Complete: {args.output}')


if __name__ == '__main__':
  sys.exit(main())
