"""Encodes documents, in worker processes and for the bundled corpus."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from train.data import documents, shards
from train.data.tokenizer import Tokenizer
from train.data.writer import Encoded

# Tokenizers need about a hundred times the memory of their input.
_BATCH_CHARACTERS = 2**18
_PIECE_CHARACTERS = 2**20
_T = TypeVar('_T')


class EncodedBlock(NamedTuple):
  """An encoded block of the input; as `documents.Parsed`."""

  lines: int
  bad: list[tuple[int, str]]
  documents: list[Encoded]


class Encoder:
  """Encodes documents for the shards.

  The end-of-text token follows every text. With instructions, it follows every
  response, and tokens of prompts are marked as non-targets. A prompt and its
  response are encoded separately, as when the model answers the prompt.

  Texts above 2**20 characters are encoded in pieces, which bounds memory.
  Pieces end at line ends where possible, which does not change the tokens of a
  byte-level BPE. SentencePiece adds a space at the start of each piece.

  Attributes:
    model: The tokenizer.
    instructions: Whether documents may be prompts with their responses.
  """

  def __init__(self, model: Tokenizer, instructions: bool = False):
    self.model = model
    self.instructions = instructions
    self._dtype = shards.dtype(model.vocab_size, masked=instructions)

  @functools.cached_property
  def _token_bytes(self) -> np.ndarray:
    # Made where documents are encoded, which is often in another process.
    return self.model.token_bytes()

  def encode_block(self, content: documents.Content) -> EncodedBlock:
    """Returns the encoded documents of a block from `readers`."""
    parsed = documents.parse(content, self.instructions)
    return EncodedBlock(
      parsed.lines, parsed.bad, list(self.encode(parsed.texts))
    )

  def encode(
    self, texts: Iterable[tuple[str, documents.Text]]
  ) -> Iterator[Encoded]:
    """Yields the documents of pairs of a subset and a text, in order."""
    for batch in _batches(texts, lambda item: sum(map(len, _parts(item[1])))):
      pieces = [
        [list(_pieces(part)) for part in _parts(text)] for _, text in batch
      ]
      ids = self._ids(
        piece for parts in pieces for part in parts for piece in part
      )
      for (subset, text), parts in zip(batch, pieces, strict=True):
        tokens = [np.concatenate([next(ids) for _ in part]) for part in parts]
        yield self._encoded(subset, text, tokens)

  def _ids(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
    for batch in _batches(pieces, len):
      yield from self.model.encode_batch(batch)

  def _encoded(
    self, subset: str, text: documents.Text, parts: list[np.ndarray]
  ) -> Encoded:
    tokens = np.concatenate(parts)
    if int(tokens.max(initial=0)) >= self.model.vocab_size:
      raise ValueError(f'token {tokens.max()} is beyond the vocabulary')
    # From `first` on, every second part is a target.
    if isinstance(text, str):
      key, first = text, 0
    else:
      key, first = json.dumps(text), 1  # The key shows where prompts end.
    data = [
      self._ended(part) if index % 2 == first else self._marked(part)
      for index, part in enumerate(parts)
    ]
    sizes = [len(part.encode()) for part in _parts(text)]
    return Encoded(
      subset,
      sum(sizes),
      sum(sizes[first::2]),
      int(self._token_bytes[np.concatenate(parts[first::2])].sum()),
      hashlib.sha256(key.encode()).digest(),
      np.concatenate(data).tobytes(),
    )

  def _marked(self, prompt: np.ndarray) -> np.ndarray:
    return prompt.astype(self._dtype) | shards.mark(self._dtype)

  def _ended(self, text: np.ndarray) -> np.ndarray:
    return np.append(text, self.model.eot_id).astype(self._dtype)


class CorpusHash:
  """A hash of all encoded splits, subsets and texts, in order.

  It is a chain of hashes, so `value` is its whole state.

  Attributes:
    value: The hash so far, in hexadecimal.
  """

  def __init__(self, value: str = ''):
    self.value = value

  def add(self, split: str, document: Encoded) -> None:
    # The length distinguishes ('ab', 'c') from ('a', 'bc').
    name = f'{self.value}/{len(split)}/{split}/{document.subset}/'.encode()
    self.value = hashlib.sha256(name + document.digest).hexdigest()


def _batches(
  items: Iterable[_T], size_of: Callable[[_T], int]
) -> Iterator[list[_T]]:
  batch: list[_T] = []
  size = 0
  for item in items:
    batch.append(item)
    size += size_of(item)
    if size >= _BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _parts(text: documents.Text) -> tuple[str, ...]:
  return (text,) if isinstance(text, str) else text


def _pieces(text: str) -> Iterator[str]:
  start = 0
  while len(text) - start > _PIECE_CHARACTERS:
    end = _seam(text, start + _PIECE_CHARACTERS // 2, start + _PIECE_CHARACTERS)
    yield text[start:end]
    start = end
  yield text[start:]


def _seam(text: str, low: int, high: int) -> int:
  """Returns the best position to cut in a range, `high` if none is good."""
  end = high
  # Not inside a run of white space, which may be a single token.
  while (end := text.rfind('\n', low, end)) > low:
    if not (text[end - 1].isspace() or text[end + 1].isspace()):
      return end + 1
  space = text.rfind(' ', low, high)
  return space if space > low else high
