"""Tokenizers behind one small interface: tokenizer.json or SentencePiece.

Special tokens in the text are not recognized: a document that contains
`<|endoftext|>` is encoded as those characters.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers

from train import errors, files, output
from train.errors import UserError

END_OF_TEXT = '<|endoftext|>'
_END_NAMES = (
  END_OF_TEXT,
  '<|end_of_text|>',
  '</s>',
  '<eos>',
  '<|eos|>',
  '<|end|>',
  '[SEP]',
)
_SPACE = '\u2581'  # SentencePiece's mark for a space.
_BYTE_PIECE = re.compile('<0x[0-9A-F]{2}>')
_MAX_VOCABULARY = 2**24  # Arrays with an entry per id must fit into memory.
NAMES = ('tokenizer.json', 'tokenizer.model')


class Tokenizer(Protocol):
  """The interface for preparation, evaluation and sampling.

  Attributes:
    path: The file it was read from.
    file_name: The usual name of such a file, one of NAMES.
    vocab_size: One more than the largest token id.
    eot_id: The id of the end-of-text token.
    fingerprint: Hash of the file.
  """

  path: pathlib.Path
  file_name: str
  vocab_size: int
  eot_id: int
  fingerprint: str

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids (int32) of each text, without special tokens."""
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of token ids; incomplete UTF-8 becomes U+FFFD."""
    ...

  def token_bytes(self) -> np.ndarray:
    """UTF-8 bytes of each token's piece, int32 [V]; 0 for special tokens.

    Their sum over a text is its size only if the tokenizer is lossless. If it
    normalizes text (case, accents, white space), `shards.byte_scales` corrects
    the sum.
    """
    ...


def load(path: str | os.PathLike, *, threads: int = -1) -> Tokenizer:
  """Loads a tokenizer by its content.

  Args:
    path: A tokenizer.json of the `tokenizers` library, a SentencePiece model,
      or a directory with a `tokenizer.json` or `tokenizer.model`.
    threads: Threads of SentencePiece's `encode_batch`; -1 for one per core. The
      other library uses the environment variable TOKENIZERS_PARALLELISM.

  Returns:
    The tokenizer.

  Raises:
    UserError: If the file does not exist, has another format, or has no
      end-of-text token.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = [path / name for name in NAMES if (path / name).exists()]
    if not found:
      raise UserError(f'{path} has no {" or ".join(NAMES)}.')
    path = found[0]
  try:
    data = files.read_bytes(path)
  except OSError as error:
    raise UserError(
      f'Cannot read the tokenizer {path}: {error.strerror}. Give a '
      'tokenizer.json or a SentencePiece .model file.'
    ) from error
  if data.lstrip()[:1] == b'{':
    return _Json(path, data)
  return _SentencePiece(path, data, threads)


def train_bpe(
  texts: Iterable[str], vocab_size: int, path: str | os.PathLike
) -> Tokenizer:
  """Trains a byte-level BPE; the same texts give the same file.

  Args:
    texts: Training texts; an exception raised while iterating passes through.
    vocab_size: Number of entries, including the 256 bytes and the end-of-text
      token.
    path: Where to save the tokenizer.json.

  Returns:
    The tokenizer, loaded from the file.

  Raises:
    UserError: If vocab_size is too small, or the texts have too few words for
      it.
  """
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  if vocab_size <= len(alphabet):
    raise UserError(
      f'vocab_size is {vocab_size}; a byte-level BPE needs at least '
      f'{len(alphabet) + 1} entries (4096 or 8192 suit the bundled text).'
    )
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )
  model.train_from_iterator(texts, trainer)
  if model.get_vocab_size() < vocab_size:
    raise UserError(
      f'The text yields only {model.get_vocab_size()} tokens, fewer than '
      f'vocab_size={vocab_size}: use more text or a smaller vocabulary.'
    )
  model.save(str(path))
  return load(path)


