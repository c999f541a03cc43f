"""Tests of the command line, in this process but for one."""

import functools
import json
import math
import shlex
import shutil
import sys

import jax
import pytest

from models import llama
from tests.support import runs
from train import config, main
from train import workdir as workdir_lib
from train.data import ngram, shards
from train.results import recorder, report, run_log, speed


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return runs.write_data(tmp_path_factory.mktemp('main') / 'data')


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
  """The working directory of a run that is complete, on eight devices."""
  workdir = tmp_path_factory.mktemp('main') / 'run'
  status = runs.call(*runs.command(data, workdir, *_SHORT))
  assert status == 0
  return workdir


# Long enough that the whole validation split is evaluated.
_SHORT = ('train.steps=10', 'checkpoint.every=4', 'eval.every=5')


def _refused(capsys, *args):
  """The line that a refusal prints; nothing else may be printed."""
  assert runs.call(*args) == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert err.startswith('error: ')
  assert err.endswith('\n')
  assert err.count('\n') == 1, err
  return err


def test_results(finished, data):
  results = json.loads((finished / report.RESULTS).read_text())
  validation = results['validation']
  manifest = json.loads((data / 'manifest.json').read_text())
  entries = manifest['splits']['validation']
  for name in runs.SUBSETS:
    # Every token but the first is predicted once.
    assert validation[name]['tokens'] == entries[name]['tokens'] - 1
  total = validation['total']
  for key in ('tokens', 'bytes'):
    assert total[key] == sum(validation[name][key] for name in runs.SUBSETS)
  nats = sum(
    validation[n]['loss'] * validation[n]['tokens'] for n in runs.SUBSETS
  )
  assert math.isclose(total['loss'] * total['tokens'], nats, rel_tol=1e-9)
  assert math.isclose(
    total['bits_per_byte'], nats / math.log(2) / total['bytes'], rel_tol=1e-9
  )
  assert math.isclose(total['perplexity'], math.exp(total['loss']))
  assert results['baselines']['bigram'] < results['baselines']['unigram']
  assert (
    results['run']['data.tokenizer'] == (manifest['tokenizer']['fingerprint'])
  )
  assert results['tokens'] == 10 * 8 * 32
  split = sum(e['tokens'] for e in manifest['splits']['train'].values())
  assert results['baseline_tokens'] == {
    'fitted': split - 1,
    'split': split,
    'evaluated': total['tokens'] + len(runs.SUBSETS) - 1,  # one stream
  }


def test_curve_is_of_one_sample_and_the_result_of_more(finished):
  results = json.loads((finished / report.RESULTS).read_text())
  records = run_log.read(finished / run_log.FILE)
  curve = [r['eval/tokens'] for r in records if 'eval/loss' in r]
  assert curve == [8 * 32, 8 * 32]  # eval.max_windows, seq_len
  assert results['validation']['total']['tokens'] > 8 * 32


def test_metrics_of_every_step(finished):
  records = list(run_log.read(finished / run_log.FILE))
  train = [r for r in records if 'loss' in r]
  assert [r['step'] for r in train] == list(range(1, 11))
  assert [r['step'] for r in records if 'eval/loss' in r] == [5, 10]
  assert {'lr/matrix', 'grad_norm/embedding', 'update_norm/vector'} <= set(
    train[0]
  )
  assert train[1]['timing']['tokens_per_second'] > 0
  assert abs(train[0]['loss'] - math.log(300)) < 0.1


def test_files(finished):
  assert (finished / report.PLOT).read_bytes()[:4] == b'\x89PNG'
  assert (finished / report.SAMPLE).read_text().startswith('[prose] ')
  table = (finished / 'optimizer.txt').read_text()
  assert 'embed/embedding' in table
  assert json.loads((finished / 'optimizer.json').read_text())['rows']
  kept = sorted(p.name for p in (finished / 'checkpoints').iterdir())
  assert kept == ['10', '4', '8']


@pytest.mark.parametrize('source', ['shards', 'bundled'])
def test_run_again_says_where_the_results_are_without_data(
  finished, tmp_path, capsys, source
):
  before = runs.files(finished)
  args = runs.command(
    tmp_path / 'removed', finished, *_SHORT, f'data.source={source}'
  )
  assert runs.call(*args) == 0
  assert not list(tmp_path.iterdir())
  out, err = capsys.readouterr()
  assert err == ''
  assert 'is complete: 10 steps of sage_hybrid' in out
  assert str(finished / report.RESULTS) in out
  assert 'bigram' in out
  assert 'tokens of the training split' in out
  assert 'The data of this command is missing' in out
  assert runs.files(finished) == before


