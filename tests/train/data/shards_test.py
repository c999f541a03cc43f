"""Token shards: what is written is read, and damage is told."""

import json
import os

import chex
import numpy as np
import pytest
import sentencepiece

from train import inputs
from train.data import checksums, encoding, shards, tokenizer
from train.data import writer as writer_lib
from train.errors import Interrupted, UserError


class _Fake:
  """A tokenizer of which only the facts matter."""

  def __init__(self, path, vocab_size=100, eot_id=0):
    self.path = path / 'source.json'
    self.file_name = tokenizer.NAMES[0]
    self.path.write_text('{}')
    self.vocab_size = vocab_size
    self.eot_id = eot_id
    self.fingerprint = f'fingerprint-{vocab_size}'

  def token_bytes(self):
    return np.full(self.vocab_size, 4, np.int32)


_DOCUMENTS = [
  ('train', 'b', [1, 2, 3]),
  ('train', 'a', [4, 5]),
  ('validation', 'b', [6]),
  ('train', 'b', [7] * 9),
  ('train', 'b', [8, 99]),
]


def _document(subset, ids, vocab_size=100, eot_id=0):
  data = np.array([*ids, eot_id], shards.dtype(vocab_size)).tobytes()
  size = len(ids)
  return writer_lib.Encoded(subset, 12 * size, 10 * size, 4 * size, b'', data)


def _write(directory, fake, **kwargs):
  directory.mkdir()
  writer = writer_lib.Writer(directory, fake, **kwargs)
  for split, subset, ids in _DOCUMENTS:
    writer.add(split, _document(subset, ids, fake.vocab_size, fake.eot_id))
  writer.finish(settings={'x': 1}, corpus_hash='h')
  return directory


@pytest.fixture(name='data')
def _data(tmp_path):
  return _write(tmp_path / 'data', _Fake(tmp_path))


@pytest.mark.parametrize('limit', [1, 5, 2**27])
def test_a_stream_is_the_documents_of_each_subset_in_order(tmp_path, limit):
  data = _write(tmp_path / 'data', _Fake(tmp_path), tokens_per_shard=limit)
  expected = [1, 2, 3, 0, *[7] * 9, 0, 8, 99, 0, 4, 5, 0]
  stream = shards.open_split(data, 'train')
  assert stream.num_tokens == len(expected)
  assert stream.read(0, 1000).tolist() == expected
  for start in range(len(expected)):
    for stop in range(start, len(expected) + 1):
      assert stream.read(start, stop).tolist() == expected[start:stop]
  only = shards.open_split(data, 'train', subset='a')
  assert only.read(0, 9).tolist() == [4, 5, 0]
  chex.assert_type(only.read(0, 9), np.int32)


def test_manifest(data):
  manifest = shards.read_manifest(data)
  assert manifest['settings'] == {'x': 1}
  assert manifest['corpus_hash'] == 'h'
  entry = manifest['splits']['train']['b']
  assert entry['documents'] == 3
  assert entry['tokens'] == 4 + 10 + 3
  assert entry['bytes'] == 12 * 14
  assert entry['target_bytes'] == 10 * 14
  assert entry['token_bytes'] == 4 * 14
  assert shards.subsets(manifest, 'train') == ['b', 'a']
  assert shards.subsets(manifest, 'validation') == ['b']


@pytest.mark.parametrize(
  ('vocab_size', 'expected'),
  [(100, '<u2'), (65536, '<u2'), (65537, '<u4'), (128256, '<u4')],
)
def test_smallest_type_that_holds_the_vocabulary(
  tmp_path, vocab_size, expected
):
  fake = _Fake(tmp_path, vocab_size, eot_id=vocab_size - 1)
  data = _write(tmp_path / 'data', fake)
  assert shards.read_manifest(data)['dtype'] == expected
  tokens = shards.open_split(data, 'validation').read(0, 2)
  assert tokens.tolist() == [6, vocab_size - 1]
  (file,) = data.glob('validation-*.bin')
  raw = np.frombuffer(file.read_bytes(), expected)
  assert raw.tolist() == [6, vocab_size - 1]


