"""Tunes and compares recipes on the transformer of examples/vit.py.

python -m experiments.vision.study [--minutes N] takes the next trials that are
missing, one after the other, on one thread.
"""

import argparse
import dataclasses
import functools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import sage_optax
from examples import vit
from experiments import run, studies, trial, worker
from experiments.arms import ARMS, CLIP, Arm

CELL = 'digits'
STEPS = 400


def _arm(recipe: str) -> Arm:
  """The arm of the language models, with the recipe's own beta."""
  arm = ARMS[f'recipe_{recipe}']
  start = {k: v for k, v in arm.start.items() if k != 'beta'}
  return dataclasses.replace(arm, betas=(), start=start)


RECIPES = ('adamw', 'sage_hybrid')
VIT_ARMS = {arm.name: arm for arm in map(_arm, RECIPES)}
STUDY = studies.Study('vit', ((CELL, tuple(VIT_ARMS)),), (1, 2, 3, 4, 5))


@functools.partial(jax.jit, static_argnames=('recipe', 'steps'))
def train(options: Any, seed: Any, recipe: str, steps: int) -> dict[str, Any]:
  """Trains from a seed; returns losses and errors of the three splits.

  Args:
    options: Values of embedding_rate, matrix_rate and weight_decay.
    seed: Of the initial weights and of the batches.
    recipe: Name of the recipe.
    steps: Optimizer steps.
  """
  train_set, validation, test = vit.data()
  images, labels = map(jnp.asarray, train_set)
  model = vit.ViT(nnx.Rngs(jax.random.key(seed)))
  graph, params, *rest = nnx.split(model, nnx.Param, ...)
  rate = options['embedding_rate']
  schedule = optax.warmup_cosine_decay_schedule(0, 1, steps // 10, steps)
  tx = optax.chain(
    optax.clip_by_global_norm(CLIP),
    sage_optax.recipe(
      recipe,
      lambda step: rate * schedule(step),
      weight_decay=options['weight_decay'],
      matrix={'lr_scale': options['matrix_rate'] / rate},
    ),
  )
  key = jax.random.fold_in(jax.random.key(seed), 1)

  def loss_fn(params, images, labels):
    return vit.loss_fn(nnx.merge(graph, params, *rest), images, labels)

  def step(carry, index):
    params, state = carry
    rows = jax.random.randint(
      jax.random.fold_in(key, index), (vit.BATCH_SIZE,), 0, len(images)
    )
    grads = jax.grad(loss_fn)(params, images[rows], labels[rows])
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  carry = params, tx.init(params)
  (params, _), _ = jax.lax.scan(step, carry, jnp.arange(steps))
  model = nnx.merge(graph, params, *rest)
  found = {}
  for name, (images, labels) in (
    ('train', train_set),
    ('validation', validation),
    ('test', test),
  ):
    wrong = jnp.argmax(model(images), axis=-1) != labels
    found[f'{name}_loss'] = vit.loss_fn(model, images, labels)
    found[f'{name}_error'] = jnp.mean(wrong.astype(jnp.float32))
  return found


def outcome(one: trial.Trial, steps: int = STEPS) -> dict[str, Any]:
  """Runs a trial; the loss that decides is that of the validation split."""
  recipe = VIT_ARMS[one.arm].recipe
  began = time.process_time()
  found = {
    name: float(value)
    for name, value in train(dict(one.options), one.seed, recipe, steps).items()
  }
  loss = found['validation_loss']
  return {
    'loss': loss,
    **found,
    'diverged': not loss < 10,
    'core_seconds': time.process_time() - began,
  }


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--minutes', type=float, default=60)
  args = parser.parse_args()
  commit = run.commit_of(allow_changes=False)
  os.environ.update(worker.ENVIRONMENT)
  worker.one_thread()
  path = trial.path_of(STUDY.name)
  until = time.monotonic() + 60 * args.minutes
  for arm in VIT_ARMS.values():
    while time.monotonic() < until:
      losses = trial.losses(trial.read(path).values())
      there = studies.progress(STUDY, CELL, arm, losses)
      if not there.missing:
        print(f'{arm.name}: {there.done} trials, complete')
        break
      one = there.missing[0]
      line = {
        'study': STUDY.name,
        **dataclasses.asdict(one),
        'options': dict(one.options),
        'commit': commit,
        'versions': worker.versions(),
        **outcome(one),
      }
      trial.append(path, line)
      print(f'{one.key} {line["loss"]:.4f} {line["test_error"]:.4f}')


if __name__ == '__main__':
  main()
