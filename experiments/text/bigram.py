"""The toy: a bilinear model of bigrams, on pairs of the bundled text.

  logits(x) = E[x] W E^T        E [V, d] the tied table, W [d, d] a matrix

Batches are pairs drawn from the training text, and the loss is exact: the mean
over all pairs of that text, so arms differ by optimization only.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sage_optax
from experiments import arms, outcome
from experiments.cells import Cell, config_of
from experiments.text.data import open_text
from experiments.trial import Trial
from models import cross_entropy
from train.optimizer import schedule

# Axis names as in models.llama: 'layers' is a stack of one matrix.
_AXES = {'embed': ('vocab', 'embed'), 'mix': ('layers', 'embed', 'embed')}
# Rows whose logits are computed at a time, in steps and evaluations.
_ROWS = 256


class Pairs(NamedTuple):
  """The text as pairs.

  Attributes:
    stream: Tokens of the text.
    before, after, share: Each distinct pair, and its share of all pairs.
    decile: Decile of frequency of each token.
  """

  stream: np.ndarray
  before: np.ndarray
  after: np.ndarray
  share: np.ndarray
  decile: np.ndarray


@functools.lru_cache(maxsize=1)
def pairs_of(vocab_size: int, cell: Cell) -> Pairs:
  """Counts the pairs of the training text."""
  opened = open_text(cell)
  stream = opened.train.read(0, opened.train.num_tokens)
  joint = stream[:-1].astype(np.int64) * vocab_size + stream[1:]
  keys, counts = np.unique(joint, return_counts=True)
  decile = outcome.deciles(np.bincount(stream[1:], minlength=vocab_size))
  return Pairs(
    stream,
    (keys // vocab_size).astype(np.int32),
    (keys % vocab_size).astype(np.int32),
    (counts / counts.sum()).astype(np.float32),
    decile,
  )


def init(seed: Any, vocab_size: int, width: int) -> Any:
  """A table with rows of norm about 1, and a matrix that preserves norms."""
  table, mix = jax.random.split(jax.random.key(seed))
  return {
    'embed': jax.random.normal(table, (vocab_size, width)) * width**-0.5,
    'mix': jax.random.normal(mix, (1, width, width)) * width**-0.5,
  }


def _hidden(params, before):
  return params['embed'][before] @ params['mix'][0]


def _loss(params, before, after):
  """The mean loss of pairs, by the Llama's cross-entropy: one row of pairs."""
  head = cross_entropy.Head(tied=True, chunk=_ROWS, constrain=lambda x, _: x)
  hidden = _hidden(params, before)[None]
  weights = jnp.full((1, len(after)), 1 / len(after))
  return cross_entropy.weighted_loss(
    head, hidden, params['embed'], after[None], weights
  )