class _Json:
  """A tokenizer.json."""

  file_name = NAMES[0]

  def __init__(self, path: pathlib.Path, data: bytes):
    try:
      # A panic prints a stack.
      with output.silent_stderr():
        self._model = tokenizers.Tokenizer.from_str(data.decode())
    except BaseException as error:  # A panic is not an Exception.
      if isinstance(error, KeyboardInterrupt | SystemExit):
        raise
      raise UserError(
        f'{path} is not a tokenizer.json that `tokenizers` can read: '
        f'{errors.first_line(error)}.'
      ) from error
    self._model.no_padding()
    self._model.no_truncation()
    self._model.encode_special_tokens = True
    vocabulary = self._model.get_vocab(with_added_tokens=True)
    self.path = path
    self.vocab_size = 1 + max(vocabulary.values(), default=-1)
    _check_size(path, self.vocab_size)
    self.eot_id = _end_of_text(path, vocabulary)
    self.fingerprint = hashlib.sha256(data).hexdigest()

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    encodings = self._model.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.array(e.ids, np.int32) for e in encodings]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._model.decode([int(i) for i in ids], skip_special_tokens=False)

  def token_bytes(self) -> np.ndarray:
    # In a byte-level vocabulary each character stands for one byte.
    spec = json.loads(self._model.to_str())
    parts = json.dumps([spec['pre_tokenizer'], spec['decoder']])
    byte_level = '"ByteLevel"' in parts
    # WordPiece's mark of a piece that does not begin a word; it is not text.
    inside = spec['model'].get('continuing_subword_prefix') or ''
    sizes = np.zeros(self.vocab_size, np.int32)
    for piece, i in self._model.get_vocab(with_added_tokens=False).items():
      piece = piece.removeprefix(inside)
      sizes[i] = len(piece) if byte_level else _piece_bytes(piece)
    for i, added in self._model.get_added_tokens_decoder().items():
      sizes[i] = 0 if added.special else len(added.content.encode())
    sizes[self.eot_id] = 0
    return sizes


class _SentencePiece:
  """A SentencePiece model."""

  file_name = NAMES[1]

  def __init__(self, path: pathlib.Path, data: bytes, threads: int):
    self._threads = threads
    self._model = sentencepiece.SentencePieceProcessor()
    try:
      self._model.LoadFromSerializedProto(data)
    except RuntimeError as error:
      raise UserError(
        f'{path} is neither a tokenizer.json nor a SentencePiece model.'
      ) from error
    self.vocab_size = self._model.vocab_size()
    _check_size(path, self.vocab_size)
    pieces = {self._model.id_to_piece(i): i for i in range(self.vocab_size)}
    self.path = path
    self.eot_id = self._model.eos_id()
    if self.eot_id < 0:
      self.eot_id = _end_of_text(path, pieces)
    self.fingerprint = hashlib.sha256(data).hexdigest()

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    encoded = self._model.encode(list(texts), num_threads=self._threads)
    return [np.array(ids, np.int32) for ids in encoded]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._model.decode([int(i) for i in ids])

  def token_bytes(self) -> np.ndarray:
    # This counts the space that SentencePiece adds before each document.
    model = self._model
    sizes = np.zeros(self.vocab_size, np.int32)
    for i in range(self.vocab_size):
      if not (model.is_control(i) or model.is_unknown(i) or model.is_unused(i)):
        sizes[i] = _piece_bytes(model.id_to_piece(i))
    sizes[self.eot_id] = 0
    return sizes


def _piece_bytes(piece: str) -> int:
  if _BYTE_PIECE.fullmatch(piece):
    return 1
  return len(piece.replace(_SPACE, ' ').encode())


def _check_size(path: pathlib.Path, vocab_size: int) -> None:
  if not 0 < vocab_size <= _MAX_VOCABULARY:
    raise UserError(
      f'The tokenizer {path} has token ids up to {vocab_size - 1}: expected at '
      f'least one, and none above {_MAX_VOCABULARY - 1}.'
    )


def _end_of_text(path: pathlib.Path, vocabulary: dict[str, int]) -> int:
  for name in _END_NAMES:
    if name in vocabulary:
      return vocabulary[name]
  raise UserError(
    f'The tokenizer {path} has no end-of-text token; looked for '
    f'{", ".join(_END_NAMES)}. Add one of these to it.'
  )
