"""Encodes a stream of documents into shards, with progress."""

import contextlib
import hashlib
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tqdm

from train import shards, signals
from train.corpus import Document
from train.tokenizer import Tokenizer

Log = Callable[[str], None]
ShouldStop = Callable[[], bool]
_BATCH_CHARACTERS = 2**20  # At once: bounds memory and the wait to stop.


class CorpusHash:
  """A hash of splits, subsets and texts, in order: of all that is encoded."""

  def __init__(self) -> None:
    self._digest = hashlib.sha256()

  def add(self, split: str, document: Document) -> None:
    for part in (split, document.subset, document.text):
      data = part.encode()
      # The length keeps ('ab', 'c') apart from ('a', 'bc').
      self._digest.update(len(data).to_bytes(8, 'little'))
      self._digest.update(data)

  def hexdigest(self) -> str:
    return self._digest.hexdigest()


def write(
  directory: pathlib.Path,
  model: Tokenizer,
  documents: Iterable[tuple[str, Document]],
  *,
  total: int | None,
  should_stop: ShouldStop,
  log: Log,
  **extra: Any,
) -> dict[str, Any]:
  """Encodes documents into shards and writes their manifest.

  Args:
    directory: Where to write; exists.
    model: The tokenizer.
    documents: Pairs of a split's name and a document.
    total: Bytes of text, if known, for the progress bar.
    should_stop: Polled; Interrupted is raised when it returns True.
    log: Receives a line at the end.
    **extra: What else goes to the manifest, besides `corpus_hash`.

  Returns:
    The manifest's entry 'splits'.

  Raises:
    Interrupted: If should_stop returned True.
  """
  start = time.monotonic()
  writer = shards.Writer(directory, model)
  corpus_hash = CorpusHash()
  # disable=None: no bar where there is no terminal.
  bar = tqdm.tqdm(
    total=total, unit='B', unit_scale=True, desc='tokens', disable=None
  )
  with bar, contextlib.closing(writer):
    for batch in _batches(signals.watch(documents, should_stop)):
      ids = model.encode_batch([document.text for _, document in batch])
      for (split, document), tokens in zip(batch, ids, strict=True):
        writer.add(split, document.subset, document.num_bytes, tokens)
        corpus_hash.add(split, document)
        bar.update(document.num_bytes)
    writer.finish(corpus_hash=corpus_hash.hexdigest(), **extra)
  counts = ', '.join(
    f'{split} {sum(e["tokens"] for e in entries.values()):,}'
    for split, entries in sorted(writer.splits.items())
  )
  log(f'Tokens: {counts} ({time.monotonic() - start:.1f} s).')
  return writer.splits


def _batches(
  documents: Iterable[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
  batch: list[tuple[str, Document]] = []
  size = 0
  for item in documents:
    batch.append(item)
    size += len(item[1].text)
    if size >= _BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
