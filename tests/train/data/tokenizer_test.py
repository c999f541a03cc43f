"""Tokenizers: round trips, byte counts, and files that are none."""

import chex
import hypothesis
import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import strategies

from train.data import tokenizer
from train.errors import UserError

_TEXTS = [
  'the quick brown fox jumps over the lazy dog. ' * 20,
  'def f(x):\n    return x + 1\n' * 20,
  'Äpfel, Ökonomie und Übermut; naïve café, 東京, 😀. ' * 20,
]
_ANY_TEXT = strategies.text(
  strategies.characters(exclude_categories=('Cs',)), max_size=80
)


@pytest.fixture(scope='module', name='bpe')
def _bpe(tmp_path_factory):
  path = tmp_path_factory.mktemp('bpe') / 'tokenizer.json'
  return tokenizer.train_bpe(_TEXTS, 320, path)


@pytest.fixture(scope='module', name='sp')
def _sp(tmp_path_factory):
  root = tmp_path_factory.mktemp('sp')
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(' '.join(_TEXTS).split('. ')),
    model_prefix=str(root / 'tiny'),
    vocab_size=330,
    model_type='bpe',
    byte_fallback=True,
    character_coverage=1.0,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  return tokenizer.load(root / 'tiny.model')


@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(_ANY_TEXT)
def test_bpe_round_trip_and_bytes(bpe, text):
  (ids,) = bpe.encode_batch([text])
  assert bpe.decode(ids) == text
  assert bpe.token_bytes()[ids].sum() == len(text.encode())
  assert not np.any(ids == bpe.eot_id)


@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(_ANY_TEXT)
def test_sentencepiece_round_trip_and_bytes(sp, text):
  # NUL and the mark for spaces are beyond what SentencePiece keeps apart.
  text = text.replace('\0', '').replace('\u2581', '')
  (ids,) = sp.encode_batch([text])
  assert sp.decode(ids) == text
  # One more for the space it puts in front.
  assert sp.token_bytes()[ids].sum() == len(text.encode()) + bool(text)


def test_bpe_learns_merges_and_is_deterministic(bpe, tmp_path):
  again = tokenizer.train_bpe(iter(_TEXTS), 320, tmp_path / 'again.json')
  assert again.fingerprint == bpe.fingerprint
  other = tokenizer.train_bpe(_TEXTS[:2], 300, tmp_path / 'other.json')
  assert other.fingerprint != bpe.fingerprint
  assert bpe.vocab_size == 320
  (ids,) = bpe.encode_batch(['the quick brown fox'])
  assert len(ids) < 10
  chex.assert_type(ids, np.int32)


def test_special_tokens_are_not_read_out_of_text(bpe, sp):
  for model in (bpe, sp):
    text = 'a<|endoftext|>b</s>c'
    (ids,) = model.encode_batch([text])
    assert model.eot_id not in ids
    assert model.decode(ids) == text


def test_every_token_but_the_special_ones_has_bytes(bpe, sp):
  assert np.flatnonzero(bpe.token_bytes() == 0).tolist() == [bpe.eot_id]
  # <unk>, <s>, </s>.
  assert np.flatnonzero(sp.token_bytes() == 0).tolist() == [0, 1, 2]
  assert sp.eot_id == 2
  assert sp.vocab_size == 330


def test_an_error_while_training_passes_through(tmp_path):
  def texts():
    yield _TEXTS[0]
    raise KeyError('stop')

  with pytest.raises(KeyError):
    tokenizer.train_bpe(texts(), 300, tmp_path / 'x.json')


def test_metaspace_json_counts_bytes(tmp_path):
  vocabulary = {'<unk>': 0, '</s>': 1, '\u2581caf\u00e9': 2, '<0x41>': 3}
  model = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token='<unk>')
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  model.add_special_tokens(['<unk>', '</s>'])
  model.add_tokens(['\u00fcber'])
  model.save(str(tmp_path / 'tokenizer.json'))
  loaded = tokenizer.load(tmp_path)  # A directory that holds one.
  assert loaded.token_bytes().tolist() == [0, 0, 6, 1, 5]
  assert loaded.eot_id == 1
  assert loaded.vocab_size == 5


def test_wordpiece_marks_are_no_text(tmp_path):
  vocabulary = {'[UNK]': 0, '[SEP]': 1, 'play': 2, '##ing': 3, '##\u00e9': 4}
  model = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(vocabulary, unk_token='[UNK]')
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  model.add_special_tokens(['[UNK]', '[SEP]'])
  model.save(str(tmp_path / 'tokenizer.json'))
  loaded = tokenizer.load(tmp_path)
  assert loaded.encode_batch(['playing'])[0].tolist() == [2, 3]
  assert loaded.token_bytes().tolist() == [0, 0, 4, 3, 2]


def test_padding_and_truncation_in_the_file_do_not_act(bpe, tmp_path):
  model = tokenizers.Tokenizer.from_file(str(bpe.path))
  model.enable_truncation(3)
  model.enable_padding(length=50)
  model.save(str(tmp_path / 'x.json'))
  texts = ['a b c d e f g', 'x']
  for a, b in zip(
    tokenizer.load(tmp_path / 'x.json').encode_batch(texts),
    bpe.encode_batch(texts),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'Cannot read'),
    (b'', 'neither a tokenizer.json nor'),
    (b'junk', 'neither a tokenizer.json nor'),
    (b'{"a": 1}', 'is not a tokenizer.json'),
  ],
)
def test_files_that_are_no_tokenizer(content, message, tmp_path):
  path = tmp_path / 'x'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    tokenizer.load(path)


def test_other_bad_input(tmp_path):
  with pytest.raises(UserError, match=r'tokenizer\.json'):
    tokenizer.load(tmp_path)
  with pytest.raises(UserError, match='at least 257'):
    tokenizer.train_bpe(_TEXTS, 256, tmp_path / 'x.json')
  with pytest.raises(UserError, match='more text'):
    tokenizer.train_bpe(['ab'], 5000, tmp_path / 'x.json')
  assert not (tmp_path / 'x.json').exists()
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0}, 'a'))
  model.save(str(tmp_path / 'no_end.json'))
  with pytest.raises(UserError, match='no end-of-text token'):
    tokenizer.load(tmp_path / 'no_end.json')
