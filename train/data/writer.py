"""Writes token shards, which `shards` reads.

A writer can resume after a kill: `state` after a `sync` records how much of its
files is valid, and `restore` truncates them.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from train import files
from train.data import checksums, shards
from train.data.tokenizer import Tokenizer
from train.errors import UserError

_TOKENS_PER_SHARD = 2**27
_MAX_SUBSETS = 100  # Each keeps up to two files open.
_READ_BYTES = 2**24


class Encoded(NamedTuple):
  """An encoded document.

  Attributes:
    subset: Its subset.
    num_bytes: Size of its text in UTF-8.
    target_bytes: Size of its text without prompts.
    token_bytes: Size of its targets' pieces in UTF-8.
    digest: SHA-256 of its text.
    data: Its tokens and the end-of-text token, as bytes of a shard.
  """

  subset: str
  num_bytes: int
  target_bytes: int
  token_bytes: int
  digest: bytes
  data: bytes


class Writer:
  """Writes the shards and, at the end, the manifest of a directory."""

  def __init__(
    self,
    directory: pathlib.Path,
    tokenizer: Tokenizer,
    tokens_per_shard: int = _TOKENS_PER_SHARD,
    masked: bool = False,
  ):
    """Starts with no documents.

    Args:
      directory: Where to write.
      tokenizer: The tokenizer of the documents.
      tokens_per_shard: Number of tokens after which a new file begins.
      masked: Whether tokens may be marked as non-targets; see `shards.mark`.
    """
    self._masked = masked
    self._directory = directory
    self._tokenizer = tokenizer
    self._limit = tokens_per_shard
    self._dtype = shards.dtype(tokenizer.vocab_size, masked)
    self._open: dict[tuple[str, str], tuple[BinaryIO, Any]] = {}
    self._stamps: checksums.Stamps = {}
    self.splits: dict[str, dict[str, dict[str, Any]]] = {}

  def add(self, split: str, document: Encoded) -> None:
    """Appends a document."""
    subset, data = document.subset, document.data
    subsets = self.splits.setdefault(split, {})
    if subset not in subsets:
      if len(subsets) == _MAX_SUBSETS:
        raise UserError(
          f'The input has more than {_MAX_SUBSETS} subsets ({subset!r} is one '
          'more): use fewer values of meta.pile_set_name.'
        )
      counts = dict.fromkeys(
        ('documents', 'bytes', 'target_bytes', 'token_bytes', 'tokens'), 0
      )
      subsets[subset] = {**counts, 'shards': []}
    entry = subsets[subset]
    if (split, subset) not in self._open:
      name = f'{split}-{_slug(subset)}-{len(entry["shards"]):05d}.bin'
      entry['shards'].append({'file': name, 'tokens': 0})
      new = open(self._directory / name, 'xb')  # noqa: SIM115
      self._open[split, subset] = new, hashlib.sha256()
    file, digest = self._open[split, subset]
    file.write(data)
    digest.update(data)
    shard = entry['shards'][-1]
    num_tokens = len(data) // self._dtype.itemsize
    shard['tokens'] += num_tokens
    entry['tokens'] += num_tokens
    entry['documents'] += 1
    entry['bytes'] += document.num_bytes
    entry['target_bytes'] += document.target_bytes
    entry['token_bytes'] += document.token_bytes
    if shard['tokens'] >= self._limit:
      self._end_shard(split, subset)

  def _end_shard(self, split: str, subset: str) -> None:
    file, digest = self._open.pop((split, subset))
    _sync(file)
    file.close()
    shard = self.splits[split][subset]['shards'][-1]
    shard['sha256'] = digest.hexdigest()
    self._stamps[shard['file']] = checksums.stamp(
      self._directory / shard['file'], shard['sha256']
    )

  def sync(self) -> None:
    """Waits until all added documents are on disk."""
    for file, _ in self._open.values():
      _sync(file)
    files.sync_directory(self._directory)

  def state(self) -> dict[str, Any]:
    """Returns the argument of `restore`, as JSON, not copied."""
    return {
      'splits': self.splits,
      'stamps': self._stamps,
      'open': [
        [split, subset, digest.hexdigest()]
        for (split, subset), (_, digest) in self._open.items()
      ],
    }

  def restore(self, state: dict[str, Any]) -> None:
    """Restores a new writer and the directory.

    Args:
      state: State of the killed writer, taken before a `sync`.

    Raises:
      DamagedFile: If a shard is missing, too short or corrupt.
    """
    self.splits, self._stamps = state['splits'], state['stamps']
    sizes = {
      shard['file']: shard['tokens'] * self._dtype.itemsize
      for subsets in self.splits.values()
      for entry in subsets.values()
      for shard in entry['shards']
    }
    for path in self._directory.iterdir():
      if path.name not in sizes:
        path.unlink()
    for name, size in sizes.items():
      path = self._directory / name
      if not path.exists() or path.stat().st_size < size:
        raise checksums.DamagedFile(f'{path} is missing or too short')
      if name in self._stamps and path.stat().st_size > size:
        raise checksums.DamagedFile(f'{path} has changed')
    for split, subset, expected in state['open']:
      name = self.splits[split][subset]['shards'][-1]['file']
      file: BinaryIO = open(self._directory / name, 'r+b')  # noqa: SIM115
      file.truncate(sizes[name])
      # The state of a SHA-256 cannot be saved, so it is recomputed.
      digest = hashlib.sha256()
      while data := file.read(_READ_BYTES):
        digest.update(data)
      self._open[split, subset] = file, digest
      if digest.hexdigest() != expected:
        raise checksums.DamagedFile(f'{self._directory / name} is corrupt')

  def finish(
    self, should_stop: Callable[[], bool] = lambda: False, **extra: Any
  ) -> None:
    """Closes the shards and writes the tokenizer and the manifest.

    Args:
      should_stop: Polled while the n-gram baselines are fitted.
      **extra: Other entries of the manifest: settings, hashes, versions.
    """
    for split, subset in list(self._open):
      self._end_shard(split, subset)
    tokenizer = self._tokenizer
    data = tokenizer.path.read_bytes()
    name = tokenizer.file_name
    _write(self._directory / name, data)
    checksums.save(self._directory, self._stamps)
    manifest = {
      'format': shards.FORMAT,
      'dtype': self._dtype.str,
      'vocab_size': tokenizer.vocab_size,
      'eot_id': tokenizer.eot_id,
      'tokenizer': {'file': name, 'fingerprint': tokenizer.fingerprint},
      **({'masked': True} if self._masked else {}),
      **extra,
      'baselines': self._baselines(should_stop),
      'splits': self.splits,
    }
    manifest['crc'] = files.crc(json.loads(json.dumps(manifest)))
    text = json.dumps(manifest, indent=1) + '\n'
    _write(self._directory / shards.MANIFEST, text.encode())
    files.sync_directory(self._directory)

  def _baselines(
    self, should_stop: Callable[[], bool]
  ) -> dict[str, float] | None:
    """Returns the result of `ngram.of_splits`; None if a split is missing."""
    # A late import: Grain, which reads the shards, takes a second to import,
    # and workers do not need it.
    from train.data import ngram

    streams = {
      split: shards.TokenStream(
        [
          np.asarray(
            np.memmap(self._directory / shard['file'], self._dtype, 'r')
          )
          for entry in subsets.values()
          for shard in entry['shards']
        ],
        masked=self._masked,
      )
      for split, subsets in self.splits.items()
    }
    if not {'train', 'validation'} <= set(streams):
      return None
    if streams['validation'].num_tokens < 2:
      return None
    return ngram.of_splits(
      streams['train'],
      streams['validation'],
      self._tokenizer.vocab_size,
      should_stop,
    )._asdict()

  def counts(self) -> str:
    """The tokens of each split, in words."""
    return ', '.join(
      f'{split} {sum(e["tokens"] for e in entries.values()):,}'
      for split, entries in sorted(self.splits.items())
    )

  def close(self) -> None:
    """Closes the files; without `finish` there is no manifest."""
    for file, _ in self._open.values():
      file.close()


def _sync(file: BinaryIO) -> None:
  file.flush()
  os.fsync(file.fileno())


def _write(path: pathlib.Path, data: bytes) -> None:
  with open(path, 'wb') as file:
    file.write(data)
    _sync(file)


def _slug(name: str) -> str:
  if re.fullmatch('[a-z0-9_]+', name):
    return name
  # The hash distinguishes 'Code (C)' from 'code c'.
  plain = re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
  return f'{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}'
