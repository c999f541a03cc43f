"""Blocks of input files, and the documents in them."""

import importlib.util

import pyarrow
import pyarrow.parquet
import pytest

from tests.support import corpora
from train.data import documents, encoding, readers, source, tokenizer
from train.errors import UserError


def _read(path):
  """Texts with their subsets, bad lines, and the number of blocks."""
  texts, bad, lines, blocks, last = [], [], 0, 0, 0
  for content, read in readers.blocks(path):
    parsed = documents.parse(content)
    texts += parsed.texts
    bad += [(lines + number, reason) for number, reason in parsed.bad]
    lines += parsed.lines
    blocks += 1
    assert last <= read <= path.stat().st_size
    last = read
  return texts, bad, blocks


@pytest.mark.parametrize('size', [1, 7, 64, 1000, 2**20])
@pytest.mark.parametrize('kind', ['', 'gz', 'zst'])
@pytest.mark.parametrize('ended', [True, False])
def test_lines_stay_whole(size, kind, ended, tmp_path, monkeypatch):
  monkeypatch.setattr(readers, '_BLOCK', size)
  records = corpora.records(30)
  path = tmp_path / f'a.jsonl.{kind}'.removesuffix('.')
  content = corpora.lines(records)
  content = b'\n\n' + (content if ended else content[:-1])
  path.write_bytes(corpora.compress(kind, content))
  texts, bad, blocks = _read(path)
  assert texts == [(r['meta']['pile_set_name'], r['text']) for r in records]
  assert not bad
  longest = max(len(line) for line in content.splitlines()) + 1
  assert len(content) / (longest + size) <= blocks <= 32


@pytest.mark.parametrize('size', [1, 16, 2**20])
def test_a_line_beyond_the_limit_is_bad(size, tmp_path, monkeypatch):
  monkeypatch.setattr(readers, '_BLOCK', size)
  monkeypatch.setattr(readers, '_MAX_LINE', 99)
  short, long = [corpora.lines([{'text': 'x' * n}]) for n in (9, 1000)]
  path = tmp_path / 'a.jsonl'
  for content in (
    short + long + short + short,
    short + short + long,
    long[:-1],
    long + long + short,
  ):
    path.write_bytes(content)
    texts, bad, _ = _read(path)
    lines = content.splitlines()
    if size < 1000:
      assert bad == [
        (number, 'the line is too long')
        for number, line in enumerate(lines, 1)
        if len(line) > 99
      ]
    # A block that is larger than the limit holds the line already.
    count = len(lines) - len(bad)
    assert len(texts) == count


