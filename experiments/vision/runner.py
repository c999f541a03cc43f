"""The transformer of examples/vit.py, for trials of one arm."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples import vit
from experiments import arms, outcome
from experiments.cells import Cell
from experiments.trial import Trial


class VitRunner:
  """Runs trials of one arm in one cell; compiles once."""

  def __init__(self, cell: Cell, arm: arms.Arm):
    self.cell = cell
    self._arm = arm
    self._data = dict(
      zip(('train', 'validation', 'test'), vit.data(), strict=True)
    )
    self._compiled: Any = None

  def run(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Runs trials, one after the other; returns their outcomes."""
    return [self._run(dict(one.options), one.seed) for one in trials]

  def _run(self, options, seed):
    """The loss that decides is that of the validation split."""
    began = time.process_time()
    if self._compiled is None:
      self._compiled = jax.jit(self._train).lower(options, seed).compile()
    compiled = time.process_time()
    found = {
      name: float(value)
      for name, value in self._compiled(options, seed).items()
    }
    loss = found['validation_loss']
    return {
      'loss': loss,
      **found,
      'diverged': outcome.diverged(np.array([]), loss, self.cell.vocab_size),
      'core_seconds': time.process_time() - compiled,
      'compile_core_seconds': compiled - began,
    }

  def _train(self, options, seed):
    """Trains from a seed; returns losses and errors of the three splits."""
    images, labels = map(jnp.asarray, self._data['train'])
    model = vit.ViT(nnx.Rngs(jax.random.key(seed)))
    graph, params, *rest = nnx.split(model, nnx.Param, ...)
    steps = self.cell.steps
    schedule = optax.warmup_cosine_decay_schedule(0, 1, steps // 10, steps)
    tx = arms.optimizer(self._arm, options, schedule)
    key = jax.random.fold_in(jax.random.key(seed), 1)

    def loss_fn(params, images, labels):
      return vit.loss_fn(nnx.merge(graph, params, *rest), images, labels)

    def step(carry, index):
      params, state = carry
      rows = jax.random.randint(
        jax.random.fold_in(key, index), (self.cell.tokens,), 0, len(images)
      )
      grads = jax.grad(loss_fn)(params, images[rows], labels[rows])
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    carry = params, tx.init(params)
    (params, _), _ = jax.lax.scan(step, carry, jnp.arange(steps))
    model = nnx.merge(graph, params, *rest)
    found = {}
    for name, (images, labels) in self._data.items():
      wrong = jnp.argmax(model(images), axis=-1) != labels
      found[f'{name}_loss'] = vit.loss_fn(model, images, labels)
      found[f'{name}_error'] = jnp.mean(wrong.astype(jnp.float32))
    return found
