"""The trainer's own Llama, data and step, for trials of one arm."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sage_optax
from experiments import arms, outcome
from experiments.cells import Cell, config_of
from experiments.text.data import open_text
from experiments.trial import Trial
from models import llama
from train import inputs, step
from train import optimizer as optimizer_lib
from train.config import model_config
from train.data import loader
from train.mesh import resolve_platform
from train.results.evaluate import Score
from train.state import TrainState

_CHUNK = 10  # Steps dispatched at a time.
_CURVE_WINDOWS = 128  # For points of the curve; the last one uses all windows.


@functools.lru_cache(maxsize=1)
def data_of(cell: Cell) -> tuple[inputs.Inputs, np.ndarray]:
  """The data of a cell, and each token's decile of frequency."""
  opened = open_text(cell)
  tokens = opened.train.read(0, opened.train.num_tokens)
  counts = np.bincount(tokens, minlength=cell.vocab_size)
  return opened, outcome.deciles(counts)


class LlamaRunner:
  """Runs trials of one arm in one cell; compiles once."""

  def __init__(self, cell: Cell, arm: arms.Arm):
    self.cell = cell
    self._arm = arm
    self._config = config_of(cell)
    platform = resolve_platform(self._config.train.platform)
    self._model = model_config(self._config, platform)
    self._axes = llama.logical_axes(self._model)
    self._schedule = optimizer_lib.schedule(self._config)
    evaluate = step.make_eval_step(self._model)
    self._init_jits = jax.jit(self._init), jax.jit(jax.vmap(self._init))
    self._chunk_jits = (
      jax.jit(self._chunk, donate_argnums=0),
      jax.jit(jax.vmap(self._chunk), donate_argnums=0),
    )
    self._eval_jits = (
      jax.jit(evaluate),
      jax.jit(jax.vmap(evaluate, in_axes=(0, None, None))),
    )
    self._compiled: dict[int, Any] = {}

  def _optimizer(self, options):
    return arms.optimizer(self._arm, options, self._schedule, self._axes)

  def _init(self, options, seed):
    params = llama.init(jax.random.key(seed), self._model)
    opt_state = self._optimizer(options).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

  def _chunk(self, state, options, batches):
    """Takes the trainer's steps on batches[n, B, S + 1]."""
    tx = self._optimizer(options)
    roles = sage_optax.roles.assign(
      state.params, rules=optimizer_lib.AXIS_ROLES, logical_axes=self._axes
    )
    optimizer = optimizer_lib.Optimizer(
      tx, self._schedule, roles, {}, self._arm.name, {}
    )
    rows = self.cell.microbatch or self._config.train.batch_size
    train_step = step.make_train_step(
      self._model,
      optimizer,
      microbatches=self._config.train.batch_size // rows,
    )

    def one(state, batch):
      state, metrics = train_step(state, batch)
      return state, metrics['loss']

    return jax.lax.scan(one, state, batches)

  def _batches(self, trials):
    """Yields [n, B, S + 1], or [trials, n, B, S + 1] for several."""
    opened, _ = data_of(self.cell)
    train = self._config.train
    streams = [
      loader.train_iterator(
        opened.train,
        seq_len=train.seq_len,
        batch_size=train.batch_size,
        seed=trial.seed,
        start_step=0,
      )
      for trial in trials
    ]
    while True:
      parts = [
        np.stack([next(stream) for _ in range(_CHUNK)]) for stream in streams
      ]
      yield np.stack(parts) if len(trials) > 1 else parts[0]

  def _start(self, trials):
    """Returns the state, the options, the compiled steps and the batches."""
    many = len(trials) > 1
    options = {
      name: jnp.asarray([dict(t.options)[name] for t in trials], jnp.float32)
      for name, _ in trials[0].options
    }
    seeds = jnp.asarray([trial.seed for trial in trials])
    if not many:
      options, seeds = {k: v[0] for k, v in options.items()}, seeds[0]
    state = self._init_jits[many](options, seeds)
    batches = self._batches(trials)
    if len(trials) not in self._compiled:
      lowered = self._chunk_jits[many].lower(state, options, next(batches))
      self._compiled[len(trials)] = lowered.compile()
      batches = self._batches(trials)
    return state, options, self._compiled[len(trials)], batches

  def stepper(self, one: Trial) -> Callable[[], float]:
    """Returns a function that takes steps; it returns core-seconds per step."""
    state, options, chunk, batches = self._start([one])

    def take():
      nonlocal state
      batch = next(batches)
      start = time.process_time()
      state, losses = jax.block_until_ready(chunk(state, options, batch))
      return (time.process_time() - start) / len(losses)

    return take

  def run(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Runs trials, several under one vmap; returns their outcomes."""
    many = len(trials) > 1
    began = time.process_time()
    state, options, chunk, batches = self._start(trials)
    batch = next(batches)
    compiled = time.process_time()
    losses, curve, stepping = [], [], 0.0
    every = self.cell.steps // self.cell.evaluations
    for first in range(0, self.cell.steps, _CHUNK):
      start = time.process_time()
      state, found = chunk(state, options, batch)
      losses.append(np.asarray(found).reshape(len(trials), -1))
      batch = next(batches)
      stepping += time.process_time() - start
      done = first + _CHUNK
      if not np.isfinite(losses[-1]).any():
        break
      if done % every == 0 and done < self.cell.steps:
        points = self._scores(state.params, many, len(trials), _CURVE_WINDOWS)
        curve.append([done * self.cell.tokens, points])
    final = self._scores(state.params, many, len(trials), None)
    curve.append([done * self.cell.tokens, final])
    seconds = time.process_time() - compiled
    times = {
      'core_seconds': seconds / len(trials),
      'compile_core_seconds': (compiled - began) / len(trials),
      'step_core_seconds': stepping / (len(losses) * _CHUNK * len(trials)),
    }
    tx = self._optimizer(dict(trials[0].options))
    shapes = jax.eval_shape(lambda: llama.init(jax.random.key(0), self._model))
    times['state_bytes'] = sage_optax.memory.state_bytes(tx, shapes)
    found = np.concatenate(losses, 1)
    return [
      self._outcome(found[i], [(n, points[i]) for n, points in curve]) | times
      for i in range(len(trials))
    ]

  def _scores(self, params, many, count, max_windows):
    """Returns one _Sums per trial, over the validation split."""
    opened, _ = data_of(self.cell)
    token_bytes = opened.tokenizer.token_bytes()
    sums = [_Sums(self.cell.vocab_size) for _ in range(count)]
    for name, tokens, weights in opened.validation.batches(max_windows):
      losses = np.asarray(
        self._eval_jits[many](params, tokens, weights), np.float64
      )
      for total, nats in zip(
        sums, losses if many else losses[None], strict=True
      ):
        total.add(name, tokens[:, 1:], nats, weights, token_bytes)
    return sums

  def _outcome(self, losses, curve):
    final = curve[-1][1]
    total = sum(final.scores.values(), Score())
    _, decile = data_of(self.cell)
    return {
      'tokens': len(losses) * self.cell.tokens,
      'loss': total.loss,
      'bits_per_byte': total.bits_per_byte,
      'by_subset': {name: s.loss for name, s in final.scores.items()},
      'by_decile': outcome.by_decile(decile, final.nats, final.weights),
      'curve': [
        [tokens, sum(point.scores.values(), Score()).loss]
        for tokens, point in curve
      ],
      'train_curve': outcome.thinned(losses),
      'spikes': outcome.spikes(losses, self.cell.steps // 10),
      'diverged': outcome.diverged(losses, total.loss, self.cell.vocab_size),
    }


class _Sums:
  """Losses summed by subset and by target."""

  def __init__(self, vocab_size: int):
    self.scores: dict[str, Score] = {}
    self.nats = np.zeros(vocab_size)
    self.weights = np.zeros(vocab_size)

  def add(self, name, targets, nats, weights, token_bytes):
    counted = weights > 0
    size = int(token_bytes[targets][counted].sum())
    score = Score(float(nats.sum()), int(counted.sum()), size)
    self.scores[name] = self.scores.get(name, Score()) + score
    flat = targets.ravel()
    length = len(self.nats)
    self.nats += np.bincount(flat, nats.ravel(), length)
    self.weights += np.bincount(flat, weights.ravel(), length)