def test_subset_names_become_distinct_file_names(tmp_path):
  writer = writer_lib.Writer(tmp_path, _Fake(tmp_path))
  names = ['Code (C)', 'code c', 'code-c', 'Wikipedia (en)', '日本', '..', '/']
  for name in names:
    writer.add('train', _document(name, [1]))
  writer.finish(corpus_hash='x')
  files = list(tmp_path.glob('train-*.bin'))
  assert len(files) == len(names)
  assert shards.open_split(tmp_path, 'train').num_tokens == 2 * len(names)


def test_bad_writes(tmp_path):
  writer = writer_lib.Writer(tmp_path, _Fake(tmp_path))
  for i in range(100):
    writer.add('train', _document(str(i), [1]))
  with pytest.raises(UserError, match='more than 100 subsets'):
    writer.add('train', _document('100', [1]))
  writer.close()
  with pytest.raises(UserError, match='no prepared data'):
    shards.read_manifest(tmp_path)


def test_missing_data_names_both_commands(tmp_path):
  with pytest.raises(UserError) as caught:
    shards.open_split(tmp_path / 'none', 'train')
  message = str(caught.value)
  assert '\n' not in message
  assert message.count('python -m train.prepare') == 2
  assert '--source bundled' in message
  assert '--input' in message


def test_damage_is_told(data):
  shards.open_split(data, 'train')
  (file,) = data.glob('train-a-*.bin')
  good = file.read_bytes()
  damaged = {
    'has 4 bytes, expected 6': good[:-2],
    'has 7 bytes, expected 6': good + b'x',
    'is corrupt': bytes([good[0] ^ 1]) + good[1:],
  }
  for reason, content in damaged.items():
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))  # Clocks of file systems are coarse.
    with pytest.raises(UserError, match=reason) as caught:
      shards.open_split(data, 'train')
    assert str(file) in str(caught.value)
    assert 'delete' in str(caught.value)
    assert 'python -m train.prepare' in str(caught.value)
  # The other subset is still good, and so is the file when restored.
  shards.open_split(data, 'train', subset='b')
  file.write_bytes(good)
  assert shards.open_split(data, 'train').num_tokens == 20
  file.unlink()
  with pytest.raises(UserError, match='cannot be read'):
    shards.open_split(data, 'train')


@pytest.fixture(name='hashed')
def _hashed(monkeypatch):
  """Names of the files that are hashed, in order."""
  names = []
  hash_file = checksums._hash

  def spy(path, should_stop):
    digest = hash_file(path, should_stop)
    names.append(path.name)
    return digest

  monkeypatch.setattr(checksums, '_hash', spy)
  return names


def _touch(data):
  for file in data.glob('*.bin'):
    os.utime(file, ns=(1, 1))


def test_a_shard_is_hashed_once_and_again_when_it_changes(data, hashed):
  shards.open_split(data, 'train')
  assert not hashed  # The writer knows them to be good.
  _touch(data)
  for _ in range(2):
    shards.open_split(data, 'train')
    assert hashed == ['train-b-00000.bin', 'train-a-00000.bin']
  (data / 'verified.json').unlink()
  shards.open_split(data, 'train')
  assert len(hashed) == 4


def test_damage_that_keeps_size_and_time_is_noticed(data):
  shards.open_split(data, 'train')
  path = data / 'train-a-00000.bin'
  before = path.stat()
  content = path.read_bytes()
  path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
  while True:  # Clocks of file systems are coarse.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if path.stat().st_ctime_ns != before.st_ctime_ns:
      break
  with pytest.raises(UserError, match='its checksum differs'):
    shards.open_split(data, 'train')


def test_stopping_keeps_what_was_hashed(data, hashed):
  _touch(data)
  with pytest.raises(Interrupted):
    shards.open_split(data, 'train', should_stop=lambda: len(hashed) == 1)
  assert hashed == ['train-b-00000.bin']
  shards.open_split(data, 'train')
  assert hashed == ['train-b-00000.bin', 'train-a-00000.bin']