def test_a_complete_run_of_other_data_is_refused(
  finished, data, tmp_path, capsys
):
  other = tmp_path / 'other'
  shutil.copytree(data, other)
  manifest = shards.read_manifest(other)
  manifest['corpus_hash'] = 'b' * 64
  del manifest['crc']
  (other / shards.MANIFEST).write_text(json.dumps(manifest))
  line = _refused(capsys, *runs.command(other, finished, *_SHORT))
  assert 'belongs to another run: its data.corpus is' in line
  assert runs.call(*runs.command(data, finished, *_SHORT)) == 0
  assert 'is missing' not in capsys.readouterr().out


def test_results_that_were_edited(finished, data, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir)
  path = workdir / report.RESULTS
  results = json.loads(path.read_text())
  results['validation']['total']['perplexity'] = 1.5
  path.write_text(json.dumps(results))
  line = _refused(capsys, *runs.command(data, workdir, *_SHORT))
  assert f'{path} cannot be read as the results of a run (its checksum' in line
  del results['crc']
  path.write_text(json.dumps(results))
  line = _refused(capsys, *runs.command(data, workdir, *_SHORT))
  assert 'it has no checksum' in line


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('model.num_layers=1', 'its model.num_layers is 2, now it is 1'),
    (
      'optimizer.recipe=lion',
      "its optimizer.recipe is 'sage_hybrid', now it is 'lion'",
    ),
    ('optimizer.b1=0.5', 'its optimizer.b1 is not set, now it is 0.5'),
    ('data.seed=7', 'its data.seed is 0, now it is 7'),
    ('train.seq_len=16', 'its train.seq_len is 32, now it is 16'),
  ],
)
def test_workdir_of_another_run(finished, data, capsys, override, message):
  before = runs.files(finished)
  line = _refused(capsys, *runs.command(data, finished, *_SHORT, override))
  assert message in line
  assert '--config.workdir' in line
  assert runs.files(finished) == before


def _begun(workdir, finished, **fields):
  """A run that is not complete, which other fields identify."""
  content = json.loads((finished / workdir_lib.RUN_FILE).read_text())
  content['run'] |= fields
  workdir.mkdir()
  (workdir / workdir_lib.RUN_FILE).write_text(json.dumps(content))
  return workdir


@pytest.mark.parametrize(
  ('name', 'value'),
  [('b1', 0.5), ('paper', True), ('matrix', {'lr_scale': 9.0})],
)
def test_option_that_is_no_longer_given(
  finished, data, tmp_path, capsys, name, value
):
  workdir = _begun(tmp_path / 'run', finished, **{f'optimizer.{name}': value})
  before = runs.files(workdir)
  line = _refused(capsys, *runs.command(data, workdir, *_SHORT))
  assert f'its optimizer.{name} is {value}, now it is not set' in line
  assert runs.files(workdir) == before


def test_workdir_with_another_tokenizer(finished, tmp_path, capsys):
  other = runs.write_data(tmp_path / 'other', vocab_size=280)
  workdir = _begun(tmp_path / 'run', finished)
  before = runs.files(workdir)
  line = _refused(capsys, *runs.command(other, workdir, *_SHORT))
  assert 'its data.tokenizer is' in line
  assert runs.files(workdir) == before


def test_workdir_in_use(data, tmp_path, capsys):
  with workdir_lib.hold(tmp_path / 'run'):
    before = runs.files(tmp_path)
    line = _refused(capsys, *runs.command(data, tmp_path / 'run', *_SHORT))
    assert 'in use by another run' in line
    assert runs.files(tmp_path) == before


