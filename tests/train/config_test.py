import importlib
import operator
import os
import pathlib
import re
import tempfile
import types
from unittest import mock

import jax
import pytest
from absl import flags
from absl.testing import parameterized

import sage_optax
from models import llama
from sage_optax import recipe_table
from sage_optax.core import orthogonal
from train import config as config_lib
from train import optimizer, program, state
from train.config import fields
from train.errors import UserError

_ROOT = pathlib.Path(__file__).parents[2]
_QUICKSTART = str(_ROOT / 'configs' / 'quickstart.py')
_NAMES = sorted(
  path.stem
  for path in (_ROOT / 'configs').glob('*.py')
  if not path.stem.startswith('_')
)


def _command_line(*args: str) -> config_lib.Config:
  """What main does with its arguments."""
  flag_values = flags.FlagValues()
  argv = ['main', *args]
  config_lib.define_flag(flag_values, argv)
  config_lib.parse_flags(argv, flag_values)
  return config_lib.read_flag(flag_values)


def _abstract_state(config):
  model_config = config_lib.model_config(config, 'cpu')
  params = state.abstract_params(model_config)
  axes = llama.logical_axes(model_config)
  tx = optimizer.make(config, params, axes).tx
  return state.abstract_state(model_config, tx)


class ConfigFilesTest(parameterized.TestCase):
  @parameterized.parameters(*_NAMES)
  def test_builds_with_the_number_of_parameters_it_names(self, name):
    config = config_lib.load(str(_ROOT / 'configs' / f'{name}.py'))
    sizes = [x.size for x in jax.tree.leaves(_abstract_state(config).params)]
    doc = importlib.import_module(f'configs.{name}').__doc__
    named = re.search(r'([\d,]+) parameters', doc)
    self.assertEqual(f'{sum(sizes):,}', named[1])
    self.assertEqual(config.name, name)

  @parameterized.parameters(*_NAMES)
  def test_gives_a_learning_rate_for_every_recipe(self, name):
    config = importlib.import_module(f'configs.{name}').get_config()
    self.assertEqual(
      set(config.optimizer.learning_rates), set(sage_optax.recipe_names())
    )
    for table in (config.optimizer.matrix_lr_scales, config.optimizer.b2s):
      self.assertLessEqual(set(table), set(sage_optax.recipe_names()))
    for recipe in sage_optax.recipe_names():
      config.optimizer.recipe = recipe
      config_lib.validate(config)

  @parameterized.parameters(
    # name, steps, batch, sequence, warm-up, final, decay, vocabulary, tied
    ('llama_60m', 10_000, 512, 256, 0.1, 0.1, 0.0, 32_000, False),
    ('llama_130m', 20_000, 512, 256, 0.1, 0.1, 0.0, 32_000, False),
    ('llama_350m', 60_000, 512, 256, 0.1, 0.1, 0.0, 32_000, False),
    ('llama_1b', 100_000, 512, 256, 0.1, 0.1, 0.0, 32_000, False),
    ('llama_7b', 150_000, 512, 256, 0.1, 0.1, 0.0, 32_000, False),
    ('llama_270m', 50_000, 256, 512, 0.1, 0.0, 0.01, 128_256, True),
    ('llama_0_6b', 50_000, 256, 512, 0.1, 0.0, 0.01, 128_256, True),
    ('llama_1_3b', 50_000, 256, 512, 0.1, 0.0, 0.01, 128_256, True),
  )
  def test_published_recipe(self, name, *expected):
    config = importlib.import_module(f'configs.{name}').get_config()
    self.assertEqual(
      (
        config.train.steps,
        config.train.batch_size,
        config.train.seq_len,
        config.schedule.warmup_fraction,
        config.schedule.final_fraction,
        config.optimizer.weight_decay,
        config.model.vocab_size,
        config.model.tie_embeddings,
      ),
      expected,
    )
    self.assertEqual(config.schedule.kind, 'cosine')

  @parameterized.parameters('llama_270m', 'llama_0_6b', 'llama_1_3b')
  def test_published_learning_rates(self, name):
    # Lee and Kim's script: 1e-4 (APOLLO too), SAGE 2e-3, SinkGD 2e-4.
    rates = importlib.import_module(f'configs.{name}').get_config()
    rates = rates.optimizer.learning_rates
    for recipe in ('adamw', 'lion', 'lion_hybrid', 'apollo'):
      self.assertEqual(rates[recipe], 1e-4)
    self.assertEqual((rates['sage_hybrid'], rates['sinkgd']), (2e-3, 2e-4))

  def test_every_config_is_here(self):
    self.assertContainsSubset(
      [
        *('quickstart', 'llama_60m', 'llama_130m', 'llama_350m'),
        *('llama_1b', 'llama_7b', 'llama_270m', 'llama_0_6b', 'llama_1_3b'),
      ],
      _NAMES,
    )

  def test_misspelled_assignment_in_a_file_fails(self):
    with pytest.raises(AttributeError, match='stesp'):
      config_lib.Config().train.stesp = 3


