"""Imported weights, trained on responses, and exported again."""

import json
import pathlib
import random

import chex
import jax
import numpy as np
import pytest
import tokenizers

from models import hf, llama
from tests.support import corpora, runs
from train import prepare
from train.data import shards
from train.data.source import Source
from train.hf import __main__ as command
from train.hf import exporting, files

_LLAMA3 = pathlib.Path(__file__).parents[2] / 'fixtures' / 'hf_llama3'
_STEPS = 30
pytestmark = pytest.mark.slow


def _tokenizer(path):
  """A token per word, few enough for the fixture's vocabulary of 64."""
  words = ['<|endoftext|>', '<unk>', 'answer', *(f'w{i}' for i in range(40))]
  vocabulary = {word: i for i, word in enumerate(words)}
  model = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token='<unk>')
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  model.save(str(path))
  return path


def _lines():
  """Prompts of random words; the response is always the same."""
  rng = random.Random(0)
  for _ in range(400):
    prompt = ' '.join(f'w{rng.randrange(40)}' for _ in range(12))
    yield {'prompt': prompt, 'completion': 'answer w1 w2 w3'}


@pytest.fixture(scope='module')
def finetuned(tmp_path_factory):
  """The working directory of a run, and its export."""
  root = tmp_path_factory.mktemp('finetune')
  (root / 'a.jsonl').write_bytes(corpora.lines(_lines()))
  prepare.prepare_files(
    root / 'data',
    Source(str(root / 'a.jsonl'), validation_fraction=0.1, instructions=True),
    _tokenizer(root / 'tokenizer.json'),
    log=lambda _: None,
  )
  workdir = root / 'run'
  assert command.main(['import', str(_LLAMA3), str(workdir)]) == 0
  overrides = (
    f'data.path={root / "data"}',
    f'train.steps={_STEPS}',
    *('train.batch_size=8', 'train.seq_len=32'),
    'optimizer.learning_rate=3e-3',  # The model is small, and not trained.
    *('eval.every=10', 'eval.batch_size=8', 'checkpoint.every=10'),
    *('log.tensorboard=false', 'log.every=1', 'log.compilation_cache='),
  )
  args = [f'--config={workdir / "config.py"}']
  args += [f'--config.{override}' for override in overrides]
  assert runs.call(*args) == 0
  args = ['export', str(workdir), str(root / 'hf')]
  assert command.main([*args, '--tokenizer', str(root / 'data')]) == 0
  return workdir, root / 'hf'


def test_the_loss_of_responses_falls(finetuned):
  workdir, _ = finetuned
  text = (workdir / 'metrics.jsonl').read_text()
  records = [json.loads(line) for line in text.splitlines()]
  losses = [record['loss'] for record in records if 'loss' in record]
  assert len(losses) == _STEPS
  # Prompts are random words: log(40) for each, which nothing lowers.
  assert losses[0] > 3.5
  assert losses[-1] < 0.5 * losses[0]
  results = json.loads((workdir / 'results.json').read_text())
  found = results['validation']['total']
  assert found['loss'] < 0.5 * losses[0]
  # Four words and the end-of-text token of each, of seventeen tokens.
  assert found['tokens'] == results['validation_tokens']
  manifest = shards.read_manifest(workdir.parent / 'data')
  split = manifest['splits']['validation'].values()
  share = found['tokens'] / sum(subset['tokens'] for subset in split)
  assert share == pytest.approx(5 / 17, abs=0.05)


def test_the_export_answers_a_prompt(finetuned):
  workdir, directory = finetuned
  config = files.read_config(directory)
  params = hf.from_hf(files.Weights(directory), config)
  saved = exporting.restore_params(
    workdir / 'checkpoints' / str(_STEPS), config
  )
  chex.assert_trees_all_equal(params, jax.device_get(saved))
  model = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  apply = jax.jit(llama.apply, static_argnums=2)
  prompt = model.encode(' '.join(f'w{i}' for i in range(20, 32))).ids
  tokens = np.zeros((1, 17), np.int32)
  tokens[0, :12] = prompt
  for i in range(12, 17):
    tokens[0, i] = np.argmax(apply(params, tokens, config)[0, i - 1])
  expected = model.encode('answer w1 w2 w3').ids
  assert tokens[0, 12:].tolist() == [*expected, 0]  # <|endoftext|>
