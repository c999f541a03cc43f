"""Prompts with their responses: which tokens of the shards are targets."""

import json

import numpy as np
import pytest

from tests.support import corpora
from train import prepare
from train.data import documents, loader, shards, streaming, tokenizer
from train.data import writer as writer_lib
from train.data.source import Source
from train.errors import UserError

_LINES = [
  {'prompt': 'Document 1 says', 'completion': ' café.'},
  {'prompt': 'What? ', 'response': 'That. ' * 9, 'meta': None},
  {'text': 'Document 3 is plain.'},
  {'prompt': '', 'completion': 'No prompt.'},
  {'prompt': 'Quiet', 'completion': ''},
]
_TRAINED = {'prompt': '1 + 1 = ', 'completion': '2'}


def _prepare(root, lines, output, instructions=True, **kwargs):
  (root / 'a.jsonl').write_bytes(corpora.lines(lines))
  (root / 'v.jsonl').write_bytes(corpora.lines(_LINES))
  source = Source(
    str(root / 'a.jsonl'),
    validation_pattern=str(root / 'v.jsonl'),
    instructions=instructions,
  )
  path = corpora.bpe(root / 'bpe.json')
  return prepare.prepare_files(
    root / output, source, path, log=lambda _: None, **kwargs
  )


@pytest.mark.parametrize('workers', [0, 1])
def test_prompts_are_no_targets(tmp_path, workers):
  manifest = _prepare(tmp_path, [_TRAINED], 'out', workers=workers)
  assert manifest['masked'] is True
  model = tokenizer.load(tmp_path / 'out')
  stream = shards.open_split(tmp_path / 'out', 'validation')
  tokens = stream.read(0, stream.num_tokens)
  expected = []
  for line in _LINES:
    prompt, response = line.get('prompt', ''), line.get('text')
    if response is None:
      response = line.get('completion', line.get('response'))
    prompt, response = model.encode_batch([prompt, response])
    expected += [*(~prompt), *response, model.eot_id]
  assert tokens.tolist() == expected
  plain = stream.all_targets().read(0, stream.num_tokens)
  assert plain.tolist() == [~t if t < 0 else t for t in expected]
  size = manifest['splits']['validation']['text']
  texts = [text for line in _LINES for text in line.values() if text]
  assert size['bytes'] == sum(len(text.encode()) for text in texts)
  assert size['token_bytes'] == size['bytes']


def test_evaluation_counts_the_targets(tmp_path):
  _prepare(tmp_path, [_TRAINED], 'out')
  stream = shards.open_split(tmp_path / 'out', 'validation')
  signed = stream.read(0, stream.num_tokens)
  found, counted = [], []
  for tokens, weights in loader.eval_batches(stream, seq_len=7, batch_size=2):
    assert tokens.min() >= 0
    found += tokens[:, 1:][weights > 0].tolist()
    counted.append(weights.sum())
  assert found == [t for t in signed[1:] if t >= 0]
  assert sum(counted) < stream.num_tokens - 1


def test_plain_text_is_the_same_with_and_without(tmp_path):
  lines = corpora.records(4)
  _prepare(tmp_path, lines, 'with')
  source = Source(str(tmp_path / 'a.jsonl'), validation_fraction=0.5)
  prepare.prepare_files(
    tmp_path / 'without', source, tmp_path / 'bpe.json', log=lambda _: None
  )
  assert 'masked' not in shards.read_manifest(tmp_path / 'without')
  for subset in ('Books', 'Code (C)'):
    assert sorted(corpora.texts(tmp_path / 'with', 'train', subset)) == sorted(
      text
      for split in ('train', 'validation')
      if subset
      in shards.subsets(shards.read_manifest(tmp_path / 'without'), split)
      for text in corpora.texts(tmp_path / 'without', split, subset)
    )


def test_lines_without_a_response_are_bad():
  lines = [
    {'prompt': 'x'},
    {'prompt': 1, 'completion': 'y'},
    {'completion': 'y'},
    {'prompt': '', 'completion': ''},
    {'text': None, 'prompt': 'x', 'completion': 'y'},
  ]
  parsed = documents.parse(corpora.lines(lines), instructions=True)
  assert [number for number, _ in parsed.bad] == [1, 2, 3, 5]
  assert '"prompt" and "completion"' in parsed.bad[0][1]
  assert parsed.texts == []
  parsed = documents.parse(corpora.lines(_LINES))
  assert [number for number, _ in parsed.bad] == [1, 2, 4, 5]


def test_the_hash_tells_where_prompts_end(tmp_path):
  hashes = {
    _prepare(tmp_path, [line], f'out{i}')['corpus_hash']
    for i, line in enumerate(
      [
        {'prompt': 'one', 'completion': ' two'},
        {'prompt': 'one ', 'completion': 'two'},
        {'text': 'one two'},
      ]
    )
  }
  assert len(hashes) == 3


@pytest.mark.parametrize(
  ('vocab_size', 'masked', 'expected'),
  [
    (2**15, True, '<u2'),
    (2**15 + 1, True, '<u4'),
    (2**15 + 1, False, '<u2'),
    (2**31, True, '<u4'),
  ],
)
def test_there_is_a_bit_for_the_mark(vocab_size, masked, expected):
  kind = shards.dtype(vocab_size, masked)
  assert kind.str == expected
  ids = np.array([0, 5, vocab_size - 1], kind)
  stored = ids | shards.mark(kind) if masked else ids
  assert stored.dtype == kind
  stream = shards.TokenStream([ids, stored], vocab_size, masked)
  expected = [*ids.tolist(), *((~i if masked else i) for i in ids.tolist())]
  assert stream.read(0, 6).tolist() == expected


def test_a_mask_that_the_manifest_does_not_name_is_refused(tmp_path):
  _prepare(tmp_path, [_TRAINED], 'out')
  path = tmp_path / 'out' / shards.MANIFEST
  manifest = json.loads(path.read_text())
  del manifest['masked'], manifest['crc']
  path.write_text(json.dumps(manifest))
  stream = shards.open_split(tmp_path / 'out', 'validation')
  with pytest.raises(UserError, match='beyond their vocabulary'):
    stream.read(0, stream.num_tokens)


def test_another_kind_of_preparation_is_not_resumed(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise KeyboardInterrupt

  monkeypatch.setattr(writer_lib.Writer, 'finish', fail)
  monkeypatch.setattr(streaming, '_COMMIT_SECONDS', 0)
  with pytest.raises(KeyboardInterrupt):
    _prepare(tmp_path, [_TRAINED], 'out')
  with pytest.raises(UserError, match='instructions was True, not None'):
    _prepare(tmp_path, [_TRAINED], 'out', instructions=False)
