"""Prompts with their responses: which tokens of the shards are targets."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece

from tests.support import corpora, runs
from train import prepare
from train.data import (
  documents,
  encoding,
  loader,
  readers,
  shards,
  streaming,
  tokenizer,
)
from train.data import writer as writer_lib
from train.data.source import Source
from train.errors import UserError
from train.results import evaluate

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
  prompts = sum(len(line.get('prompt', '')) for line in _LINES)
  assert size['target_bytes'] == size['token_bytes'] == size['bytes'] - prompts


def test_scaled_token_bytes_are_those_of_the_responses(tmp_path):
  prompt, response = 'the quick brown fox jumps over it ' * 9, 'fox'
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([prompt]),
    model_prefix=str(tmp_path / 'tiny'),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  model = tokenizer.load(tmp_path / 'tiny.model')
  (ids,) = model.encode_batch([response])
  counted = model.token_bytes()[ids].sum()
  assert counted == 1 + len(response)  # A space is added to each part.
  (tmp_path / 'data').mkdir()
  writer = writer_lib.Writer(tmp_path / 'data', model, masked=True)
  encoder = encoding.Encoder(model, instructions=True)
  for document in encoder.encode([('text', (prompt, response))]):
    writer.add('validation', document)
  writer.finish(corpus_hash='x')
  manifest = shards.read_manifest(tmp_path / 'data')
  scale = shards.byte_scales(manifest, 'validation')['text']
  assert counted * scale == pytest.approx(len(response))


def test_data_without_targets_leave_the_working_directory(tmp_path, capsys):
  lines = [{'prompt': f'{i} + 0 = ', 'completion': str(i)} for i in range(50)]
  _prepare(tmp_path, lines, 'out')
  args = runs.command(tmp_path / 'out', tmp_path / 'run', 'train.seq_len=2')
  # The first window of the validation split is within a prompt.
  assert runs.call(*args, '--config.eval.max_windows=1') == 2
  assert 'contain only prompts' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


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
  validation = evaluate.Validation(
    tmp_path / 'out',
    seq_len=7,
    batch_size=2,
    token_bytes=tokenizer.load(tmp_path / 'out').token_bytes(),
  )
  assert json.dumps(validation.num_targets) == str(len(found))
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
    {'prompt': 'x', 'completion': None, 'text': None},
  ]
  parsed = documents.parse(corpora.lines(lines), instructions=True)
  assert [number for number, _ in parsed.bad] == [1, 2, 3, 5]
  assert '"prompt" and "completion"' in parsed.bad[0][1]
  assert parsed.texts == []
  parsed = documents.parse(corpora.lines(_LINES))
  assert [number for number, _ in parsed.bad] == [1, 2, 4, 5]


def test_null_is_the_same_as_absent():
  lines = [
    {'text': None, 'prompt': 'x', 'completion': 'y'},
    {'prompt': 'x', 'completion': None, 'response': 'y', 'messages': None},
    {'text': 'z', 'prompt': 'x', 'completion': None},
    {'text': 'z', 'response': 'y'},
  ]
  parsed = documents.parse(corpora.lines(lines), instructions=True)
  assert not parsed.bad
  assert [text for _, text in parsed.texts] == [
    ('x', 'y'),
    ('x', 'y'),
    'z',
    'z',
  ]


_CHAT = [
  ('system', 'Be brief.'),
  ('user', 'Document 1?'),
  ('assistant', 'It says café.'),
  ('user', 'And 2?'),
  ('assistant', ''),
  ('assistant', 'No.'),
  ('user', 'Never answered.'),
]
# By hand: what is read only, what is a target, ...
_PARTS = (
  '### system\nBe brief.\n\n### user\nDocument 1?\n\n### assistant\n',
  'It says café.',
  '### user\nAnd 2?\n\n### assistant\n',
  '',
  '### assistant\n',
  'No.',
)


def _messages(pairs=_CHAT, **more):
  return [{'role': role, 'content': text, **more} for role, text in pairs]


@pytest.mark.parametrize('kind', ['jsonl', 'parquet'])
def test_only_what_the_assistant_says_is_a_target(kind, tmp_path):
  records = [
    {'messages': _messages(other=None), 'prompt': 'not read', 'meta': None},
    {'messages': _messages(_CHAT[1:3]), 'meta': {'pile_set_name': 'chat'}},
  ]
  path = tmp_path / f'v.{kind}'
  if kind == 'parquet':
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
  else:
    path.write_bytes(corpora.lines(records))
  (tmp_path / 'a.jsonl').write_bytes(corpora.lines([_TRAINED]))
  source = Source(
    str(tmp_path / 'a.jsonl'), validation_pattern=str(path), instructions=True
  )
  bpe = corpora.bpe(tmp_path / 'bpe.json')
  prepare.prepare_files(tmp_path / 'out', source, bpe, log=lambda _: None)
  model = tokenizer.load(bpe)
  for subset, parts in (
    ('text', _PARTS),
    ('chat', ('### user\nDocument 1?\n\n### assistant\n', 'It says café.')),
  ):
    expected = []
    for prompt, response in zip(parts[::2], parts[1::2], strict=True):
      prompt, response = model.encode_batch([prompt, response])
      expected += [*(~prompt), *response, model.eot_id]
    stream = shards.open_split(tmp_path / 'out', 'validation', subset=subset)
    assert stream.read(0, stream.num_tokens).tolist() == expected


def test_the_page_shows_the_template():
  page = (runs.ROOT / 'docs' / 'preparation.md').read_text()
  chat = [
    ('system', 'Answer with a number.'),
    ('user', 'What is 2 + 2?'),
    ('assistant', '4'),
    ('user', 'Plus 2?'),
    ('assistant', '6'),
  ]
  lines = corpora.lines([{'messages': _messages(chat)}])
  ((_, parts),) = documents.parse(lines, instructions=True).texts
  assert parts[1::2] == ('4', '6')
  text = ''.join(
    p + tokenizer.END_OF_TEXT * (i % 2) for i, p in enumerate(parts)
  )
  assert f'```\n{text}\n```' in page


@pytest.mark.parametrize(
  ('messages', 'reason'),
  [
    ('hello', '"messages" is not a list'),
    ({'role': 'user', 'content': 'x'}, '"messages" is not a list'),
    ([], 'no message of the assistant'),
    (_messages(_CHAT[:2]), 'no message of the assistant'),
    (['hello'], 'message 1 has the role None'),
    (_messages([*_CHAT[:3], ('tool', 'x')]), "message 4 has the role 'tool'"),
    (_messages([('assistant', None)]), 'message 1 has no string "content"'),
    (_messages([('assistant', ['x'])]), 'message 1 has no string "content"'),
    ([{'role': 'assistant'}], 'message 1 has no string "content"'),
    ([{'role': ['user'], 'content': 'x'}], 'message 1 has the role'),
  ],
)
def test_malformed_messages_are_bad_lines(messages, reason):
  lines = corpora.lines([{'messages': messages, 'text': 'not read'}])
  parsed = documents.parse(lines, instructions=True)
  assert not parsed.texts
  ((number, found),) = parsed.bad
  assert number == 1
  assert reason in found


@pytest.mark.parametrize(
  ('columns', 'instructions', 'fragment'),
  [
    ({'prompt': ['x']}, False, 'no column "text", only prompt: rename one'),
    ({'messages': [[{'role': 'user'}]]}, False, 'pass --instructions'),
    ({'prompt': ['x'], 'response': ['x']}, False, 'pass --instructions'),
    ({'prompt': ['x']}, True, 'and no "text", only prompt: rename one'),
    ({'completion': ['x']}, True, 'no "prompt" with "completion"'),
    ({'prompt': [1], 'response': ['x']}, True, '"prompt" of type int64'),
    ({'messages': ['x']}, True, '"messages" of type string, but lists'),
    ({'messages': [['x']]}, True, '"messages" of type list'),
  ],
)
def test_columns_of_parquet(columns, instructions, fragment, tmp_path):
  path = tmp_path / 'a.parquet'
  pyarrow.parquet.write_table(pyarrow.table(columns), path)
  with pytest.raises(UserError) as error:
    list(readers.blocks(path, instructions))
  assert fragment in str(error.value)


def test_a_column_of_nulls_counts_as_absent(tmp_path):
  path = tmp_path / 'a.parquet'
  columns = {'messages': [None], 'prompt': [None], 'text': ['x']}
  pyarrow.parquet.write_table(pyarrow.table(columns), path)
  ((content, _),) = readers.blocks(path, True)
  assert documents.parse(content, instructions=True).texts == [('text', 'x')]


def test_workers_make_the_table_of_token_bytes(tmp_path):
  model = tokenizer.load(corpora.bpe(tmp_path / 'bpe.json'))
  made = []
  table = model.token_bytes
  model.token_bytes = lambda: made.append(1) or table()
  encoder = encoding.Encoder(model)
  assert not made
  list(encoder.encode([('text', 'one')]))
  list(encoder.encode([('text', 'two')]))
  assert len(made) == 1


def test_the_hash_tells_where_prompts_end(tmp_path):
  hashes = {
    _prepare(tmp_path, [line], f'out{i}')['corpus_hash']
    for i, line in enumerate(
      [
        {'prompt': 'one', 'completion': ' two'},
        {'prompt': 'one ', 'completion': 'two'},
        {'text': 'one two'},
        {'messages': _messages(_CHAT[:3])},
        {'messages': _messages(_CHAT[1:3])},
      ]
    )
  }
  assert len(hashes) == 5


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
