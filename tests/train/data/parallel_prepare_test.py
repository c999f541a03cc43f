"""Any number of workers and of kills gives the same files."""

import json
import multiprocessing
import os
import signal

import pyarrow
import pyarrow.parquet
import pytest

from tests.support import corpora, interrupted, runs
from train import prepare
from train.data import encoding, readers, streaming, workers
from train.data import tokenizer as tokenizer_lib
from train.data.source import Source
from train.errors import Interrupted, UserError


@pytest.fixture(scope='module', name='inputs')
def _inputs(tmp_path_factory):
  """Files of all kinds, with bad lines and copies."""
  root = tmp_path_factory.mktemp('inputs')
  records = corpora.records(160)
  for name, part in (('a.jsonl.zst', records[:50]), ('b.jsonl', records[40:])):
    lines = corpora.lines(part).splitlines(keepends=True)
    content = b''.join([*lines[:20], b'{"text": 1}\n\n', *lines[20:], b'['])
    (root / name).write_bytes(corpora.compress(name[-3:], content))
  table = pyarrow.table({'text': [f'Row {i}. ' * 9 for i in range(70)]})
  pyarrow.parquet.write_table(table, root / 'c.parquet')
  (root / 'd.txt').write_text('A line of text.\n<|endoftext|>\n' * 40)
  corpora.bpe(root / 'tokenizer')
  return root


@pytest.fixture(autouse=True)
def _small(monkeypatch):
  monkeypatch.setattr(readers, '_BLOCK', interrupted.BLOCK)


@pytest.fixture(name='commits')
def _commits(monkeypatch):
  """Commits after each block."""
  monkeypatch.setattr(streaming, '_COMMIT_SECONDS', 0)


def _prepare(
  inputs, output, num_workers=0, said=None, should_stop=None, **kwargs
):
  prepare.prepare_files(
    output,
    Source(f'{inputs}/*.*', **{'validation_fraction': 0.2, **kwargs}),
    inputs / 'tokenizer',
    workers=num_workers,
    should_stop=should_stop or (lambda: False),
    log=([] if said is None else said).append,
  )
  return corpora.files(output)


@pytest.fixture(scope='module', name='expected')
def _expected(inputs, tmp_path_factory):
  """The files that one process makes of larger blocks, without a stop."""
  output = tmp_path_factory.mktemp('expected') / 'out'
  files = _prepare(inputs, output)
  manifest = json.loads(files['manifest.json'])
  for split in ('train', 'validation'):
    assert set(manifest['splits'][split]) == {'Books', 'Code (C)', 'text'}
  return files


@pytest.mark.parametrize('count', [0, 1, 2, 3])
def test_the_number_of_workers_changes_nothing(
  count, inputs, expected, tmp_path
):
  said = []
  assert _prepare(inputs, tmp_path / 'out', count, said) == expected
  assert 'Skipped 4 lines without a document.' in said
  assert not (tmp_path / 'out.partial').exists()
  assert not multiprocessing.active_children()


def test_neither_do_commits(commits, inputs, expected, tmp_path):
  del commits
  assert _prepare(inputs, tmp_path / 'out') == expected


def _command(inputs, output, moment, name, num_workers):
  process = runs.start(
    [
      'prepare',
      moment,
      name,
      f'--input={inputs}/*.*',
      f'--tokenizer={inputs}/tokenizer',
      f'--output={output}',
      f'--workers={num_workers}',
      '--validation_fraction=0.2',
    ],
    module='tests.support.interrupted',
  )
  # Comes back when the last process that holds the pipes has ended, and
  # workers hold them, too.
  _, error = process.communicate(timeout=300)
  return process.returncode, error


@pytest.mark.slow
@pytest.mark.parametrize(
  ('moments', 'num_workers'),
  [
    (['commit:1', 'commit:5', 'add:20', 'add:1', 'rename'], 0),
    (['add:5', 'commit:9', 'add:97', 'rename', 'rename'], 2),
  ],
)
def test_kills(moments, num_workers, inputs, expected, tmp_path):
  output = tmp_path / 'out'
  for moment in moments:
    status, error = _command(inputs, output, moment, 'SIGKILL', num_workers)
    assert status == -signal.SIGKILL, error
    assert not output.exists()
    assert (tmp_path / 'out.partial' / 'progress.json').exists()
  said = []
  # With another number of workers than before.
  assert _prepare(inputs, output, 2 - num_workers, said) == expected
  assert any(line.startswith('Resuming after') for line in said)
  assert not (tmp_path / 'out.partial').exists()