class BigramRunner:
  """Runs trials of one arm in one cell; compiles once."""

  def __init__(self, cell: Cell, arm: arms.Arm):
    self.cell = cell
    self._arm = arm
    self._pairs = pairs_of(cell.vocab_size, cell)
    self._schedule = schedule(config_of(cell))
    self._steps = cell.steps // cell.evaluations
    self._chunks = {
      False: jax.jit(self._chunk, donate_argnums=0),
      True: jax.jit(
        jax.vmap(self._chunk, in_axes=(0, 0, 0, None)), donate_argnums=0
      ),
    }
    self._inits = jax.jit(self._init), jax.jit(jax.vmap(self._init))
    self._nats_jit = jax.jit(self._nats)
    self._compiled: dict[int, Any] = {}

  def _optimizer(self, options):
    return arms.optimizer(self._arm, options, self._schedule, _AXES)

  def _init(self, options, seed):
    params = init(seed, self.cell.vocab_size, self.cell.width)
    return params, self._optimizer(options).init(params)

  def _chunk(self, state, options, seed, first):
    """Takes some steps; returns the state and the losses before each."""
    tx = self._optimizer(options)
    stream = jnp.asarray(self._pairs.stream)

    def step(state, index):
      params, opt_state = state
      key = jax.random.fold_in(jax.random.key(seed + 1000), index)
      at = jax.random.randint(key, (self.cell.tokens,), 0, len(stream) - 1)
      loss, grads = jax.value_and_grad(_loss)(
        params, stream[at], stream[at + 1]
      )
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), loss

    return jax.lax.scan(step, state, first + jnp.arange(self._steps))

  def _nats(self, params):
    """Share-weighted losses of each token as a target, [V]."""
    before, after = self._pairs.before, self._pairs.after
    size = self.cell.vocab_size

    def rows(first):
      ids = jnp.minimum(first + jnp.arange(_ROWS), size - 1)
      return jax.nn.logsumexp(_hidden(params, ids) @ params['embed'].T, -1)

    normalizers = jax.lax.map(rows, jnp.arange(0, size, _ROWS)).reshape(-1)
    mixed = params['embed'] @ params['mix'][0]
    scores = jnp.sum(mixed[before] * params['embed'][after], axis=-1)
    nats = self._pairs.share * (normalizers[before] - scores)
    return jax.ops.segment_sum(nats, after, size)

  def run(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Runs trials, several under one vmap; returns their outcomes."""
    many = len(trials) > 1
    options = [dict(trial.options) for trial in trials]
    stacked = {
      name: jnp.asarray([o[name] for o in options], jnp.float32)
      for name in options[0]
    }
    seeds = jnp.asarray([trial.seed for trial in trials])
    if not many:
      stacked, seeds = {k: v[0] for k, v in stacked.items()}, seeds[0]
    began = time.process_time()
    state = self._inits[many](stacked, seeds)
    if len(trials) not in self._compiled:
      lowered = self._chunks[many].lower(state, stacked, seeds, 0)
      self._compiled[len(trials)] = lowered.compile()
    chunk = self._compiled[len(trials)]
    compiled = time.process_time()
    losses, curve, stepping = [], [], 0.0
    for part in range(self.cell.evaluations):
      start = time.process_time()
      state, found = chunk(state, stacked, seeds, part * self._steps)
      losses.append(np.asarray(found).reshape(len(trials), -1))
      stepping += time.process_time() - start
      curve.append(self._evaluate(state[0], len(trials)))
      if not np.isfinite(losses[-1]).any():
        break
    seconds = time.process_time() - compiled
    times = {
      'core_seconds': seconds / len(trials),
      'compile_core_seconds': (compiled - began) / len(trials),
      'step_core_seconds': stepping / (len(losses) * self._steps * len(trials)),
    }
    state_bytes = sage_optax.memory.state_bytes(
      self._optimizer(options[0]), jax.eval_shape(self._params)
    )
    return [
      {
        **self._outcome(np.concatenate(losses, 1)[i], [c[i] for c in curve]),
        **times,
        'state_bytes': state_bytes,
      }
      for i in range(len(trials))
    ]

  def _params(self):
    return init(0, self.cell.vocab_size, self.cell.width)

  def _evaluate(self, params, count):
    if count == 1:
      return [np.asarray(self._nats_jit(params), np.float64)]
    parts = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(count)]
    return [np.asarray(self._nats_jit(p), np.float64) for p in parts]

  def _outcome(self, losses, curve):
    nats = curve[-1]
    final = float(nats.sum())
    shares = np.bincount(
      self._pairs.after, self._pairs.share, self.cell.vocab_size
    )
    tokens = self._steps * self.cell.tokens
    return {
      'tokens': len(losses) * self.cell.tokens,
      'loss': final,
      'by_decile': outcome.by_decile(self._pairs.decile, nats, shares),
      'curve': [
        [(i + 1) * tokens, float(point.sum())] for i, point in enumerate(curve)
      ],
      'train_curve': outcome.thinned(losses),
      'spikes': outcome.spikes(losses, self.cell.steps // 10),
      'diverged': outcome.diverged(losses, final, self.cell.vocab_size),
    }