def test_known_chip_and_baselines_of_a_part(
  data, tmp_path, capsys, monkeypatch
):
  calls = []
  flops = llama.flops_per_token

  def count(*args):
    calls.append(args)
    return flops(*args)

  monkeypatch.setattr(speed, 'peak_flops', lambda _: 1e12)
  monkeypatch.setattr(llama, 'flops_per_token', count)
  monkeypatch.setattr(
    ngram, 'baselines', functools.partial(ngram.baselines, max_tokens=300)
  )
  # As prepared before the baselines were in the manifest.
  old = tmp_path / 'old'
  shutil.copytree(data, old)
  manifest = shards.read_manifest(old)
  del manifest['baselines'], manifest['crc']
  (old / shards.MANIFEST).write_text(json.dumps(manifest))
  args = runs.command(old, tmp_path / 'run', 'train.steps=4')
  assert runs.call(*args) == 0
  # Arrays of 8 windows: two of them have more than 300.
  line = 'Unigram and bigram are fitted on 512 of 1,024 tokens seen.'
  assert line in capsys.readouterr().out
  assert len(calls) == 1
  records = list(run_log.read(tmp_path / 'run' / run_log.FILE))
  for timing in (r['timing'] for r in records if 'loss' in r):
    if 'tokens_per_second' in timing:
      wanted = timing['tokens_per_second'] * flops(*calls[0]) / 8e12
      assert math.isclose(timing['mfu'], wanted)
  assert 'mfu' in records[1]['timing']


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('model.hiden_size=8', 'model.hidden_size'),
    ('model.hidden_size=x', 'model.hidden_size'),
    ('optimizer.recipe=adamo', 'sage_hybrid'),
    ('train.batch_size=12', 'not divisible by the 8 devices'),
    ('train.microbatch=3', 'not a multiple'),
    ('model.vocab_size=289', 'model.vocab_size=290'),
    ('optimizer.num_iters=3 --config.optimizer.recipe=lion', 'num_iters'),
    ('data.path=nowhere', 'train.prepare'),
    ('train.batch_size=4096', 'fewer than a batch'),
    ('train.platform=tpu', 'install JAX for tpu'),
  ],
)
def test_bad_options(data, tmp_path, capsys, monkeypatch, override, message):
  monkeypatch.chdir(tmp_path)
  args = runs.command(data, 'run', *override.split(' --config.'))
  status = runs.call(*args)
  out, err = capsys.readouterr()
  assert (status, out) == (2, '')
  assert message in err
  assert err.startswith('error: ')
  if 'nowhere' not in override:  # That one is a help text.
    assert err.count('\n') == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--config=configs/no.py'], "no configuration file 'configs/no.py'"),
    (['--config.train.steps=3'], '--config'),
    ([], '--config'),
    (['--config=configs/quickstart.py', 'more'], "unexpected argument 'more'"),
    (['--config=configs/quickstart.py', '--other=1'], 'other'),
  ],
)
def test_bad_command_lines(capsys, monkeypatch, tmp_path, args, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').symlink_to(runs.ROOT / 'configs')
  assert message in _refused(capsys, *args)
  assert [p.name for p in tmp_path.iterdir()] == ['configs']


def _truncate(data):
  path = next(data.glob('train-*.bin'))
  path.write_bytes(path.read_bytes()[:-2])
  return 'bytes, expected'


def _corrupt(data):
  path = next(data.glob('validation-*.bin'))
  content = bytearray(path.read_bytes())
  content[7] ^= 1
  path.write_bytes(content)
  return 'corrupt'


def _remove(data):
  next(data.glob('train-*.bin')).unlink()
  return 'cannot be read'


def _garble(data):
  (data / 'manifest.json').write_text('{')
  return 'manifest.json'


def _exchange_tokenizer(data):
  path = data / 'tokenizer.json'
  path.write_text(path.read_text() + '\n')
  return 'another tokenizer'


@pytest.mark.parametrize(
  'damage', [_truncate, _corrupt, _remove, _garble, _exchange_tokenizer]
)
def test_damaged_data(tmp_path, capsys, damage):
  data = runs.write_data(tmp_path / 'data')
  message = damage(data)
  line = _refused(capsys, *runs.command(data, tmp_path / 'run'))
  assert message in line
  assert not (tmp_path / 'run').exists()


def test_data_without_a_validation_split(tmp_path, capsys):
  data = runs.write_data(tmp_path / 'data', splits=('train',))
  line = _refused(capsys, *runs.command(data, tmp_path / 'run'))
  assert 'empty' in line
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('name', 'path', 'vocabulary'),
  [
    ('llama_270m', '', ('128256', 'Llama 3')),
    ('llama_60m', 'my data', ('32000', 'spiece.model', '32100')),
  ],
)
def test_published_configuration_without_data_explains(
  tmp_path, capsys, monkeypatch, name, path, vocabulary
):
  monkeypatch.chdir(tmp_path)
  file = runs.ROOT / 'configs' / f'{name}.py'
  cache = '--config.log.compilation_cache='
  batch = '--config.train.batch_size=8'  # of eight devices
  args = [f'--config={file}', cache, batch]
  if path:
    args.append(f'--config.data.path={path}')
    args.append('--config.train.microbatch=8')
    args.append('--config.data.vocab_size=40000')
  monkeypatch.setattr(sys, 'argv', ['main.py', *args])
  assert runs.call(*args) == 2
  err = capsys.readouterr().err
  # What was typed, quoted for a shell, and the data's place once.
  command = f'python -m train.main {shlex.join(args)}'
  place = '' if path else f' --config.data.path=data/{name}'
  for text in (
    'python -m train.prepare --input',
    f'  {command}{place}\n',
    *vocabulary,
    f'  {command} --config.data.source=bundled',
    '(an estimate)',
  ):
    assert text in err
  assert not list(tmp_path.iterdir())
  (trial,) = [line for line in err.splitlines() if 'source=bundled' in line]
  overrides = shlex.split(trial)[4:]
  assert overrides[: len(args) - 1] == args[1:]
  tried = config.load(
    str(file), *(flag.removeprefix('--config.') for flag in overrides)
  )
  config.validate(tried, num_devices=8)
  assert (tried.train.steps, tried.train.batch_size) == (2, 8)
  assert tried.data.vocab_size <= tried.model.vocab_size
  # The trial leaves the places of the run free.
  assert (tried.data.path, tried.workdir) == ('', f'runs/{name}-trial')


