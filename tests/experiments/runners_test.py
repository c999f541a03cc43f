"""Trials of the studies: tiny cells, every arm, one and many at a time."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from experiments import trial
from experiments.arms import ARMS
from experiments.cells import CELLS
from experiments.text import bigram, llama
from tests.support import runs

_KINDS = {'bigram': bigram.BigramRunner, 'llama': llama.LlamaRunner}


@pytest.fixture(scope='module')
def cells(tmp_path_factory):
  data = tmp_path_factory.mktemp('study') / 'data'
  runs.write_data(data)
  tiny = {
    'vocab_size': 300,
    'steps': 20,
    'evaluations': 2,
    'data': str(data),
  }
  toy = dataclasses.replace(
    CELLS['toy_v512'], name='toy', width=4, tokens=64, **tiny
  )
  small = dataclasses.replace(
    CELLS['small_untied'],
    name='small',
    width=32,
    layers=1,
    seq_len=16,
    tokens=64,
    microbatch=2,
    **tiny,
  )
  return {'bigram': toy, 'llama': small}


def _trials(cell, arm, seeds, scales=(1.0,)):
  return [
    trial.make(
      cell.name,
      arm.name,
      {**arm.start, 'embedding_rate': arm.start['embedding_rate'] * scale},
      seed,
    )
    for seed in seeds
    for scale in scales
  ]


@pytest.mark.parametrize('kind', ['bigram', 'llama'])
def test_replicas_under_vmap_equal_single_trials(cells, kind):
  # Adam's update is smooth: signs would amplify the rounding.
  arm = ARMS['adamw']
  runner = _KINDS[kind](cells[kind], arm)
  trials = _trials(cells[kind], arm, seeds=(1, 2), scales=(1.0, 2.0))[1:3]
  together = runner.run(trials)
  for one, found in zip(trials, together, strict=True):
    alone = runner.run([one])[0]
    assert found.keys() == alone.keys()
    for name in ('loss', 'train_curve', 'curve', 'by_decile'):
      a, b = (np.array(jax.tree.leaves(o[name]), float) for o in (found, alone))
      np.testing.assert_allclose(a, b, rtol=2e-5, err_msg=name)
  assert together[0]['loss'] != together[1]['loss']


@pytest.mark.parametrize('kind', ['bigram', 'llama'])
def test_arms_have_the_same_weights_and_data_for_a_seed(cells, kind):
  still = {'embedding_rate': 1e-12, 'matrix_rate': 1e-12}

  def curve(name, seed):
    arm = ARMS[name]
    one = trial.make(cells[kind].name, name, {**arm.start, **still}, seed)
    (outcome,) = _KINDS[kind](cells[kind], arm).run([one])
    return outcome['train_curve']

  # Without training, a step's loss depends on the weights and the batch.
  losses = curve('recipe_adamw', 1)
  np.testing.assert_allclose(curve('recipe_sinkgd', 1), losses, atol=2e-4)
  assert curve('recipe_adamw', 2) != losses


def test_a_trial_is_the_trainers_run(cells):
  """The same loss as the trainer's own step gives, for a recipe."""
  from models import llama as model
  from train import optimizer, state, step
  from train.data import loader

  cell, arm = cells['llama'], ARMS['recipe_sinkgd']
  runner = llama.LlamaRunner(cell, arm)
  outcome = runner.run(_trials(cell, arm, seeds=(3,)))[0]
  config = runner._config
  config.optimizer.recipe = 'sinkgd'
  config.optimizer.learning_rate = arm.start['embedding_rate']
  config.optimizer.matrix.lr_scale = (
    arm.start['matrix_rate'] / arm.start['embedding_rate']
  )
  config.optimizer.b2 = arm.start['beta']
  config.optimizer.weight_decay = 0.0
  shapes = state.abstract_params(runner._model)
  made = optimizer.make(config, shapes, model.logical_axes(runner._model))
  train_step = jax.jit(
    step.make_train_step(runner._model, made, microbatches=2)
  )
  params = model.init(jax.random.key(3), runner._model)
  current = state.TrainState(
    jax.numpy.zeros((), jax.numpy.int32), params, made.tx.init(params)
  )
  batches = loader.train_iterator(
    llama.data_of(cell)[0].train,
    seq_len=cell.seq_len,
    batch_size=4,
    seed=3,
    start_step=0,
  )
  losses = []
  for _ in range(cell.steps):
    current, metrics = train_step(current, next(batches))
    losses.append(float(metrics['loss']))
  found = [loss for _, loss in outcome['train_curve']]
  np.testing.assert_allclose(found, losses, atol=2e-4)
  total = llama.data_of(cell)[0].validation.score(
    lambda tokens, weights: step.make_eval_step(runner._model)(
      current.params, tokens, weights
    )
  )['total']
  assert math.isclose(outcome['loss'], total.loss, rel_tol=1e-5)
  assert math.isclose(
    outcome['bits_per_byte'], total.bits_per_byte, rel_tol=1e-5
  )


def test_the_loss_of_the_toy_is_exact(cells):
  runner = bigram.BigramRunner(cells['bigram'], ARMS['sage'])
  params = bigram.init(0, 300, 4)
  pairs = runner._pairs
  scores = (
    np.asarray(params['embed'], np.float64)
    @ np.asarray(params['mix'][0], np.float64)
    @ np.asarray(params['embed'], np.float64).T
  )
  logp = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  stream = pairs.stream
  expected = -logp[stream[:-1], stream[1:]].mean()
  np.testing.assert_allclose(runner._nats(params).sum(), expected, rtol=1e-5)


def test_a_diverged_run_is_a_result(cells):
  arm = ARMS['adamw']
  runner = bigram.BigramRunner(cells['bigram'], arm)
  outcome = runner.run(_trials(runner.cell, arm, (0,), (1e30,)))[0]
  assert outcome['diverged']


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('factored', 'recipe_optax_muon')
    else pytest.param(name, marks=pytest.mark.nightly)
    for name in ARMS
  ],
)
def test_every_arm_runs(cells, name):
  arm = ARMS[name]
  runner = llama.LlamaRunner(cells['llama'], arm)
  outcome = runner.run(_trials(runner.cell, arm, seeds=(0,)))[0]
  assert not outcome['diverged']
  assert outcome['loss'] < math.log(300)


def test_a_stepper_takes_the_steps_of_a_trial(cells, monkeypatch):
  """Its core-seconds are those of a step, and it can go on."""
  monkeypatch.setattr(llama, '_CHUNK', 5)
  runner = llama.LlamaRunner(cells['llama'], ARMS['sinkgd'])
  (one,) = _trials(cells['llama'], ARMS['sinkgd'], seeds=(1,))
  ticks = iter((0.0, 1.0, 10.0, 15.0))
  take = runner.stepper(one)
  monkeypatch.setattr(llama.time, 'process_time', lambda: next(ticks))
  assert [take(), take()] == [0.2, 1.0]
