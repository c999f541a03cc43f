"""Token shards on disk: raw little-endian integers and a manifest.

A directory contains `manifest.json`, a copy of the tokenizer, and for each
(split, subset) files `train-factbook-00000.bin`, ... of whole documents, each
followed by the end-of-text token. Tokens are uint16 if the vocabulary allows,
else uint32. If `masked` is set in the manifest, the highest bit of a token
marks it as not a target, for example in a prompt.
"""

import copy
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from train import errors
from train import files as files_lib
from train.data import checksums
from train.errors import UserError

MANIFEST = 'manifest.json'
FORMAT = 1
_PREPARE = (
  'python -m train.prepare --source bundled --vocab_size 4096 --max_mb 12 '
  "--output {0}, or python -m train.prepare --input '<files>.jsonl.zst' "
  '--tokenizer <tokenizer.json or .model> --output {0}'
)


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Shard(msgspec.Struct):
  # No directory: shards lie beside their manifest.
  file: Annotated[str, msgspec.Meta(pattern=r'^[^/\\\x00]+\.bin$')]
  tokens: _Count
  sha256: Annotated[str, msgspec.Meta(pattern='^[0-9a-f]{64}$')]


class _Subset(msgspec.Struct):
  documents: _Count
  bytes: _Count
  tokens: _Count
  shards: list[_Shard]
  target_bytes: _Count | None = None
  token_bytes: _Count = 0


class _TokenizerFile(msgspec.Struct):
  file: Annotated[str, msgspec.Meta(pattern=r'^[^/\\\x00]+$')]
  fingerprint: str


class _Baselines(msgspec.Struct, forbid_unknown_fields=True):
  unigram: Annotated[float, msgspec.Meta(ge=1)]
  bigram: Annotated[float, msgspec.Meta(ge=1)]
  train_tokens: _Count
  eval_tokens: _Count


class _Manifest(msgspec.Struct):
  """What `read_manifest` accepts."""

  format: Literal[1]
  dtype: Literal['<u2', '<u4']
  vocab_size: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
  eot_id: _Count
  tokenizer: _TokenizerFile
  corpus_hash: str
  splits: dict[Literal['train', 'validation'], dict[str, _Subset]]
  masked: bool = False
  settings: dict[str, Any] = {}
  baselines: _Baselines | None = None


