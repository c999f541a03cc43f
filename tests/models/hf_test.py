"""Hugging Face directories: configurations, rotary scaling, logits and text."""

import dataclasses
import json
import math
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import parameterized

from models import hf, hf_config, llama, rope
from train.errors import UserError
from train.hf import files

_DIRECTORY = pathlib.Path(__file__).parents[1] / 'fixtures' / 'hf_llama3'
_FIELDS = json.loads((_DIRECTORY / 'config.json').read_text())


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    {},
    {'tie_word_embeddings': True},
    {'num_key_value_heads': 4},
    {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6}},
    {
      'rope_parameters': {
        'rope_type': 'linear',
        'rope_theta': 1e4,
        'factor': 2.0,
      }
    },
  )
  def test_round_trip(self, **changes):
    config = hf_config.from_hf({**_FIELDS, **changes})
    written = hf_config.to_hf(config, max_positions=64)
    self.assertEqual(hf_config.from_hf(json.loads(json.dumps(written))), config)
    # The form of transformers 4.
    del written['rope_parameters']
    self.assertEqual(hf_config.from_hf(written), config)

  @parameterized.parameters(
    ('model_type', 'mistral'),
    ('hidden_act', 'gelu'),
    ('attention_bias', True),
    ('mlp_bias', True),
    ('attention_dropout', 0.1),
    ('head_dim', 16),
    ('quantization_config', {'bits': 4}),
    ('sliding_window', 128),
    ('is_causal', False),
    ('partial_rotary_factor', 0.5),
  )
  def test_what_is_not_supported_is_named(self, name, value):
    with self.assertRaisesRegex(ValueError, f'{name}=.*not supported'):
      hf_config.from_hf({**_FIELDS, name: value})

  def test_other_rotary_scalings_are_refused(self):
    scaled = {'rope_scaling': {'type': 'yarn', 'factor': 2.0}}
    fields = {k: v for k, v in _FIELDS.items() if k != 'rope_parameters'}
    with self.assertRaisesRegex(ValueError, "rope_type='yarn'"):
      hf_config.from_hf(fields | scaled)

  def test_the_older_name_counts_if_both_are_there(self):
    # The same as LlamaConfig of transformers 4 and 5.
    both = {
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e3},
      'rope_scaling': {'type': 'linear', 'factor': 2.0},
    }
    config = hf_config.from_hf(_FIELDS | both)
    self.assertEqual(config.rope_scaling, rope.RopeScaling(2.0))
    self.assertEqual(config.rope_theta, 1e4)

  def test_a_factor_in_either_place_is_seen(self):
    partial = {
      'partial_rotary_factor': None,
      'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 0.5},
    }
    with self.assertRaisesRegex(ValueError, 'partial_rotary_factor=0.5'):
      hf_config.from_hf(_FIELDS | partial)

  @parameterized.parameters(
    ('num_attention_heads', 0),
    ('num_hidden_layers', '2'),
    ('num_hidden_layers', 2.0),
    ('num_hidden_layers', None),
    ('num_key_value_heads', -1),
    ('rms_norm_eps', 'small'),
    ('rope_parameters', 'linear'),
    ('rope_parameters', {'rope_theta': '5'}),
    ('rope_parameters', {'rope_type': 'linear', 'factor': math.inf}),
  )
  def test_values_of_another_type_are_named(self, name, value):
    fields = {**_FIELDS, name: value}
    if isinstance(value, dict):
      name, value = list(value.items())[-1]
    with self.assertRaisesRegex(ValueError, f'{name}={value!r} is not a'):
      hf_config.from_hf(fields)

  def test_a_missing_field_is_named(self):
    fields = {k: v for k, v in _FIELDS.items() if k != 'vocab_size'}
    with self.assertRaisesRegex(ValueError, 'vocab_size is missing'):
      hf_config.from_hf(fields)
    linear = {'rope_parameters': {'rope_type': 'linear'}}
    with self.assertRaisesRegex(ValueError, 'factor is missing'):
      hf_config.from_hf(_FIELDS | linear)