def test_loss_that_is_not_finite_stops_the_run(data, tmp_path, capsys):
  args = runs.command(
    data,
    tmp_path / 'run',
    'train.steps=20',
    'checkpoint.every=1',
    'checkpoint.keep=30',
    'eval.every=0',
    'optimizer.learning_rate=1e15',  # products of two such overflow
    'schedule.warmup_fraction=0.5',
  )
  assert runs.call(*args) == 1
  out = capsys.readouterr().out
  records = list(run_log.read(tmp_path / 'run' / run_log.FILE))
  bad = records[-1]
  assert any(isinstance(v, str) for v in bad.values())
  assert f'at step {bad["step"]}: stopped' in out
  assert '--config.optimizer.learning_rate=3e+14' in out
  kept = [int(p.name) for p in (tmp_path / 'run' / 'checkpoints').iterdir()]
  assert kept, 'The first steps are finite: lower the learning rate.'
  assert max(kept) == bad['step'] - 1
  assert (
    f'last good checkpoint is {tmp_path}/run/checkpoints/{max(kept)}' in out
  )
  assert not (tmp_path / 'run' / report.RESULTS).exists()


def test_the_loss_is_named_first():
  values = {'grad_norm': math.nan, 'loss': math.inf, 'lr/matrix': 1.0}
  assert recorder.non_finite(values) == 'loss'
  assert recorder.non_finite(values | {'loss': 1.0}) == 'grad_norm'
  assert recorder.non_finite({'loss': 1.0}) is None


def test_advice_leaves_out_what_is_set():
  path = str(runs.CONFIG)
  loose = ('train.grad_clip=none', 'schedule.warmup_fraction=0.1')
  tight = ('train.grad_clip=0.5', 'schedule.warmup_fraction=0.3')
  text = report.advice(config.load(path, *loose, 'data.seed=1'), None)
  assert '\n  --config.train.grad_clip=1.0  (now None)\n' in text
  assert '\n  --config.schedule.warmup_fraction=0.2  (now 0.1)\n' in text
  assert '\n  --config.data.seed=2' in text
  text = report.advice(config.load(path, *tight), None)
  assert 'grad_clip' not in text
  assert 'warmup' not in text
  assert '\n  --config.optimizer.learning_rate=' in text


@pytest.mark.parametrize('given', [True, False])
def test_compilation_cache_of_the_environment(tmp_path, monkeypatch, given):
  updates = {}
  monkeypatch.setattr(jax.config, 'update', updates.__setitem__)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  if given:
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'mine'))
  main._set_up_jax(config.load(str(runs.ROOT / 'configs' / 'quickstart.py')))
  ours = {'jax_compilation_cache_dir': f'{tmp_path}/sage_optax/jax'}
  assert updates == ({} if given else ours)


def test_without_the_training_dependencies(tmp_path):
  args = runs.command(tmp_path / 'data', tmp_path / 'run')
  # Python without the directories of installed packages.
  process = runs.start(args, options=('-S',))
  out, err = process.communicate(timeout=300)
  assert (process.returncode, out) == (2, '')
  assert "has no module 'absl'" in err
  assert '. .venv/bin/activate' in err
  assert err.count('\n') == 1


def test_a_process_of_its_own_prints_one_line_and_no_traceback(tmp_path):
  args = runs.command(tmp_path / 'data', tmp_path / 'run', 'train.stepz=1')
  process = runs.start(args)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 2
  assert out == ''
  assert err.startswith('error: unknown field config.train.stepz')
  assert err.count('\n') == 1


def test_help(capsys):
  assert runs.call('--help') == 0
  short = capsys.readouterr().out
  assert 'Exit status' in short
  assert runs.call('--helpfull') == 0
  full = capsys.readouterr().out
  assert full.startswith(short)
  assert '--config.optimizer.matrix.lr_scale=none' in full