class TokenStream:
  """The tokens of a split: several arrays read as one.

  Attributes:
    num_tokens: Length of the stream.
  """

  def __init__(
    self,
    arrays: Sequence[np.ndarray],
    vocab_size: int | None = None,
    masked: bool = False,
  ):
    """Joins arrays of tokens below `vocab_size`, with mark bits if `masked`."""
    self._vocab_size = vocab_size
    self._arrays = [a for a in arrays if len(a)]
    self._bit = np.int32(0)
    if masked and self._arrays:
      self._bit = mark(self._arrays[0].dtype).astype(np.int32)
    self._shows_marks = masked
    self._ends = np.cumsum([len(a) for a in self._arrays], dtype=np.int64)
    self.num_tokens = int(self._ends[-1]) if self._arrays else 0

  def all_targets(self) -> 'TokenStream':
    """The same tokens without marks."""
    stream = copy.copy(self)
    stream._shows_marks = False
    return stream

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns tokens start to stop (cut at the end of the stream), as int32.

    A token t that is not a target is returned as ~t, which is negative.
    """
    stop = min(stop, self.num_tokens)
    parts = []
    while start < stop:
      i = int(np.searchsorted(self._ends, start, side='right'))
      base = int(self._ends[i]) - len(self._arrays[i])
      part = self._arrays[i][start - base : stop - base]
      parts.append(part.astype(np.int32))
      start += len(part)
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    marks = tokens & self._bit != 0
    tokens &= ~self._bit
    if self._vocab_size is not None and len(tokens):
      largest = int(tokens.view(np.uint32).max())
      if largest >= self._vocab_size:
        raise UserError(
          f'The shards contain the token {largest}, beyond their vocabulary of '
          f'{self._vocab_size}: prepare the data again.'
        )
    return np.where(marks, ~tokens, tokens) if self._shows_marks else tokens


def dtype(vocab_size: int, masked: bool = False) -> np.dtype:
  """The dtype of tokens in a shard, with an additional bit if `masked`."""
  return np.dtype('<u2' if vocab_size <= 2 ** (16 - masked) else '<u4')


def mark(dtype: np.dtype) -> np.integer:
  """The bit that marks a token as not a target: the highest of the dtype."""
  return dtype.type(1 << (8 * dtype.itemsize - 1))


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
  """Reads a directory's manifest.

  Args:
    directory: Where the shards are.

  Returns:
    The manifest as written by `writer.Writer`.

  Raises:
    UserError: If there is none or it cannot be read.
  """
  path = pathlib.Path(directory, MANIFEST)
  commands = _PREPARE.format(directory)
  try:
    manifest = json.loads(files_lib.read_text(path))
  except FileNotFoundError:
    raise UserError(
      f'There is no prepared data in {directory}: prepare it with {commands}.'
    ) from None
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f'{path} cannot be read ({errors.first_line(error)}): delete {directory} '
      f'and make it again with {commands}.'
    ) from error
  if fault := _fault(manifest):
    raise UserError(
      f'{path} is not what train.prepare wrote ({fault}): delete {directory} '
      f'and make it again with {commands}.'
    )
  return manifest


def _fault(manifest: Any) -> str | None:
  """Returns what is wrong with a manifest, or None."""
  try:
    content = msgspec.convert(manifest, _Manifest)
  except (msgspec.ValidationError, RecursionError) as error:
    return errors.first_line(error)
  if content.dtype != dtype(content.vocab_size, content.masked).str:
    return f'dtype {content.dtype} is not that of {content.vocab_size} tokens'
  if content.eot_id >= content.vocab_size:
    return f'eot_id {content.eot_id} is beyond the vocabulary'
  names = []
  for split, entries in content.splits.items():
    for subset, entry in entries.items():
      names += [shard.file for shard in entry.shards]
      where = f'subset {subset!r} of {split}'
      if sum(shard.tokens for shard in entry.shards) != entry.tokens:
        return f'{where} has other tokens than its shards together'
      if not entry.documents <= entry.tokens:
        return f'{where} has more documents than tokens'
      size = entry.bytes if entry.target_bytes is None else entry.target_bytes
      low, high = sorted((size, entry.token_bytes))
      if size > entry.bytes or (entry.token_bytes and high > 16 * low + 2**10):
        return f'{where} has {entry.bytes} bytes, {size} of {entry.token_bytes}'
  if len(set(names)) < len(names):
    return 'a shard is named twice'
  if manifest.get('crc', crc := files_lib.crc(manifest)) != crc:
    return 'its checksum differs: it was edited or damaged'
  return None


def subsets(manifest: dict[str, Any], split: str) -> list[str]:
  """Names of the subsets that a split has."""
  return list(manifest['splits'].get(split, {}))


def byte_scales(manifest: dict[str, Any], split: str) -> dict[str, float]:
  """Returns the factor on sums of a tokenizer's `token_bytes`, by subset.

  The pieces of a tokenizer that normalizes text have more or fewer bytes than
  the text. With this factor, their sum over a whole subset is correct.

  Args:
    manifest: The result of `read_manifest`.
    split: 'train' or 'validation'.

  Returns:
    Bytes of text without prompts / bytes of its tokens' pieces; exactly 1 for a
    byte-level tokenizer, and if the manifest has no such number.
  """
  scales = {}
  for name, entry in manifest['splits'].get(split, {}).items():
    counted = entry.get('token_bytes')
    # Earlier versions counted prompts in both.
    size = entry.get('target_bytes', entry['bytes'])
    scales[name] = size / counted if counted else 1.0
  return scales


def open_split(
  directory: str | os.PathLike,
  split: str,
  *,
  subset: str | None = None,
  should_stop: Callable[[], bool] = lambda: False,
  say: Callable[[str], None] = lambda _: None,
) -> TokenStream:
  """Opens a split for reading; shards stay on disk (memory-mapped).

  Sizes are checked each time, checksums when a shard is new or has changed.

  Args:
    directory: Where the shards are.
    split: 'train' or 'validation'.
    subset: One subset, or None for all in the manifest's order.
    should_stop: Polled while checksums are computed.
    say: Receives a line if this takes long.

  Returns:
    The tokens.

  Raises:
    UserError: If data is missing, empty, truncated or corrupt.
    Interrupted: If should_stop returned True.
  """
  manifest = read_manifest(directory)
  entries = manifest['splits'].get(split, {})
  if subset is not None and subset not in entries:
    raise UserError(
      f'{directory} has no subset {subset!r} in {split!r}; it has '
      f'{", ".join(entries) or "none"}.'
    )
  chosen = [e for name, e in entries.items() if subset in (None, name)]
  if not sum(entry['tokens'] for entry in chosen):
    raise UserError(
      f'The split {split!r} in {directory} is empty: delete {directory} and '
      f'prepare it again with {_PREPARE.format(directory)}.'
    )
  shards = [shard for entry in chosen for shard in entry['shards']]
  root = pathlib.Path(directory)
  kind = np.dtype(manifest['dtype'])
  files = {
    s['file']: (s['tokens'] * kind.itemsize, s['sha256']) for s in shards
  }
  try:
    checksums.verify(root, files, should_stop=should_stop, say=say)
  except checksums.DamagedFile as error:
    raise UserError(
      f'The shard {error}: delete {root} and prepare it again with '
      f'{_PREPARE.format(root)}.'
    ) from error
  # A mapping viewed as a plain array: slices of np.memmap are slow to create.
  return TokenStream(
    [
      np.asarray(np.memmap(root / s['file'], kind, 'r'))
      for s in shards
      if s['tokens']
    ],
    manifest['vocab_size'],
    manifest.get('masked', False),
  )