@pytest.mark.slow
def test_signals_keep_what_is_done(inputs, expected, tmp_path):
  output = tmp_path / 'out'
  for name, status in (('SIGTERM', 143), ('SIGINT', 130)):
    found, error = _command(inputs, output, 'commit:4', name, 2)
    assert found == status
    assert f'rerun the same command to resume from {output}.partial' in error
  assert not output.exists()
  place = json.loads((tmp_path / 'out.partial' / 'progress.json').read_text())
  assert place['text'] > 8 * interrupted.BLOCK / 3
  assert _prepare(inputs, output) == expected


@pytest.mark.parametrize('count', [0, 2])
def test_stopping_after_each_block(count, inputs, expected, tmp_path):
  """Each time a few blocks more are done, until all are."""
  blocks = []
  apply = streaming.Stream._apply
  partial = tmp_path / 'out.partial' / 'data'
  stops = 0
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      streaming.Stream,
      '_apply',
      lambda *args: blocks.append(1) or apply(*args),
    )
    while True:
      blocks.clear()
      try:
        # Of 97 blocks, of which two workers may hold 16.
        size = 40 if count else 8
        files = _prepare(
          inputs,
          tmp_path / 'out',
          count,
          should_stop=lambda size=size: len(blocks) >= size,
        )
        break
      except Interrupted:
        stops += 1
        assert len(blocks) >= size
        # A tail that no commit knows of.
        for path in partial.glob('*-books-*.bin'):
          path.write_bytes(path.read_bytes() + b'torn')
        (partial / 'train-new-00000.bin').write_bytes(b'after the commit')
  assert stops >= 1 + 5 * (not count)
  assert files == expected


def test_a_dead_worker_is_named(inputs, expected, tmp_path, monkeypatch):
  apply = streaming.Stream._apply
  killed = []

  def kill(*args):
    apply(*args)
    if not killed:
      child = multiprocessing.active_children()[0]
      killed.append(child)
      os.kill(child.pid, signal.SIGKILL)

  with monkeypatch.context() as patch:
    patch.setattr(streaming.Stream, '_apply', kill)
    with pytest.raises(UserError) as caught:
      _prepare(inputs, tmp_path / 'out', 2)
  message = str(caught.value)
  number = killed[0].name.removeprefix('prepare-')
  assert message.startswith(f'Worker {number} (process {killed[0].pid}) was')
  assert 'killed by SIGKILL' in message
  assert not multiprocessing.active_children()
  assert _prepare(inputs, tmp_path / 'out', 1) == expected


def test_a_worker_that_fails_is_named(inputs, tmp_path, capfd):
  model = tokenizer_lib.load(inputs / 'tokenizer')
  model.path = tmp_path / 'gone'
  block = workers.InputBlock(0, 1, 0, 0, b'{"text": "x"}\n')
  with pytest.raises(UserError, match=r'Worker 1 .* ended with status 1'):
    list(
      workers.encode(iter([block]), encoding.Encoder(model), 1, lambda: False)
    )
  assert str(tmp_path / 'gone') in capfd.readouterr().err


@pytest.mark.parametrize(
  ('bytes_ahead', 'most'),
  # A block has at least 14 bytes: three of them are 40 bytes or more.
  [(workers._BYTES_AHEAD, 2 * workers._AHEAD), (20, 3)],
)
def test_few_blocks_are_read_ahead(bytes_ahead, most, inputs, monkeypatch):
  """Whatever a worker waits for, so that memory has a limit."""
  monkeypatch.setattr(workers, '_BYTES_AHEAD', bytes_ahead)
  model = tokenizer_lib.load(inputs / 'tokenizer')
  read = []

  def blocks():
    for number in range(1, 1000):
      read.append(number)
      yield workers.InputBlock(0, number, 0, 0, b'{"text": "%d"}\n' % number)

  encoded = workers.encode(blocks(), encoding.Encoder(model), 2, lambda: False)
  encoder = encoding.Encoder(model)
  for number in range(1, 50):
    block, result = next(encoded)
    assert block == workers.InputBlock(0, number, 0, 0, None)
    assert result == encoder.encode_block(b'{"text": "%d"}\n' % number)
    assert len(read) <= number + most
  encoded.close()
  assert not multiprocessing.active_children()


