"""Small inputs for the tests of train.prepare, and how to look at outputs."""

import gzip
import json

import numpy as np
import zstandard

from train.data import shards, tokenizer


def bpe(path):
  """Trains a small tokenizer on the records below; returns the file."""
  texts = [record['text'] for record in records(50)]
  return tokenizer.train_bpe(texts, 280, path).path


def records(count):
  return [
    {
      'text': f'Document {i} says café. ' * (i % 5 + 1),
      'meta': {'pile_set_name': 'Books' if i % 2 else 'Code (C)'},
    }
    for i in range(count)
  ]


def lines(records):
  return ''.join(json.dumps(r) + '\n' for r in records).encode()


def texts(directory, split, subset):
  """The documents back out of the shards."""
  model = tokenizer.load(directory)
  stream = shards.open_split(directory, split, subset=subset)
  tokens = stream.read(0, stream.num_tokens)
  ends = np.flatnonzero(tokens == model.eot_id)
  parts = np.split(tokens, ends + 1)
  assert not len(parts[-1])
  return [model.decode(part[:-1]) for part in parts[:-1]]


def compress(kind, content):
  if kind == 'gz':
    return gzip.compress(content)
  if kind == 'zst':
    # Two frames, as zstd -T or concatenated files make.
    half = len(content) // 2
    compress = zstandard.ZstdCompressor().compress
    return compress(content[:half]) + compress(content[half:])
  return content


def files(directory):
  """What a preparation made, but for the times in it; name -> content."""
  return {
    path.name: path.read_bytes()
    for path in directory.iterdir()
    if path.name != 'verified.json'
  }
