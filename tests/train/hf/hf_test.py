"""Runs that start from imported weights, and checkpoints exported again."""

import json
import pathlib
import re
import shutil

import chex
import jax
import numpy as np
import pytest

from models import hf, llama
from tests.support import runs
from train import config as config_lib
from train import program
from train.hf import __main__ as command
from train.hf import exporting, files, pretrained

_LLAMA3 = pathlib.Path(__file__).parents[2] / 'fixtures' / 'hf_llama3'


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """Data, the working directory of a run of two steps, and its export."""
  root = tmp_path_factory.mktemp('hf')
  data = runs.write_data(root / 'data')
  workdir = root / 'run'
  overrides = ('train.steps=2', 'checkpoint.every=2', 'model.num_kv_heads=1')
  assert runs.call(*runs.command(data, workdir, *overrides)) == 0
  args = ['export', str(workdir), str(root / 'hf'), '--tokenizer', str(data)]
  assert command.main(args) == 0
  return data, workdir, root / 'hf'


def _overrides(data, workdir):
  """What makes a small run of config.py."""
  return (
    f'data.path={data}',
    f'workdir={workdir}',
    *('train.steps=1', 'train.batch_size=8', 'train.seq_len=32'),
    *('log.tensorboard=false', 'eval.max_windows=8'),
  )