def test_text_files_are_cut_into_documents(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one\ntwo\n<|endoftext|>\n\n<|endoftext|>three')
  texts, _, _ = _read(path)
  assert texts == [
    ('text', 'one\ntwo\n'),
    ('text', '\n<|endoftext|>three'),
  ]


@pytest.mark.parametrize(
  ('name', 'content'), [('a.txt', 'é\n'), ('a.jsonl', '{"text": "é\\n"}')]
)
def test_a_byte_order_mark_is_no_text(name, content, tmp_path):
  path = tmp_path / name
  path.write_text(content, encoding='utf-8-sig')
  texts, _, _ = _read(path)
  assert texts == [('text', 'é\n')]


def test_a_long_text_is_cut_and_loses_nothing(tmp_path):
  path = tmp_path / 'a.txt'
  lines = ''.join(f'line {i} with a few words é\n' for i in range(5000))
  for text in (lines, lines.replace('\n', ' ')):
    path.write_text(text)
    texts, _, _ = _read(path)
    assert ''.join(t for _, t in texts) == text
    assert len(texts) > 5
    assert max(len(t) for _, t in texts) < 2**15


def test_bad_lines_are_told(tmp_path):
  path = tmp_path / 'a.jsonl'
  bad = [b'{"text": ', b'[1]', b'{"text": 3}', b'{}', b'"\xff"', b'null']
  bad.append(b'[' * 10**5)
  good = [{'text': 'good'}, {'text': ''}, {'text': 'x \ud800'}]
  path.write_bytes(b'\n'.join([*bad, b'', corpora.lines(good)]))
  texts, found, _ = _read(path)
  assert texts == [('text', 'good'), ('text', 'x ?')]
  assert [number for number, _ in found] == [1, 2, 3, 4, 5, 6, 7]
  reasons = [reason[:7] for _, reason in found]
  assert reasons == [
    'not JSO',
    *['no stri'] * 3,
    'not JSO',
    'no stri',
    'not JSO',
  ]


@pytest.mark.parametrize('kind', ['gz', 'zst'])
@pytest.mark.parametrize('damage', ['truncated', 'not compressed'])
def test_damaged_archives_are_told(kind, damage, tmp_path):
  path = tmp_path / f'a.jsonl.{kind}'
  content = corpora.compress(kind, corpora.lines(corpora.records(500)))
  path.write_bytes(content[:-20] if damage == 'truncated' else b'{"text": 1}')
  with pytest.raises(UserError, match=f'{path.name} cannot be read'):
    _read(path)


@pytest.mark.parametrize('kind', ['struct', 'other struct', 'string', None])
def test_parquet(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(readers, '_BLOCK', 100)
  records = corpora.records(200)
  columns = {'id': list(range(201)), 'text': [r['text'] for r in records]}
  columns['text'].insert(150, None)
  metas = {
    'struct': [{'x': i, **r['meta']} for i, r in enumerate(records)],
    'other struct': [{'source': 'x'}] * 200,
    'string': ['x'] * 200,
  }
  if kind:
    columns['meta'] = metas[kind]
    columns['meta'].insert(150, None)
  path = tmp_path / 'a.parquet'
  table = pyarrow.table(columns)
  pyarrow.parquet.write_table(table, path, row_group_size=70)
  texts, bad, blocks = _read(path)
  assert [text for _, text in texts] == [r['text'] for r in records]
  subsets = {subset for subset, _ in texts}
  assert subsets == ({'Books', 'Code (C)'} if kind == 'struct' else {'text'})
  if kind == 'struct':
    assert [s for s, _ in texts] == [
      r['meta']['pile_set_name'] for r in records
    ]
  assert bad == [(151, 'no string "text"')]
  assert blocks > 50


def test_bad_parquet(tmp_path, monkeypatch):
  path = tmp_path / 'a.parquet'
  path.write_bytes(b'PAR1 not PAR1')
  with pytest.raises(UserError, match='cannot be read'):
    _read(path)
  pyarrow.parquet.write_table(pyarrow.table({'content': ['x']}), path)
  with pytest.raises(UserError, match='no column "text", only content'):
    _read(path)
  assert source.find(str(path)) == [path]
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match='install pyarrow'):
    source.find(str(path))


def test_a_long_document_has_the_tokens_of_one_piece(tmp_path, monkeypatch):
  model = tokenizer.load(corpora.bpe(tmp_path / 'tokenizer.json'))
  text = ''.join(
    f'Document {i} says{" " * (i % 3)}\n{chr(10) * (i % 4)}  café.'
    f'{chr(10) * (i % 5 == 0)}'
    for i in range(400)
  )
  (whole,) = encoding.Encoder(model).encode([('a', text)])
  monkeypatch.setattr(encoding, '_PIECE_CHARACTERS', 500)
  pieces = list(encoding._pieces(text))
  assert len(pieces) > len(text) / 500
  assert ''.join(pieces) == text
  monkeypatch.setattr(encoding, '_BATCH_CHARACTERS', 500)
  sizes = []
  encode = model.encode_batch
  model.encode_batch = lambda t: sizes.append(sum(map(len, t))) or encode(t)
  assert list(encoding.Encoder(model).encode([('a', text)])) == [whole]
  assert max(sizes) < 1000  # Less than twice what memory is to hold at once.
  for dense in ('x' * 3000, 'x ' * 1500, '\n' * 3000):
    assert ''.join(encoding._pieces(dense)) == dense
    assert max(len(piece) for piece in encoding._pieces(dense)) <= 500
