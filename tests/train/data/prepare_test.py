"""The bundled text becomes shards: their content, atomicity, the command."""

import hashlib
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.support import corpora, runs
from train import prepare
from train.data import atomic_dir, corpus, encoding, shards, writer
from train.data import bundled as bundled_lib
from train.errors import Interrupted, UserError

_BYTES = 240_000


def _quiet(_):
  pass


def _bundled(output, vocab_size=300, max_bytes=_BYTES, **kwargs):
  return bundled_lib.prepare_bundled(
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


def _hash(items):
  digest = encoding.CorpusHash()
  for split, subset, text in items:
    key = hashlib.sha256(text.encode()).digest()
    digest.add(split, writer.Encoded(subset, 0, 0, 0, key, b''))
  return digest.value


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
  documents = list(corpus.documents(_BYTES))
  train, validation = corpus.split(documents)
  for split, expected in (('train', train), ('validation', validation)):
    for subset in corpus.SUBSETS:
      assert corpora.texts(bundled, split, subset) == [
        d.text for d in expected if d.subset == subset
      ]
  manifest = shards.read_manifest(bundled)
  assert manifest['corpus_hash'] == _hash(
    [
      *(('train', d.subset, d.text) for d in train),
      *(('validation', d.subset, d.text) for d in validation),
    ]
  )
  assert manifest['versions'] == corpus.versions()
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
  (tmp_path / 'out.partial' / 'lock').write_text(atomic_dir._MARK)
  _bundled(tmp_path / 'out')
  assert shards.open_split(tmp_path / 'out', 'train').num_tokens > 1000
  assert [p.name for p in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('lock', [None, '', 'of another program'])
def test_a_directory_of_somebody_else_stays(lock, tmp_path):
  theirs = tmp_path / 'out.partial'
  (theirs / 'data').mkdir(parents=True)
  (theirs / 'data' / 'thesis.txt').write_text('years of work')
  if lock is not None:
    (theirs / 'lock').write_text(lock)
  before = runs.files(tmp_path)
  with pytest.raises(UserError, match='has other content'):
    _bundled(tmp_path / 'out')
  assert runs.files(tmp_path) == before


def test_two_preparations_of_one_directory(tmp_path):
  with (
    atomic_dir._locked(tmp_path / 'out.partial'),
    pytest.raises(UserError, match='Another process is preparing'),
  ):
    _bundled(tmp_path / 'out')


def test_an_empty_directory_is_filled(tmp_path):
  (tmp_path / 'out').mkdir()
  _bundled(tmp_path / 'out')
  assert (tmp_path / 'out' / 'manifest.json').exists()


@pytest.mark.parametrize('exists', [True, False])
def test_a_link_is_followed(exists, tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  if exists:
    (disk / 'real').mkdir()
  (tmp_path / 'out').symlink_to(disk / 'real')
  _bundled(tmp_path / 'out')
  assert (disk / 'real' / 'manifest.json').exists()
  assert [p.name for p in disk.iterdir()] == ['real']
  assert (tmp_path / 'out').is_symlink()


def test_a_mount_point_is_refused_at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(pathlib.Path, 'is_mount', lambda path: True)
  with pytest.raises(UserError, match='give the path of a new directory'):
    _bundled(tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_command_line(bundled, capsys):
  arguments = ['--source', 'bundled', '--max_mb', '0.24', '--output']
  arguments = [*arguments, str(bundled), '--vocab_size']
  assert prepare.main([*arguments, '300']) == 0
  assert prepare.main([*arguments, '301']) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  bundled_text = ['--source', 'bundled', '--output', 'x']
  files = ['--input', 'a', '--output', 'x']
  for wrong, message in (
    (['--output', 'x'], 'give --source bundled or --input GLOB (see'),
    (['--source', 'files', '--output', 'x'], 'or --input GLOB (see'),
    ([*bundled_text, '--input', 'a'], 'not both'),
    ([*bundled_text, '--workers', '0'], '--workers needs --input'),
    ([*bundled_text, '--instructions'], '--instructions needs --input'),
    ([*files, '--max_mb', '1'], '--max_mb needs --source bundled'),
    (
      [*files, '--validation', 'b', '--validation_fraction', '0.1'],
      'give --validation or --validation_fraction',
    ),
  ):
    with pytest.raises(SystemExit) as caught:
      prepare.main(wrong)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
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
    _, error = process.communicate(timeout=300)
  assert process.returncode == 128 + signal.SIGTERM
  assert 'nothing was kept' in error
  assert not list(tmp_path.iterdir())


def test_home_directory_in_arguments(monkeypatch):
  # A shell does not replace the `~` in `--output=~/data`.
  monkeypatch.setenv('HOME', '/elsewhere')
  given = prepare._parser().parse_args(['--output=~/x', '--tokenizer=~/y'])
  assert (str(given.output), str(given.tokenizer)) == (
    '/elsewhere/x',
    '/elsewhere/y',
  )
