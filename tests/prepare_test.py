"""From text to shards: readers, splits, atomicity, the command line."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zstandard

from train import (
  corpus,
  encoding,
  holdout,
  prepare,
  readers,
  shards,
  staging,
  tokenizer,
)
from train.errors import Interrupted, UserError

_BYTES = 240_000


def _quiet(_):
  pass


def _bundled(output, vocab_size=300, max_bytes=_BYTES, **kwargs):
  return prepare.prepare_bundled(
    output, vocab_size, max_bytes, log=_quiet, **kwargs
  )


@pytest.fixture(scope='module', name='bundled')
def _prepared(tmp_path_factory):
  output = tmp_path_factory.mktemp('bundled') / 'data'
  _bundled(output)
  return output


@pytest.fixture(scope='module', name='bpe')
def _bpe(bundled):
  return bundled / 'tokenizer.json'


def _records(count):
  return [
    {
      'text': f'Document {i} says café. ' * (i % 5 + 1),
      'meta': {'pile_set_name': 'Books' if i % 2 else 'Code (C)'},
    }
    for i in range(count)
  ]


def _lines(records):
  return ''.join(json.dumps(r) + '\n' for r in records).encode()


def _texts(directory, split, subset):
  """The documents back out of the shards."""
  model = tokenizer.load(directory)
  stream = shards.open_split(directory, split, subset=subset)
  tokens = stream.read(0, stream.num_tokens)
  ends = np.flatnonzero(tokens == model.eot_id)
  parts = np.split(tokens, ends + 1)
  assert not len(parts[-1])
  return [model.decode(part[:-1]) for part in parts[:-1]]


def _hash(items):
  digest = encoding.CorpusHash()
  for split, subset, text in items:
    digest.add(split, corpus.Document(subset, 'any', text))
  return digest.hexdigest()


def test_the_hash_sees_splits_subsets_texts_and_their_order():
  one, two = ('train', 'a', 'bc'), ('train', 'a', 'd')
  changed = [
    [two, one],
    [one],
    [('validation', 'a', 'bc'), two],
    [('train', 'A', 'bc'), two],
    [('train', 'a', 'bc '), two],
    [('train', 'ab', 'c'), two],  # The same characters, otherwise divided.
  ]
  assert len({_hash(c) for c in [[one, two], [one, two], *changed]}) == 7


def test_bundled_shards_hold_the_corpus(bundled):
  documents = list(prepare.corpus.documents(_BYTES))
  train, validation = prepare.corpus.split(documents)
  for split, expected in (('train', train), ('validation', validation)):
    for subset in prepare.corpus.SUBSETS:
      assert _texts(bundled, split, subset) == [
        d.text for d in expected if d.subset == subset
      ]
  manifest = shards.read_manifest(bundled)
  assert manifest['corpus_hash'] == _hash(
    [
      *(('train', d.subset, d.text) for d in train),
      *(('validation', d.subset, d.text) for d in validation),
    ]
  )
  assert manifest['versions'] == prepare.corpus.versions()
  total = sum(
    e['bytes'] for s in manifest['splits'].values() for e in s.values()
  )
  assert total == sum(d.num_bytes for d in documents)


def test_done_is_done(bundled):
  def never():
    raise AssertionError('nothing should be read')

  before = (bundled / 'manifest.json').stat().st_mtime_ns
  manifest = _bundled(bundled, should_stop=never)
  assert manifest == shards.read_manifest(bundled)
  assert (bundled / 'manifest.json').stat().st_mtime_ns == before


def test_another_data_set_is_not_overwritten(bundled, tmp_path):
  with pytest.raises(UserError, match='bpe-300, not bpe-301'):
    _bundled(bundled, vocab_size=301)
  with pytest.raises(UserError, match='max_bytes=240000, not None'):
    _bundled(bundled, max_bytes=None)
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
  with pytest.raises(UserError, match='choose another directory'):
    _bundled(tmp_path / 'mine')
  assert [p.name for p in tmp_path.iterdir()] == ['mine']
  (tmp_path / 'file').write_text('precious')
  with pytest.raises(UserError, match='choose another directory'):
    _bundled(tmp_path / 'file')


def test_given_tokenizer_is_used(bpe, tmp_path):
  manifest = _bundled(tmp_path / 'out', 9999, 30_000, tokenizer=bpe)
  assert manifest['vocab_size'] == 300
  assert (tmp_path / 'out' / 'tokenizer.json').read_bytes() == bpe.read_bytes()


@pytest.mark.parametrize('polls', [1, 5, 25])
def test_stopping_leaves_nothing_and_a_rerun_completes(
  polls, bundled, tmp_path
):
  asked = []

  def should_stop():
    asked.append(True)
    assert not (tmp_path / 'out').exists()
    assert len(asked) <= polls, 'it went on'
    return len(asked) == polls

  with pytest.raises(Interrupted):
    _bundled(tmp_path / 'out', should_stop=should_stop)
  assert not list(tmp_path.iterdir())
  again = _bundled(tmp_path / 'out')
  assert again == shards.read_manifest(bundled)


def test_a_killed_preparation_is_started_afresh(tmp_path):
  stale = tmp_path / 'out.partial' / 'data'
  stale.mkdir(parents=True)
  (stale / 'train-code-00000.bin').write_bytes(b'half')
  (stale / 'manifest.json').write_text('{}')
  _bundled(tmp_path / 'out')
  assert shards.open_split(tmp_path / 'out', 'train').num_tokens > 1000
  assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_two_preparations_of_one_directory(tmp_path):
  with (
    staging._locked(tmp_path / 'out.partial'),
    pytest.raises(UserError, match='Another process is preparing'),
  ):
    _bundled(tmp_path / 'out')


def test_an_empty_directory_is_filled(tmp_path):
  (tmp_path / 'out').mkdir()
  _bundled(tmp_path / 'out')
  assert (tmp_path / 'out' / 'manifest.json').exists()


def _compress(kind, content):
  if kind == 'gz':
    return gzip.compress(content)
  if kind == 'zst':
    # Two frames, as zstd -T or concatenated files make.
    half = len(content) // 2
    compress = zstandard.ZstdCompressor().compress
    return compress(content[:half]) + compress(content[half:])
  return content


@pytest.mark.parametrize('name', ['json', 'jsonl'])
@pytest.mark.parametrize('kind', ['', 'gz', 'zst'])
def test_json_lines_of_each_kind(name, kind, bpe, tmp_path):
  records = _records(60)
  suffix = f'.{name}.{kind}'.removesuffix('.')
  for stem, part in (('a', records[:40]), ('b', records[40:])):
    path = tmp_path / f'{stem}{suffix}'
    path.write_bytes(_compress(kind, _lines(part)))
  out = tmp_path / 'out'
  manifest = prepare.prepare_files(
    out, f'{tmp_path}/*.json*', bpe, validation_fraction=0.2, log=_quiet
  )
  found = {}
  for subset in ('Books', 'Code (C)'):
    for split in ('train', 'validation'):
      assert subset in manifest['splits'][split]
      texts = _texts(out, split, subset)
      found.setdefault(subset, []).extend(texts)
      found.setdefault(split, []).extend(texts)
  for subset in ('Books', 'Code (C)'):
    assert sorted(found[subset]) == sorted(
      r['text'] for r in records if r['meta']['pile_set_name'] == subset
    )
  assert not set(found['train']) & set(found['validation'])
  assert 3 <= len(found['validation']) <= 25


def test_validation_files(bpe, tmp_path):
  (tmp_path / 'train.jsonl').write_bytes(_lines(_records(9)))
  (tmp_path / 'val.jsonl').write_bytes(_lines([{'text': 'held out'}]))
  manifest = prepare.prepare_files(
    tmp_path / 'out',
    str(tmp_path / 'train.jsonl'),
    bpe,
    validation_pattern=str(tmp_path / 'val.jsonl'),
    validation_fraction=0.9,
    log=_quiet,
  )
  assert _texts(tmp_path / 'out', 'validation', 'text') == ['held out']
  assert sum(e['documents'] for e in manifest['splits']['train'].values()) == 9


def test_what_is_held_out_is_not_trained_on(bpe, tmp_path):
  def write(name, texts):
    (tmp_path / name).write_bytes(_lines([{'text': t} for t in texts]))

  write('a.jsonl', ['one', 'two', 'held out'])
  write('val.jsonl', ['held out', 'this too'])
  (tmp_path / 'link.jsonl').symlink_to(tmp_path / 'val.jsonl')
  said = []
  prepare.prepare_files(
    tmp_path / 'out',
    f'{tmp_path}/*.jsonl',
    bpe,
    validation_pattern=f'{tmp_path}/val.jsonl',
    log=said.append,
  )
  assert _texts(tmp_path / 'out', 'train', 'text') == ['one', 'two']
  found = _texts(tmp_path / 'out', 'validation', 'text')
  assert found == ['held out', 'this too']
  assert said[0].startswith('2 files that --input matches are held out')
  assert 'Left out 1 copies of validation documents.' in said
  with pytest.raises(UserError, match='nothing is left to train on'):
    prepare.prepare_files(
      tmp_path / 'none',
      f'{tmp_path}/val.jsonl',
      bpe,
      validation_pattern=f'{tmp_path}/val.jsonl',
    )


def test_held_out_text_is_limited(bpe, tmp_path, monkeypatch):
  monkeypatch.setattr(holdout, 'MAX_BYTES', 300)
  records = _records(200)
  (tmp_path / 'a.jsonl').write_bytes(_lines(records + records))
  manifest = prepare.prepare_files(
    tmp_path / 'out',
    f'{tmp_path}/a.jsonl',
    bpe,
    validation_fraction=0.5,
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
  (tmp_path / 'a.jsonl').write_bytes(_lines(_records(40)))
  hashes = {
    prepare.prepare_files(
      tmp_path / f'out-{fraction}',
      f'{tmp_path}/a.jsonl',
      bpe,
      validation_fraction=fraction,
      log=_quiet,
    )['corpus_hash']
    for fraction in (0.1, 0.5)
  }
  assert len(hashes) == 2


def test_an_edited_file_is_not_done(bpe, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(_lines(_records(40)))

  def run():
    prepare.prepare_files(
      tmp_path / 'out', str(path), bpe, validation_fraction=0.5, log=_quiet
    )

  run()
  run()
  path.write_bytes(path.read_bytes().replace(b'says', b'eats'))
  os.utime(path, ns=(1, 1))  # Clocks of file systems are coarse.
  with pytest.raises(UserError, match='with other files'):
    run()


def test_copies_of_a_document_are_in_one_split(bpe, tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.jsonl').write_bytes(_lines(_records(40)))
  out = tmp_path / 'out'
  prepare.prepare_files(
    out, f'{tmp_path}/*.jsonl', bpe, validation_fraction=0.5, log=_quiet
  )
  found = [
    {
      text
      for subset in ('Books', 'Code (C)')
      for text in _texts(out, split, subset)
    }
    for split in ('train', 'validation')
  ]
  assert len(found[0]) > 5
  assert len(found[1]) > 5
  assert not found[0] & found[1]


def _read(path, limit=0):
  bad = readers.BadLines(limit)
  return list(readers.read_documents(path, bad)), bad.count


def test_text_files_are_cut_into_documents(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one\ntwo\n<|endoftext|>\n\n<|endoftext|>three')
  documents, _ = _read(path)
  assert [d.text for d in documents] == [
    'one\ntwo\n',
    '\n<|endoftext|>three',
  ]


def test_a_long_text_is_cut_and_loses_nothing(tmp_path):
  path = tmp_path / 'a.txt'
  lines = ''.join(f'line {i} with a few words é\n' for i in range(5000))
  for text in (lines, lines.replace('\n', ' ')):
    path.write_text(text)
    documents, _ = _read(path)
    assert ''.join(d.text for d in documents) == text
    assert len(documents) > 5
    assert max(len(d.text) for d in documents) < 2**15


def test_bad_lines_are_counted_up_to_the_limit(tmp_path):
  path = tmp_path / 'a.jsonl'
  bad = [b'{"text": ', b'[1]', b'{"text": 3}', b'{}', b'"\xff"', b'null']
  good = _lines([{'text': 'good'}, {'text': ''}, {'text': 'x \ud800'}])
  path.write_bytes(b'\n'.join([*bad, b'', good]))
  documents, count = _read(path, limit=6)
  assert [(d.subset, d.text) for d in documents] == [
    ('text', 'good'),
    ('text', 'x ?'),
  ]
  assert count == 6
  with pytest.raises(UserError, match=r'a\.jsonl, line 6: no string "text"'):
    _read(path, limit=5)


@pytest.mark.parametrize('kind', ['gz', 'zst'])
@pytest.mark.parametrize('damage', ['truncated', 'not compressed'])
def test_damaged_archives_are_told(kind, damage, tmp_path):
  path = tmp_path / f'a.jsonl.{kind}'
  content = _compress(kind, _lines(_records(500)))
  path.write_bytes(content[:-20] if damage == 'truncated' else b'{"text": 1}')
  with pytest.raises(UserError, match=f'{path.name} cannot be read'):
    _read(path)


def test_bad_input_of_files(bpe, tmp_path):
  def run(pattern, **kwargs):
    prepare.prepare_files(
      tmp_path / 'out', str(tmp_path / pattern), bpe, log=_quiet, **kwargs
    )

  with pytest.raises(UserError, match='No file matches'):
    run('*.jsonl')
  (tmp_path / 'a.csv').write_text('x')
  with pytest.raises(UserError, match='unknown type'):
    run('a.csv')
  (tmp_path / 'a.jsonl').write_text('\n')
  with pytest.raises(UserError, match='no document for the train split'):
    run('a.jsonl')
  (tmp_path / 'a.jsonl').write_bytes(_lines(_records(3)))
  with pytest.raises(UserError, match='no document for the validation'):
    run('a.jsonl', validation_fraction=1e-9)
  for wrong in (0.0, 1.0, -1.0, float('nan')):
    # Refused before it looks for files.
    with pytest.raises(UserError, match='validation_fraction is'):
      run('*.none', validation_fraction=wrong)
  assert not (tmp_path / 'out').exists()
  assert not (tmp_path / 'out.partial').exists()


def test_encoding_is_batched_and_keeps_the_order(bpe, tmp_path, monkeypatch):
  monkeypatch.setattr(encoding, '_BATCH_CHARACTERS', 50)
  (tmp_path / 'a.jsonl').write_bytes(_lines(_records(30)))
  (tmp_path / 'val.jsonl').write_bytes(_lines([{'text': 'held out'}]))
  prepare.prepare_files(
    tmp_path / 'out',
    str(tmp_path / 'a.jsonl'),
    bpe,
    validation_pattern=str(tmp_path / 'val.jsonl'),
    log=_quiet,
  )
  books = [r['text'] for r in _records(30)[1::2]]
  assert _texts(tmp_path / 'out', 'train', 'Books') == books


def test_command_line(bundled, capsys):
  arguments = ['--source', 'bundled', '--max_mb', '0.24', '--output']
  arguments = [*arguments, str(bundled), '--vocab_size']
  assert prepare.main([*arguments, '300']) == 0
  assert prepare.main([*arguments, '301']) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  for wrong in (['--output', 'x'], ['--input', 'a', '--source', 'bundled']):
    with pytest.raises(SystemExit) as caught:
      prepare.main(wrong)
    assert caught.value.code == 2
  assert prepare.main(['--input', 'a', '--output', 'x']) == 2


@pytest.mark.parametrize('size', ['nan', 'inf', '-inf', '0', '-1'])
def test_sizes_that_are_none(size, tmp_path, capsys):
  arguments = ['--source=bundled', f'--output={tmp_path / "out"}']
  assert prepare.main([*arguments, f'--max_mb={size}']) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: max_mb is')
  assert error.count('\n') == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sigterm_ends_the_command_cleanly(tmp_path):
  command = [sys.executable, '-m', 'train.prepare', '--source', 'bundled']
  with subprocess.Popen(
    [*command, '--output', str(tmp_path / 'out')],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    while not (tmp_path / 'out.partial' / 'data').exists():
      assert process.poll() is None
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert 'nothing was kept' in error
  assert not list(tmp_path.iterdir())
