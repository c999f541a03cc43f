"""A user's files: reading them, their splits, what is wrong with them."""

import os

import pytest
import tokenizers

from tests.support import corpora
from train import prepare
from train.data import documents, encoding, source
from train.data.source import Source
from train.errors import UserError


def _quiet(_):
  pass


@pytest.fixture(scope='module', name='bpe')
def _bpe(tmp_path_factory):
  return corpora.bpe(tmp_path_factory.mktemp('bpe') / 'tokenizer.json')


def test_exact_counts_of_each_subset(bpe, tmp_path):
  records = corpora.records(60)
  (tmp_path / 'a.jsonl').write_bytes(corpora.lines(records[10:]))
  (tmp_path / 'val.jsonl').write_bytes(corpora.lines(records[:10]))
  manifest = prepare.prepare_files(
    tmp_path / 'out',
    Source(f'{tmp_path}/a.jsonl', f'{tmp_path}/val.jsonl'),
    bpe,
    log=_quiet,
  )
  model = tokenizers.Tokenizer.from_file(str(bpe))
  for split, part in (('validation', records[:10]), ('train', records[10:])):
    for subset, entry in manifest['splits'][split].items():
      texts = [r['text'] for r in part if r['meta']['pile_set_name'] == subset]
      size = sum(len(text.encode()) for text in texts)
      assert entry['documents'] == len(texts) > 3
      assert entry['bytes'] == entry['token_bytes'] == size
      tokens = sum(len(model.encode(text).ids) + 1 for text in texts)
      assert entry['tokens'] == tokens
      assert sum(shard['tokens'] for shard in entry['shards']) == tokens
    assert len(manifest['splits'][split]) == 2


@pytest.mark.parametrize('name', ['json', 'jsonl'])
@pytest.mark.parametrize('kind', ['', 'gz', 'zst'])
def test_json_lines_of_each_kind(name, kind, bpe, tmp_path):
  records = corpora.records(60)
  suffix = f'.{name}.{kind}'.removesuffix('.')
  for stem, part in (('a', records[:40]), ('b', records[40:])):
    path = tmp_path / f'{stem}{suffix}'
    path.write_bytes(corpora.compress(kind, corpora.lines(part)))
  out = tmp_path / 'out'
  manifest = prepare.prepare_files(
    out, Source(f'{tmp_path}/*.json*', validation_fraction=0.2), bpe, log=_quiet
  )
  found = {}
  for subset in ('Books', 'Code (C)'):
    for split in ('train', 'validation'):
      assert subset in manifest['splits'][split]
      texts = corpora.texts(out, split, subset)
      found.setdefault(subset, []).extend(texts)
      found.setdefault(split, []).extend(texts)
  for subset in ('Books', 'Code (C)'):
    assert sorted(found[subset]) == sorted(
      r['text'] for r in records if r['meta']['pile_set_name'] == subset
    )
  assert not set(found['train']) & set(found['validation'])
  assert 3 <= len(found['validation']) <= 25


def test_two_asterisks_stand_for_directories(tmp_path):
  names = ('top.jsonl', 'a/one.jsonl', 'a/b/two.jsonl')
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{}')
  found = source.find(f'{tmp_path}/**/*.jsonl')
  assert {str(f.relative_to(tmp_path)) for f in found} == set(names)
  assert source.find(f'{tmp_path}/*/*.jsonl') == [tmp_path / 'a/one.jsonl']


def test_validation_files(bpe, tmp_path):
  (tmp_path / 'train.jsonl').write_bytes(corpora.lines(corpora.records(9)))
  (tmp_path / 'val.jsonl').write_bytes(corpora.lines([{'text': 'held out'}]))
  manifest = prepare.prepare_files(
    tmp_path / 'out',
    Source(
      str(tmp_path / 'train.jsonl'),
      validation_pattern=str(tmp_path / 'val.jsonl'),
      validation_fraction=0.9,
    ),
    bpe,
    log=_quiet,
  )
  assert corpora.texts(tmp_path / 'out', 'validation', 'text') == ['held out']
  assert sum(e['documents'] for e in manifest['splits']['train'].values()) == 9


def test_what_is_held_out_is_not_trained_on(bpe, tmp_path):
  def write(name, texts):
    (tmp_path / name).write_bytes(corpora.lines([{'text': t} for t in texts]))

  write('a.jsonl', ['one', 'two', 'held out'])
  write('val.jsonl', ['held out', 'this too'])
  (tmp_path / 'link.jsonl').symlink_to(tmp_path / 'val.jsonl')
  said = []
  prepare.prepare_files(
    tmp_path / 'out',
    Source(f'{tmp_path}/*.jsonl', validation_pattern=f'{tmp_path}/val.jsonl'),
    bpe,
    log=said.append,
  )
  assert corpora.texts(tmp_path / 'out', 'train', 'text') == ['one', 'two']
  found = corpora.texts(tmp_path / 'out', 'validation', 'text')
  assert found == ['held out', 'this too']
  assert said[0].startswith('2 files of --input are held out')
  assert 'Left out 1 copies of validation documents.' in said
  with pytest.raises(UserError, match='no file is left for training'):
    prepare.prepare_files(
      tmp_path / 'none',
      Source(
        f'{tmp_path}/val.jsonl', validation_pattern=f'{tmp_path}/val.jsonl'
      ),
      bpe,
    )