class CommandLineTest(parameterized.TestCase):
  def test_overrides_are_typed(self):
    config = _command_line(
      f'--config={_QUICKSTART}',
      '--config.train.steps=7',
      '--config.model.num_kv_heads=2',
      '--config.train.grad_clip=none',
      '--config.train.dtype=none',
      '--config.model.remat=none',
      '--config.optimizer.recipe=lion',
      '--config.optimizer.learning_rates.lion=2e-4',
      '--config.optimizer.matrix.lr_scale=0.5',
      '--noconfig.log.tensorboard',
    )
    self.assertEqual(config.train.steps, 7)
    self.assertEqual(config.model.num_kv_heads, 2)
    self.assertIsNone(config.train.grad_clip)
    self.assertIsNone(config.train.dtype)
    self.assertEqual(config.optimizer.learning_rates['lion'], 2e-4)
    self.assertEqual(config.model.remat, 'none')
    self.assertEqual(
      optimizer.recipe_options(config)['matrix'], {'lr_scale': 0.5}
    )
    self.assertIs(config.log.tensorboard, False)

  def test_file_and_value_may_be_separate_arguments(self):
    config = _command_line('--config', _QUICKSTART, '--config.train.steps', '7')
    self.assertEqual(config.train.steps, 7)

  @parameterized.parameters(
    (('--config.train.stesp=1',), 'did you mean config.train.steps'),
    (('--config.steps=1',), 'did you mean config.train.steps'),
    (('--config.trian.steps=1',), 'did you mean config.train.steps'),
    (('--config.train.max_steps=1',), 'did you mean config.train.steps'),
    # Only the section is alike.
    (('--config.optimizer.lr=1',), 'unknown field config.optimizer.lr (--'),
    (('--config.optimizer.learning_rates.lino=1',), 'learning_rates.lion'),
    (
      ('--config.optimizer.matrix_lr_scales.swan=1',),
      f"matrix_lr_scales has no entry 'swan': add it to {_QUICKSTART}",
    ),
    (('--config.train=1',), 'config.train is a section'),
    (('--config.train.steps=many',), 'config.train.steps'),
    (('--config.train.steps=none',), 'config.train.steps is None: give int'),
    (('--config.optimizer.recipe=saeg',), 'sage_hybrid'),
    (('--config.schedule.kind=cosin',), "'cosine', 'linear'"),
    (('--config.train.batch_size=9',), 'not a multiple of'),
    (('--config.train.steps=0',), 'at least 1'),
    (
      ('--config.schedule.final_fraction=1.5',),
      'give at least 0 and at most 1',
    ),
    (('--config.model.num_heads=3',), 'config.model.hidden_size=128'),
    (('--config.model.num_kv_heads=3',), 'num_kv_heads=3'),
    (('--config.train.dtype=fp32',), "'float32'"),
    (('--config.optimizer.learning_rate=0',), 'learning_rate'),
    (
      ('--config.schedule.kind=wsd', '--config.schedule.decay_fraction=0.95'),
      'add up to 1.05',
    ),
    (('--cofnig.train.steps=3',), 'cofnig'),
  )
  def test_bad_overrides_are_one_line(self, args, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
      _command_line(f'--config={_QUICKSTART}', *args)
    self.assertNotIn('\n', str(error.value))

  @parameterized.parameters(
    ((), 'give --config=configs/quickstart.py'),
    (('--config.train.steps=1',), 'give a configuration first'),
    (('--config=configs/quikstart.py',), 'did you mean configs/quickstart.py?'),
    (('--config=nowhere/x.py',), 'no configuration file'),
    (('--config',), 'give a configuration first'),
  )
  def test_bad_files_are_one_line(self, args, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
      _command_line(*args)
    self.assertNotIn('\n', str(error.value))

  def test_a_file_that_fails_is_named(self):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    path /= 'c.py'
    for text, message in (
      ('import nothing_of_this_name', 'ModuleNotFoundError'),
      ('def get_config():\n  return 3', 'must return a train.config.Config'),
      ('x = (', 'SyntaxError'),
      ('import sys\nsys.exit(0)', 'SystemExit: 0'),
      (r"raise ValueError('one\n\ntwo')", 'ValueError: one two'),
    ):
      path.write_text(text)
      with pytest.raises(UserError, match=message) as error:
        _command_line(f'--config={path}')
      self.assertIn(str(path), str(error.value))
      self.assertNotIn('\n', str(error.value))


class ValidateTest(parameterized.TestCase):
  def test_wrong_type_in_a_file(self):
    config = config_lib.Config()
    config.train.steps = 1e4
    with pytest.raises(UserError, match=r'config\.train\.steps is 10000\.0'):
      config_lib.validate(config)

  @parameterized.parameters(
    ('data.seed', -1, 'at least 0'),
    ('data.seed', 2**32, 'at most 4294967295'),
    ('train.seed', 2**40, 'at most'),
    ('train.steps', 10**20, 'at most'),
    ('optimizer.b1', 7.0, 'less than 1'),
    ('optimizer.b2', 1.0, 'less than 1'),
    ('optimizer.eps', -1.0, 'more than 0'),
    ('optimizer.num_iters', 0, 'at least 1'),
    ('optimizer.momentum', 1.0, 'less than 1'),
    ('optimizer.rank', 0, 'at least 1'),
    ('optimizer.projector', 'qr', 'subspace'),
    ('optimizer.ns_coeffs', 'quintic', 'polar_express'),
    ('optimizer.preconditioning', 'spectral', 'schatten8'),
    ('optimizer.ortho_rank', 0, 'at least 1'),
    ('optimizer.state_dtype', 'float16', 'bfloat16'),
    ('optimizer.matrix.lr_scale', -1.0, 'at least 0'),
    ('optimizer.vector.weight_decay', -0.1, 'at least 0'),
    ('optimizer.learning_rate', float('inf'), 'finite'),
    ('model.init_std', float('nan'), 'finite'),
    ('optimizer.learning_rates', None, 'a dictionary'),
    ('optimizer.learning_rates', {'adamw': 1e30}, r'at most 1e\+15'),
    ('optimizer.learning_rates', {'adamw': '1'}, 'give float'),
    ('optimizer.learning_rates', {'adam': 1.0}, "an entry 'adam', which is no"),
    ('optimizer.matrix_lr_scales', {3: 1.0}, 'an entry 3, which is no recipe'),
    ('optimizer.b2s', {'adam': 0.9}, "an entry 'adam', which is no recipe"),
    ('optimizer.b2s', {'adamw': 1.0}, 'less than 1'),
    ('optimizer.learning_rates', {'adamw': True}, 'give float'),
    ('model.hidden_size', 9 * 10**18, 'at most'),
    ('model.num_layers', 9 * 10**18, 'at most'),
    ('model.rope_theta', 1e30, 'at most'),
    ('train.grad_clip', -1.0, 'more than 0'),
    ('train.microbatch', 3, 'not a multiple of config.train.microbatch=3'),
    (
      'train.grad_clip',
      'x' * 1000,
      r"is '[^ ]{50,99}\.\.\.: give float or none",
    ),
    ('train.steps', 'x'.upper, 'of type builtin_function_or_method: give int$'),
    ('train.seq_len', [1, 2], 'of type list: give int'),
    ('log.every', True, 'is True: give int'),
    ('eval', 3, 'is 3, not a section'),
    ('name', '../elsewhere', 'without slashes'),
    ('name', '..', 'without slashes'),
    ('name', '', 'without slashes'),
    ('name', 'a\0b', 'without slashes'),
    ('workdir', 'a' * 256, 'at most 255'),
    ('data.path', 'ab/' * 2000, 'at most 4095'),
    ('data.tokenizer', 'a\0b', 'a path'),
    ('data.tokenizer', '\ud800', 'a path'),
  )
  def test_values_that_cannot_train(self, path, value, message):
    config = config_lib.Config()
    *sections, name = path.split('.')
    section = config
    for part in sections:
      section = getattr(section, part)
    setattr(section, name, value)
    with pytest.raises(UserError, match=message) as error:
      config_lib.validate(config)
    self.assertIn(f'config.{path}', str(error.value))

  def test_integer_rates_of_a_file_can_be_overridden(self):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    path /= 'c.py'
    path.write_text(
      'from train.config import Config\n'
      'def get_config():\n'
      '  config = Config()\n'
      "  config.optimizer.learning_rates['sage_hybrid'] = 1\n"
      '  return config\n'
    )
    config = config_lib.load(
      str(path), 'optimizer.learning_rates.sage_hybrid=0.5'
    )
    self.assertEqual(config.optimizer.learning_rates['sage_hybrid'], 0.5)

  def test_recipe_without_a_learning_rate(self):
    config = config_lib.Config()
    config.optimizer.learning_rates = {}
    with pytest.raises(UserError, match=r'optimizer\.learning_rate='):
      config_lib.validate(config)
    config.optimizer.learning_rate = 1e-3
    config_lib.validate(config)

  @parameterized.parameters(
    ({'data': 2, 'fsdp': 2, 'tensor': 3}, 'the product 8'),
    ({'data': -1, 'fsdp': -1}, 'more than one -1'),
    ({'data': 0}, 'each must be'),
    ({'data': 3, 'fsdp': -1}, 'there are 8 devices'),
  )
  def test_mesh_that_does_not_fit_the_devices(self, sizes, message):
    config = config_lib.Config()
    for name, size in sizes.items():
      setattr(config.mesh, name, size)
    with pytest.raises(UserError, match=message):
      config_lib.validate(config, num_devices=8)

  @parameterized.parameters('train.batch_size', 'eval.batch_size')
  def test_batch_that_the_mesh_does_not_divide(self, path):
    config = config_lib.Config()
    section, name = path.split('.')
    setattr(getattr(config, section), name, 12)
    with pytest.raises(UserError, match=f'{path}=12 is not divisible by the 8'):
      config_lib.validate(config, num_devices=8)
    config_lib.validate(config, num_devices=4)

  def test_microbatch_that_the_mesh_does_not_divide(self):
    config = config_lib.Config()
    config.train.microbatch = 4
    with pytest.raises(UserError, match=r'train\.microbatch=4'):
      config_lib.validate(config, num_devices=8)

  @parameterized.parameters(
    ('lion', 'num_iters', '3'),
    ('sage_hybrid', 'ns_coeffs', 'dion'),
    ('swan', 'preconditioning', 'schatten'),
    ('galore', 'ortho_rank', '4'),
  )
  def test_options_that_the_recipe_does_not_take(self, recipe, name, value):
    config = config_lib.load(
      _QUICKSTART, f'optimizer.recipe={recipe}', f'optimizer.{name}={value}'
    )
    with pytest.raises(UserError, match=name):
      _abstract_state(config)

  def test_b2_of_a_recipe_gives_way_to_b2(self):
    config = config_lib.load(_QUICKSTART, 'optimizer.recipe=adamw')
    config.optimizer.b2s = {'adamw': 0.9, 'lion': 0.8}
    b2 = 'recipe.matrix.b2'
    self.assertEqual(optimizer.resolved_parts(config)[b2], 0.9)
    config.optimizer.b2 = 0.5
    self.assertEqual(optimizer.resolved_parts(config)[b2], 0.5)
    config.optimizer.b2, config.optimizer.b2s = None, {'lion': 0.8}
    self.assertEqual(optimizer.resolved_parts(config)[b2], 0.999)

  @parameterized.parameters('muon', 'normuon', 'symmetric')
  def test_options_of_muon(self, recipe):
    options = {
      'ns_steps': 8,
      'ns_coeffs': 'dion',
      'preconditioning': 'schatten8',
      'ortho_rank': 4,
    }
    config = config_lib.load(
      _QUICKSTART,
      f'optimizer.recipe={recipe}',
      *(f'optimizer.{name}={value}' for name, value in options.items()),
    )
    parts = optimizer.resolved_parts(config)
    self.assertEqual(
      {name: parts[f'recipe.matrix.{name}'] for name in options}, options
    )
    _abstract_state(config)

  @parameterized.parameters(
    ('ns_coeffs', tuple(orthogonal.NS_COEFFS)),
    ('preconditioning', orthogonal.PRECONDITIONINGS),
  )
  def test_choices_are_those_of_muon(self, name, words):
    declared = {x.path: x for x in fields.walk(config_lib.Config())}
    accepts = declared[f'optimizer.{name}'].declaration.accepts
    self.assertEqual(accepts.words, words)

  def test_a_tilde_is_the_home_directory(self):
    home = os.path.expanduser('~')
    paths = ('workdir', 'init.path', 'data.path', 'data.tokenizer')
    config = config_lib.load(_QUICKSTART, *(f'{path}=~/x' for path in paths))
    settings = fields.settings(config)
    self.assertEqual({settings[path] for path in paths}, {f'{home}/x'})
    self.assertIsNone(settings['log.compilation_cache'])

  def test_evaluation_is_no_longer_than_training(self):
    config = config_lib.load(
      str(_ROOT / 'configs' / 'llama_270m.py'),
      'train.batch_size=2',
      'train.steps=2',
    )
    self.assertEqual(config.eval.max_windows, 4)
    self.assertEqual(config.eval.batch_size, 2)


_SCALING = {
  'model.rope_factor': 8.0,
  'model.rope_low_freq_factor': 1.0,
  'model.rope_high_freq_factor': 4.0,
  'model.rope_original_positions': 8192,
}


class IdentityTest(parameterized.TestCase):
  """What a field declares to change is what changes in `run.json`."""

  def describe(self, config):
    model = config_lib.model_config(config, 'tpu')
    return program.describe(config, types.SimpleNamespace(model=model))

  @parameterized.parameters(
    *(declared.path for declared in fields.walk(config_lib.Config()))
  )
  def test_is_as_declared(self, path):
    config = config_lib.Config()
    if path in _SCALING:  # They are set together.
      for name, value in _SCALING.items():
        setattr(config.model, name.removeprefix('model.'), value)
    declared = {x.path: x for x in fields.walk(config)}[path]
    before = self.describe(config)
    *sections, name = path.split('.')
    section = (
      operator.attrgetter('.'.join(sections))(config) if sections else config
    )
    setattr(section, name, _another(declared))
    config_lib.validate(config)
    after = self.describe(config)
    identity = declared.declaration.identity
    if path.startswith('data.') and identity == 'resolved':
      return  # The hashes of the data come in with the data.
    self.assertEqual(before != after, identity in ('value', 'resolved'))
    if identity == 'value':
      self.assertEqual(after[path], getattr(section, name))

  def test_a_default_of_the_table_or_of_a_method_makes_another_run(self):
    config = config_lib.Config()
    before = self.describe(config)
    self.assertEqual(before['recipe.matrix.method'], 'sinkgd')
    self.assertEqual(before['recipe.matrix.num_iters'], 5)

    def changed():
      after = self.describe(config)
      return {k: v for k, v in after.items() if v != before.get(k)}

    row = recipe_table.RECIPES['sage_hybrid']
    row = row._replace(matrix=row.matrix._replace(lr_scale=0.5))
    with mock.patch.dict(recipe_table.RECIPES, sage_hybrid=row):
      self.assertEqual(changed(), {'recipe.matrix.lr_scale': 0.5})

    def sinkgd(num_iters=7, **kwargs):
      return sage_optax.scale_by_sinkgd(num_iters, **kwargs)

    with mock.patch.dict(recipe_table.METHODS, sinkgd=sinkgd):
      self.assertEqual(changed()['recipe.matrix.num_iters'], 7)


def _another(declared):
  """A value that the field does not have."""
  value, accepts = declared.value, declared.declaration.accepts
  if isinstance(value, dict):
    return {**value, 'sage_hybrid': 0.125}
  if isinstance(value, bool):
    return not value
  if isinstance(accepts, fields.Choices):
    return next(word for word in accepts.words if word != value)
  kind = declared.kinds[0]
  if kind is str:
    return 'other'
  if value is None:
    return kind(1) if accepts(kind(1)) else 0.5
  return abs(value) * 2 or kind(1)


class ModelConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    ('cpu', None, 'float32', 'float32', 'chunked'),
    ('tpu', None, 'bfloat16', 'float32', 'splash'),
    ('gpu', None, 'bfloat16', 'float32', 'dot_product'),
    ('tpu', 'float32', 'float32', 'float32', 'splash'),
    ('cpu', 'float64', 'float64', 'float64', 'chunked'),
  )
  def test_platform_decides_what_the_config_leaves_open(
    self, platform, dtype, compute, param, attention
  ):
    config = config_lib.Config()
    config.train.dtype = dtype
    model_config = config_lib.model_config(config, platform)
    self.assertEqual(model_config.compute_dtype, compute)
    self.assertEqual(model_config.param_dtype, param)
    self.assertEqual(model_config.attention, attention)

  @parameterized.parameters(
    ('cpu', 'dot_product'), ('gpu', 'cudnn'), ('tpu', 'dot_product')
  )
  def test_attention_can_be_chosen(self, platform, attention):
    config = config_lib.Config()
    config.model.attention = attention
    model_config = config_lib.model_config(config, platform)
    self.assertEqual(model_config.attention, attention)

  def test_cudnn_computes_in_16_bits(self):
    config = config_lib.Config()
    config.model.attention, config.train.dtype = 'cudnn', 'float32'
    with pytest.raises(UserError, match=r'train\.dtype is float32: change'):
      config_lib.model_config(config, 'gpu')

  @parameterized.parameters(('cpu', 'splash'), ('tpu', 'cudnn'))
  def test_attention_that_the_platform_lacks(self, platform, attention):
    config = config_lib.Config()
    config.model.attention = attention
    with pytest.raises(UserError, match=f"model.attention='{attention}' needs"):
      config_lib.model_config(config, platform)

  def test_tpu_program_multiplies_in_bfloat16(self):
    config = config_lib.load(_QUICKSTART)

    def dots(platform):
      model_config = config_lib.model_config(config, platform)
      params = state.abstract_params(model_config)
      tokens = jax.ShapeDtypeStruct((2, 16), 'int32')
      text = (
        jax.jit(lambda p, t: llama.apply(p, t, model_config))
        .lower(params, tokens)
        .as_text()
      )
      lines = [x for x in text.splitlines() if 'stablehlo.dot_general' in x]
      self.assertNotEmpty(lines)
      return [x.split(':')[-1].count('xbf16>') >= 2 for x in lines]

    self.assertTrue(all(dots('tpu')))
    self.assertFalse(any(dots('cpu')))

  def test_parameters_of_the_tpu_model_are_float32(self):
    config = config_lib.load(_QUICKSTART)
    params = state.abstract_params(config_lib.model_config(config, 'tpu'))
    self.assertEqual(
      {x.dtype.name for x in jax.tree.leaves(params)}, {'float32'}
    )