@pytest.fixture(name='begun')
def _begun(commits, inputs, tmp_path):
  """A copy of the inputs, and a preparation that stopped in the second."""
  del commits
  copy = tmp_path / 'inputs'
  copy.mkdir()
  for path in inputs.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
  done = []
  place = tmp_path / 'out.partial' / 'progress.json'

  def should_stop():
    if place.exists():
      done.append(json.loads(place.read_text())['place'])
      return done[-1]['file'] == 1 and done[-1]['blocks'] == 3
    return False

  with pytest.raises(Interrupted):
    _prepare(copy, tmp_path / 'out', should_stop=should_stop)
  return copy


def test_files_to_come_may_change(begun, tmp_path):
  path = begun / 'b.jsonl'
  # As a copy that was incomplete, and what follows.
  path.write_bytes(path.read_bytes() + corpora.lines([{'text': 'new'}]))
  (begun / 'd.txt').unlink()
  files = _prepare(begun, tmp_path / 'out')
  assert files == _prepare(begun, tmp_path / 'afresh')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ('fraction', 'validation was 0.2, not 0.3'),
    ('tokenizer', 'tokenizer was '),
    (
      'touched',
      r'a\.jsonl\.zst has been read, and the file in its place differs',
    ),
    (
      'renamed',
      r'a\.jsonl\.zst has been read, and the file in its place differs',
    ),
    ('edited', r'b\.jsonl has changed'),
    ('cut', r'b\.jsonl has changed'),
    ('gone', 'files are missing'),
    ('short shard', 'missing or too short'),
    ('corrupt shard', 'is corrupt'),
    ('record', r'progress\.json cannot be read'),
  ],
)
def test_what_cannot_go_on(change, message, begun, tmp_path):
  partial = tmp_path / 'out.partial'
  first, second = begun / 'a.jsonl.zst', begun / 'b.jsonl'
  shard = max(partial.glob('data/*.bin'), key=lambda p: p.stat().st_size)
  content = shard.read_bytes()
  kwargs = {}
  if change == 'fraction':
    kwargs['validation_fraction'] = 0.3
  elif change == 'tokenizer':
    tokenizer_lib.train_bpe(['a b ' * 9], 258, begun / 'tokenizer')
  elif change == 'touched':
    os.utime(first, ns=(1, 1))
  elif change == 'renamed':
    first.rename(begun / 'aa.jsonl.zst')
  elif change == 'edited':
    second.write_bytes(second.read_bytes().replace(b'says', b'eats', 1))
  elif change == 'cut':
    second.write_bytes(second.read_bytes()[:500])
  elif change == 'gone':
    for path in begun.glob('[b-d].*'):
      path.unlink()
  elif change == 'short shard':
    shard.write_bytes(content[:-1])
  elif change == 'corrupt shard':
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
  else:
    (partial / 'progress.json').write_text('{')
  before = corpora.files(partial / 'data')
  with pytest.raises(UserError, match=message) as caught:
    _prepare(begun, tmp_path / 'out', **kwargs)
  assert 'delete it to start from scratch' in str(caught.value)
  assert '\n' not in str(caught.value)
  assert (partial / 'progress.json').exists()
  assert corpora.files(partial / 'data') == before


def test_more_bad_lines_are_allowed_later(commits, inputs, expected, tmp_path):
  del commits
  with pytest.raises(UserError, match=r'b\.jsonl, line 21: no string'):
    _prepare(inputs, tmp_path / 'out', max_bad_lines=2)
  said = []
  files = _prepare(inputs, tmp_path / 'out', 0, said, max_bad_lines=4)
  assert files == expected
  assert said[0].startswith('Resuming after')
  assert 'line 21' in said[1]


def test_lines_of_progress(inputs, tmp_path, monkeypatch):
  monkeypatch.setattr(streaming, '_LINE_SECONDS', 0)
  said = []
  _prepare(inputs, tmp_path / 'out', 0, said)
  lines = [line for line in said if ' of the input, ' in line]
  assert len(lines) > 20
  shares = [float(line.split('%')[0]) for line in lines]
  assert shares == sorted(shares)
  assert shares[-1] == 100
  for line in lines:
    assert ' MB of text, ' in line
    assert ' MB/s, ' in line
    assert line.endswith(' left')
  assert '4 bad lines' in lines[-1]