def test_long_hashing_is_announced(data, monkeypatch):
  said = []
  _touch(data)
  monkeypatch.setattr(checksums, '_SAY_FROM', 2 * 20)
  shards.open_split(data, 'train', say=said.append)
  shards.open_split(data, 'train', say=said.append)
  assert len(said) == 1
  assert str(data) in said[0]
  _touch(data)
  shards.open_split(data, 'validation', say=said.append)  # Only 4 bytes.
  assert len(said) == 1


def test_byte_scales(data):
  manifest = shards.read_manifest(data)
  assert shards.byte_scales(manifest, 'train') == {'b': 2.5, 'a': 2.5}
  manifest['splits']['train']['b']['token_bytes'] = 0  # All unknown tokens.
  del manifest['splits']['train']['a']['token_bytes']  # An older directory.
  del manifest['splits']['validation']['b']['target_bytes']
  assert shards.byte_scales(manifest, 'train') == {'b': 1, 'a': 1}
  assert shards.byte_scales(manifest, 'validation') == {'b': 3}
  assert shards.byte_scales(manifest, 'test') == {}


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{', 'cannot be read'),
    ('[]', 'Expected `object`'),
    ('{"format": 99}', 'is not what train.prepare wrote'),
  ],
)
def test_bad_manifests(data, content, message):
  (data / 'manifest.json').write_text(content)
  with pytest.raises(UserError, match=message):
    shards.open_split(data, 'train')


def test_unknown_subset_and_empty_split(data):
  with pytest.raises(UserError, match='it has b, a'):
    shards.open_split(data, 'train', subset='c')
  manifest = json.loads((data / 'manifest.json').read_text())
  del manifest['splits']['validation'], manifest['crc']
  (data / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(UserError, match=r"'validation' in .* is empty"):
    shards.open_split(data, 'validation')


def test_checks_of_vocabulary_and_tokenizer(data, tmp_path):
  manifest = shards.read_manifest(data)
  inputs.check_vocab(manifest, 100)
  inputs.check_vocab(manifest, 101)
  with pytest.raises(UserError, match='vocab_size=100'):
    inputs.check_vocab(manifest, 99)
  inputs.check_tokenizer(manifest, _Fake(tmp_path))
  with pytest.raises(UserError, match='another tokenizer'):
    inputs.check_tokenizer(manifest, _Fake(tmp_path, 101))


def test_the_tokenizer_lies_beside_the_shards(tmp_path):
  model = tokenizer.train_bpe(['some text ' * 9], 260, tmp_path / 'bpe.json')
  data = _write(tmp_path / 'data', model)
  copy = tokenizer.load(data)
  inputs.check_tokenizer(shards.read_manifest(data), copy)
  assert copy.fingerprint == model.fingerprint


@pytest.mark.parametrize('rule', ['identity', 'nmt_nfkc_cf'])
def test_scaled_token_bytes_are_the_bytes_of_the_text(rule, tmp_path):
  text = 'The QUICK brown ﬁsh      jumps ½ way over — the lazy dog. '
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([text, text.lower()]),
    model_prefix=str(tmp_path / 'tiny'),
    vocab_size=60,
    hard_vocab_limit=False,
    normalization_rule_name=rule,
    minloglevel=2,
  )
  model = tokenizer.load(tmp_path / 'tiny.model')
  (ids,) = model.encode_batch([text])
  size = len(text.encode())
  counted = model.token_bytes()[ids].sum()
  assert counted != size
  (tmp_path / 'data').mkdir()
  writer = writer_lib.Writer(tmp_path / 'data', model)
  for document in encoding.Encoder(model).encode([('text', text)]):
    writer.add('validation', document)
  writer.finish(corpus_hash='x')
  manifest = shards.read_manifest(tmp_path / 'data')
  scale = shards.byte_scales(manifest, 'validation')['text']
  assert counted * scale == pytest.approx(size)
