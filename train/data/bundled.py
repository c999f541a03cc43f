"""Prepares the bundled corpus: trains a tokenizer on it and encodes it."""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

from train.data import atomic_dir, corpus, encoding
from train.data import tokenizer as tokenizer_lib
from train.data.corpus import Document
from train.data.writer import Writer
from train.distributed import signals
from train.errors import UserError

_BPE_BYTES = 2**22  # A larger sample would save only about 1 % of the tokens.


def prepare_bundled(
  output: str | pathlib.Path,
  vocab_size: int,
  max_bytes: int | None,
  *,
  tokenizer: str | pathlib.Path | None = None,
  should_stop: Callable[[], bool] = lambda: False,
  log: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Prepares the bundled corpus; returns at once if already done.

  Args:
    output: Directory to create.
    vocab_size: Entries of the byte-level BPE trained on the text.
    max_bytes: Size of the sample of the corpus in bytes; None for all.
    tokenizer: A tokenizer to use instead of training one.
    should_stop: Polled; preparation ends when it returns True.
    log: Receives a line at each stage.

  Returns:
    The manifest.

  Raises:
    UserError: If `output` exists with other content, or the text is not
      installed.
    Interrupted: If should_stop returned True; `output` then does not exist.
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
    start = time.monotonic()
    splits = {'train': train, 'validation': validation}
    counts = _write(directory, model, splits, should_stop, settings)
    log(f'Tokens: {counts} ({time.monotonic() - start:.1f} s).')

  return atomic_dir.prepare(pathlib.Path(output), settings, build)


def bytes_of(max_mb: float | None) -> int | None:
  """Converts megabytes to bytes; None means all text.

  Args:
    max_mb: Value given by the user.

  Returns:
    The argument max_bytes of `prepare_bundled`.

  Raises:
    UserError: If `max_mb` is not a positive number.
  """
  if max_mb is None:
    return None
  if not (math.isfinite(max_mb) and max_mb > 0):
    raise UserError(
      f'max_mb is {max_mb}, but must be a positive number of MB; omit it to '
      'use all the text.'
    )
  return int(max_mb * 1e6)


def _write(
  directory: pathlib.Path,
  model: tokenizer_lib.Tokenizer,
  splits: dict[str, list[Document]],
  should_stop: Callable[[], bool],
  settings: dict[str, Any],
) -> str:
  """Encodes all documents; returns the number of tokens in words."""
  encoder = encoding.Encoder(model)
  corpus_hash = encoding.CorpusHash()
  # disable=None: no bar without a terminal.
  bar = tqdm.tqdm(
    total=sum(d.num_bytes for part in splits.values() for d in part),
    unit='B',
    unit_scale=True,
    desc='tokens',
    disable=None,
  )
  with bar, contextlib.closing(Writer(directory, model)) as writer:
    for split, part in splits.items():
      watched = signals.watch(part, should_stop)
      for encoded in encoder.encode((d.subset, d.text) for d in watched):
        writer.add(split, encoded)
        corpus_hash.add(split, encoded)
        bar.update(encoded.num_bytes)
    writer.finish(
      should_stop,
      corpus_hash=corpus_hash.value,
      settings=settings,
      versions=corpus.versions(),
    )
  return writer.counts()


def _bpe_sample(train: list[Document]) -> Iterator[str]:
  """Texts of about 4 MB, spread evenly over the corpus."""
  step = max(1, round(sum(d.num_bytes for d in train) / _BPE_BYTES))
  return (document.text for document in train[::step])


def _megabytes(documents: list[Document]) -> str:
  return f'{sum(d.num_bytes for d in documents) / 1e6:.1f}'