def test_held_out_text_is_limited(bpe, tmp_path, monkeypatch):
  monkeypatch.setattr(documents, 'MAX_HELD_OUT_BYTES', 300)
  records = corpora.records(200)
  (tmp_path / 'a.jsonl').write_bytes(corpora.lines(records + records))
  manifest = prepare.prepare_files(
    tmp_path / 'out',
    Source(f'{tmp_path}/a.jsonl', validation_fraction=0.5),
    bpe,
    log=_quiet,
  )
  size = {
    split: sum(e['bytes'] for e in entries.values())
    for split, entries in manifest['splits'].items()
  }
  assert 250 < size['validation'] <= 300
  whole = sum(len(r['text'].encode()) for r in records)
  # Both copies of each, but for those held out once.
  assert size['train'] == 2 * (whole - size['validation'])


def test_the_fraction_changes_the_corpus_hash(bpe, tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(corpora.lines(corpora.records(40)))
  hashes = {
    prepare.prepare_files(
      tmp_path / f'out-{fraction}',
      Source(f'{tmp_path}/a.jsonl', validation_fraction=fraction),
      bpe,
      log=_quiet,
    )['corpus_hash']
    for fraction in (0.1, 0.5)
  }
  assert len(hashes) == 2


def test_an_edited_file_is_not_done(bpe, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(corpora.lines(corpora.records(40)))

  def run():
    prepare.prepare_files(
      tmp_path / 'out',
      Source(str(path), validation_fraction=0.5),
      bpe,
      log=_quiet,
    )

  run()
  run()
  path.write_bytes(path.read_bytes().replace(b'says', b'eats'))
  os.utime(path, ns=(1, 1))  # Clocks of file systems are coarse.
  with pytest.raises(UserError, match='with other files'):
    run()


def test_copies_of_a_document_are_in_one_split(bpe, tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.jsonl').write_bytes(corpora.lines(corpora.records(40)))
  out = tmp_path / 'out'
  prepare.prepare_files(
    out, Source(f'{tmp_path}/*.jsonl', validation_fraction=0.5), bpe, log=_quiet
  )
  found = [
    {
      text
      for subset in ('Books', 'Code (C)')
      for text in corpora.texts(out, split, subset)
    }
    for split in ('train', 'validation')
  ]
  assert len(found[0]) > 5
  assert len(found[1]) > 5
  assert not found[0] & found[1]


def test_bad_input_of_files(bpe, tmp_path):
  def run(pattern, **kwargs):
    prepare.prepare_files(
      tmp_path / 'out',
      Source(str(tmp_path / pattern), **kwargs),
      bpe,
      log=_quiet,
    )

  with pytest.raises(UserError, match='No file matches'):
    run('*.jsonl')
  with pytest.raises(UserError, match=r"a directory; use '.*/\*'"):
    run('.')
  (tmp_path / 'a.csv').write_text('x')
  with pytest.raises(UserError, match='unknown type'):
    run('a.csv')
  (tmp_path / 'a.jsonl').write_text('\n')
  with pytest.raises(UserError, match='no document for the train split'):
    run('a.jsonl')
  (tmp_path / 'a.jsonl').write_bytes(corpora.lines(corpora.records(3)))
  with pytest.raises(UserError, match='no document for the validation'):
    run('a.jsonl', validation_fraction=1e-9)
  for wrong in (0.0, 1.0, -1.0, float('nan')):
    # Refused before it looks for files.
    with pytest.raises(UserError, match='validation_fraction is'):
      run('*.none', validation_fraction=wrong)
  assert not (tmp_path / 'out').exists()
  assert not (tmp_path / 'out.partial').exists()


def test_bad_lines_are_shown_and_counted_up_to_the_limit(bpe, tmp_path):
  lines = corpora.lines(corpora.records(40)).splitlines(keepends=True)
  (tmp_path / 'a.jsonl').write_bytes(b''.join([*lines[:9], b'{\n' * 7]))
  (tmp_path / 'b.jsonl').write_bytes(b''.join([b'\n', b'[]\n', *lines[9:]]))
  said = []

  def run(limit):
    prepare.prepare_files(
      tmp_path / 'out',
      Source(
        f'{tmp_path}/*.jsonl', validation_fraction=0.5, max_bad_lines=limit
      ),
      bpe,
      log=said.append,
    )

  with pytest.raises(UserError, match=r'b\.jsonl, line 2: no string "text"'):
    run(7)
  said.clear()
  run(8)
  shown = [line for line in said if 'a.jsonl, line ' in line]
  assert len(shown) == 5
  for number, line in enumerate(shown, 10):
    assert line.startswith(
      f'Skipped {tmp_path}/a.jsonl, line {number}: not JSON'
    )
  assert 'more are only counted' in shown[-1]
  assert 'Skipped 8 lines without a document.' in said


def test_encoding_is_batched_and_keeps_the_order(bpe, tmp_path, monkeypatch):
  monkeypatch.setattr(encoding, '_BATCH_CHARACTERS', 50)
  (tmp_path / 'a.jsonl').write_bytes(corpora.lines(corpora.records(30)))
  (tmp_path / 'val.jsonl').write_bytes(corpora.lines([{'text': 'held out'}]))
  prepare.prepare_files(
    tmp_path / 'out',
    Source(f'{tmp_path}/a.jsonl', f'{tmp_path}/val.jsonl'),
    bpe,
    log=_quiet,
  )
  books = [r['text'] for r in corpora.records(30)[1::2]]
  assert corpora.texts(tmp_path / 'out', 'train', 'Books') == books