class RopeScalingTest(parameterized.TestCase):
  def test_llama3_keeps_short_and_stretches_long_wavelengths(self):
    scaling = rope.RopeScaling(8.0, 1.0, 4.0, 8192)
    wavelengths = np.array([16.0, 2048.0, 4096.0, 8192.0, 1e5])
    scaled = 2 * np.pi / scaling.apply(2 * np.pi / wavelengths)
    # 4096 is two turns: a third of the way from one turn to four.
    middle = 1 / ((2 / 3) / (8 * 4096) + (1 / 3) / 4096)
    np.testing.assert_allclose(
      scaled, [16.0, 2048.0, middle, 8 * 8192.0, 8e5], rtol=1e-5
    )

  @parameterized.parameters(
    ((0.5,), 'at least 1'),
    ((2.0, 1.0), 'belong together'),
    ((2.0, 4.0, 1.0, 64), 'below high_freq_factor'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      rope.RopeScaling(*values)


class DirectoryTest(parameterized.TestCase):
  """Sharded bfloat16 files with Llama 3.1's rotary scaling."""

  def _tempdir(self):
    return pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_logits_and_greedy_text_are_those_of_transformers(self):
    config = files.read_config(_DIRECTORY)
    params = hf.from_hf(files.Weights(_DIRECTORY), config)
    with np.load(_DIRECTORY / 'expected.npz') as expected:
      tokens, logits, greedy = (
        expected[name] for name in ('tokens', 'logits', 'greedy')
      )
    apply = jax.jit(llama.apply, static_argnames='config')
    # Relative to the largest logit. Theirs are 1.3e-5 from ours in float64,
    # since their rotary tables are float32.
    np.testing.assert_allclose(
      apply(params, tokens, config),
      logits,
      rtol=0,
      atol=1e-5 * np.max(np.abs(logits)),
    )
    # Causal: each next token of the text follows from the whole of it.
    padded = np.zeros((2, tokens.shape[1]), np.int32)
    padded[0, : greedy.shape[1]] = greedy
    best = np.argmax(apply(params, padded, config)[0], axis=-1)
    np.testing.assert_array_equal(best[3 : greedy.shape[1] - 1], greedy[0, 4:])
    # Without the scaling the test would not pass.
    plain = dataclasses.replace(config, rope_scaling=None)
    self.assertGreater(
      np.max(np.abs(apply(params, tokens, plain) - logits)), 1.0
    )

  @parameterized.parameters(10**9, 20_000)
  def test_written_files_are_read_back(self, max_shard_bytes):
    directory = self._tempdir()
    state = dict(files.Weights(_DIRECTORY))
    written = files.write_weights(directory, state, max_shard_bytes)
    self.assertLen(written, 1 if max_shard_bytes > 40_000 else 2)
    self.assertLessEqual(
      max(path.stat().st_size for path in written), max_shard_bytes + 2000
    )
    (directory / 'other').touch()
    mode = (directory / 'other').stat().st_mode
    self.assertEqual({path.stat().st_mode for path in written}, {mode})
    back = files.Weights(directory)
    self.assertEqual(set(back), set(state))
    for name, array in state.items():
      np.testing.assert_array_equal(back[name], array)

  def test_a_whole_file_is_preferred_to_shards(self):
    # As in transformers; the index may be left from an older version.
    directory = self._tempdir()
    state = dict(files.Weights(_DIRECTORY))
    files.write_weights(directory, state, 20_000)
    newer = state | {'model.norm.weight': state['model.norm.weight'] + 1}
    files.write_weights(directory, newer, 10**9)
    np.testing.assert_array_equal(
      files.Weights(directory)['model.norm.weight'], newer['model.norm.weight']
    )

  def test_missing_and_damaged_files_are_named(self):
    directory = self._tempdir()
    with self.assertRaisesRegex(UserError, 'cannot read .*model.safetensors'):
      files.Weights(directory)
    (directory / 'model.safetensors').write_bytes(b'\x08' + bytes(20))
    with self.assertRaisesRegex(UserError, 'cannot read .*model.safetensors'):
      files.Weights(directory)
    with self.assertRaisesRegex(UserError, 'cannot read .*config.json'):
      files.read_config(directory)
    (directory / 'config.json').write_text('[]')
    with self.assertRaisesRegex(UserError, 'no JSON object'):
      files.read_config(directory)