def test_a_run_starts_from_what_another_exported(exported, tmp_path, capsys):
  data, first, directory = exported
  assert command.main(['import', str(directory), str(tmp_path / 'next')]) == 0
  path = tmp_path / 'next' / 'config.py'
  overrides = _overrides(data, tmp_path / 'next')
  config = config_lib.load(str(path), *overrides)
  built = program.build(config)
  state = built.init_from(pretrained.readers(directory, built.model))
  expected = exporting.restore_params(first / 'checkpoints' / '2', built.model)
  chex.assert_trees_all_equal(
    jax.device_get(state.params), jax.device_get(expected)
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(state, built.abstract)
  chex.assert_trees_all_equal(
    jax.tree.map(lambda x: x.sharding, state), built.shardings
  )
  capsys.readouterr()
  args = [f'--config={path}', *(f'--config.{o}' for o in overrides)]
  assert runs.call(*args) == 0
  assert f'Starting from the weights of {directory}' in capsys.readouterr().out
  # The weights are not needed again.
  (tmp_path / 'next' / 'results.json').unlink()
  weights = directory / 'model.safetensors'
  weights.rename(tmp_path / weights.name)
  (directory / 'config.json').rename(tmp_path / 'config.json')
  assert runs.call(*args) == 0
  assert 'Resuming from the checkpoint of step 1' in capsys.readouterr().out
  (tmp_path / weights.name).rename(weights)
  (tmp_path / 'config.json').rename(directory / 'config.json')


@pytest.mark.parametrize(
  ('tensors', 'message'),
  [
    (None, 'cannot read .*model.safetensors'),
    ({'model.norm.weight': np.ones(3, np.float32)}, 'has the shape'),
  ],
)
def test_bad_weights_leave_the_working_directory(
  exported, tmp_path, capsys, tensors, message
):
  data, _, directory = exported
  source, workdir = tmp_path / 'hf', tmp_path / 'next'
  shutil.copytree(directory, source)
  assert command.main(['import', str(source), str(workdir)]) == 0
  weights = dict(files.Weights(source))
  (source / 'model.safetensors').unlink()
  if tensors:
    files.write_weights(source, weights | tensors, 10**9)
  overrides = (f'--config.{o}' for o in _overrides(data, workdir))
  assert runs.call(f'--config={workdir}/config.py', *overrides) == 2
  assert re.search(message, capsys.readouterr().err)
  assert [path.name for path in workdir.iterdir()] == ['config.py']


def test_exported_configuration_and_tokenizer(exported):
  data, _, directory = exported
  fields = files.read_json(directory / 'config.json')
  assert fields['num_key_value_heads'] == 1
  assert fields['tie_word_embeddings'] is True
  assert fields['max_position_embeddings'] == 32
  assert fields['dtype'] == 'float32'
  name = 'tokenizer.json'
  assert (directory / name).read_bytes() == (data / name).read_bytes()
  tokens = json.loads((directory / name).read_text())['added_tokens']
  assert fields['eos_token_id'] == tokens[0]['id']
  assert 'lm_head.weight' not in files.Weights(directory)


def test_bfloat16_and_several_files(exported, tmp_path):
  _, workdir, directory = exported
  form = exporting.Format('bfloat16', max_shard_bytes=20_000)
  exporting.export(workdir, tmp_path / 'small', form)
  assert len(list((tmp_path / 'small').glob('*.safetensors'))) > 1
  whole, small = files.Weights(directory), files.Weights(tmp_path / 'small')
  assert set(whole) == set(small)
  for name, array in whole.items():
    np.testing.assert_array_equal(small[name], array.astype(small[name].dtype))


def test_a_tokenizer_file_is_copied_by_its_usual_name(
  exported, tmp_path, capsys
):
  data, workdir, _ = exported
  content = (data / 'tokenizer.json').read_bytes()
  (tmp_path / 'mine.json').write_bytes(content)
  (tmp_path / 'tokenizer.json').write_bytes(content + b'\n')  # another
  args = ['export', str(workdir), str(tmp_path / 'hf'), '--tokenizer']
  assert command.main([*args, str(tmp_path)]) == 2
  assert 'is not the tokenizer of the run' in capsys.readouterr().err
  assert not (tmp_path / 'hf').exists()
  assert command.main([*args, str(tmp_path / 'mine.json')]) == 0
  assert (tmp_path / 'hf' / 'tokenizer.json').read_bytes() == content


@pytest.mark.parametrize(
  ('edit', 'name'),
  [
    (None, 'vocab_size'),
    ([1], 'vocab_size'),
    ({'model.hidden_size': '64'}, 'hidden_size'),
    ({'model.num_kv_heads': '2'}, 'num_kv_heads'),
  ],
)
def test_an_edited_description_is_one_line(
  exported, tmp_path, capsys, edit, name
):
  _, workdir, _ = exported
  run = files.read_json(workdir / 'run.json')
  run['run'] = {**run['run'], **edit} if isinstance(edit, dict) else edit
  files.write_json(tmp_path / 'run.json', run)
  args = ['export', str(tmp_path), str(tmp_path / 'hf')]
  assert command.main(args) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert f'run.json has no number model.{name}: give' in error


def test_an_export_keeps_what_was_imported(exported, tmp_path):
  _, workdir, _ = exported
  origin = {
    'max_position_embeddings': 64,
    'bos_token_id': 7,
    'pad_token_id': 9,
  }
  files.write_json(tmp_path / 'config.json', origin)
  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  run = files.read_json(copy / 'run.json')
  run['run']['init.path'] = str(tmp_path)
  files.write_json(copy / 'run.json', run)
  message = exporting.export(copy, tmp_path / 'hf', exporting.Format())
  assert 'is missing' not in message
  fields = files.read_json(tmp_path / 'hf' / 'config.json')
  assert fields['max_position_embeddings'] == 64
  assert fields['bos_token_id'] == 7
  assert fields['pad_token_id'] == 9
  assert fields['eos_token_id'] is None
  (tmp_path / 'config.json').unlink()
  message = exporting.export(copy, tmp_path / 'again', exporting.Format())
  assert f'{tmp_path / "config.json"}, from which the run started' in message


def test_parameters_in_float64(exported, tmp_path):
  data, _, _ = exported
  overrides = ('train.steps=1', 'checkpoint.every=1', 'train.dtype=float64')
  with jax.enable_x64(True):
    assert runs.call(*runs.command(data, tmp_path / 'run', *overrides)) == 0
  exporting.export(tmp_path / 'run', tmp_path / 'hf', exporting.Format())
  weights = files.Weights(tmp_path / 'hf')
  assert weights['model.norm.weight'].dtype == np.float32


@pytest.mark.parametrize('size', ['nan', 'inf', '-1', '0', 'x'])
def test_sizes_of_files_are_positive(size, capsys):
  with pytest.raises(SystemExit):
    command.main(['export', 'a', 'b', '--max_shard_gb', size])
  assert f"give a positive number, not '{size}'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['export', '{run}', '{new}', '--step', '7'], 'no checkpoint of step 7'),
    (['export', '{run}', '{hf}'], 'is not empty'),
    (['export', '{run}', '{hf}/config.json/x'], 'cannot create'),
    (
      ['export', '{hf}', '{new}'],
      'cannot read .*run.json .*: give the directory of a run$',
    ),
    (['import', '{run}', '{new}'], 'cannot read .*config.json'),
    (['import', '{hf}', '{new}', '--recipe', 'sag'], "unknown recipe 'sag'"),
  ],
)
def test_bad_input_is_one_line(exported, tmp_path, capsys, args, message):
  _, workdir, directory = exported
  names = {'run': workdir, 'hf': directory, 'new': tmp_path / 'new'}
  assert command.main([arg.format(**names) for arg in args]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert re.search(message, error)
  assert not (tmp_path / 'new').exists()


def test_another_model_is_refused_before_the_data(exported, tmp_path, capsys):
  _, _, directory = exported
  args = runs.command(
    tmp_path / 'none', tmp_path / 'run', f'init.path={directory}'
  )
  assert runs.call(*args) == 2
  assert 'has kv_heads=1, but config.model has 2' in capsys.readouterr().err


def test_wrong_tensors_are_refused_at_import(tmp_path, capsys):
  broken = tmp_path / 'broken'
  shutil.copytree(_LLAMA3, broken)
  fields = files.read_json(broken / 'config.json')
  files.write_json(broken / 'config.json', fields | {'intermediate_size': 40})
  assert command.main(['import', str(broken), str(tmp_path / 'w')]) == 2
  assert (
    'down_proj.weight has the shape (32, 44), but config.json requires (32, 40)'
    in (capsys.readouterr().err)
  )


def test_quantized_tensors_are_refused_at_import(tmp_path, capsys):
  shutil.copytree(_LLAMA3, tmp_path / 'int8')
  state = dict(files.Weights(_LLAMA3))
  state['model.norm.weight'] = state['model.norm.weight'].astype(np.int8)
  files.write_weights(tmp_path / 'int8', state, 10**9)
  assert command.main(['import', str(tmp_path / 'int8'), str(tmp_path)]) == 2
  assert 'model.norm.weight has the type I8' in capsys.readouterr().err


def test_a_path_may_have_any_characters(tmp_path):
  source = tmp_path / 'a\\N"""b'
  shutil.copytree(_LLAMA3, source)
  assert command.main(['import', str(source), str(tmp_path / 'w')]) == 0
  config = config_lib.load(str(tmp_path / 'w' / 'config.py'))
  assert config.init.path == str(source)


def test_scaled_positions_survive_import(tmp_path):
  assert command.main(['import', str(_LLAMA3), str(tmp_path / 'w')]) == 0
  config = config_lib.load(str(tmp_path / 'w' / 'config.py'))
  model = config_lib.model_config(config, 'cpu')
  assert model.rope_scaling == files.read_config(_LLAMA3).rope_scaling
  with pytest.raises(SystemExit):
    command.main(['import'])


def test_transformers_computes_the_same(exported):
  """The export in transformers itself, where it is installed."""
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  _, _, directory = exported
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  ).eval()
  config = files.read_config(directory)
  params = hf.from_hf(files.Weights(directory), config)
  tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 32))
  with torch.no_grad():
    logits = theirs(torch.asarray(tokens)).logits.numpy()
  np.testing.assert_allclose(
    llama.apply(params, tokens, config), logits, rtol=0, atol=1e-5
  )


def test_damaged_parameters_are_not_exported(exported, tmp_path, capsys):
  _, workdir, _ = exported
  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  path = copy / 'checkpoints' / '2' / 'run' / 'metadata'
  content = json.loads(path.read_text())
  content['checksums']['params/embed/embedding'] += 1
  path.write_text(json.dumps(content))
  assert command.main(['export', str(copy), str(tmp_path / 'new')]) == 2
  assert 'the checksum of params/embed/embedding differs' in (
    capsys.readouterr().err
  )
  assert not (tmp_path / 'new').exists()
