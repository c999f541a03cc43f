"""Takes training steps with the trainer; started by train_step."""

import os
from typing import Any

import numpy as np

from benchmarks import worker


def config_of(job: dict[str, Any]) -> Any:
  """Returns the trainer's configuration of a job."""
  from train import config as config_lib

  config = config_lib.Config()
  config.model = config_lib.ModelConfig(**job['model'])
  for name, value in job['train'].items():
    setattr(config.train, name, value)
  config.optimizer.recipe = 'adamw'
  config.optimizer.learning_rate = job['learning_rate']
  config.optimizer.weight_decay = job['weight_decay']
  config.schedule.kind = 'constant'
  config.schedule.warmup_fraction = 0.0
  config.mesh.fsdp = 1
  config_lib.validate(config)
  config_lib.complete(config)
  return config


def make(job: dict[str, Any]) -> tuple[worker.Step, dict[str, str]]:
  """Returns the step function and the versions, for `worker.serve`."""
  import jax

  from models import hf
  from train import mesh, program

  built = program.build(config_of(job), jax.devices()[:1], 'cpu')
  state = built.init(0)
  if not os.path.exists(job['weights']):
    # Written atomically, because another process waits for it.
    path = job['weights'] + '.part.npz'
    arrays: dict[str, Any] = hf.to_hf(state.params, built.model)
    np.savez(path, **arrays)
    os.replace(path, job['weights'])
  batches = np.load(job['batches'])

  def step(index):
    nonlocal state
    batch = mesh.put_batch(batches[index], built.mesh)
    state, metrics = built.train_step(state, batch)
    jax.block_until_ready(state)
    return float(metrics['loss'])

  return step, {'jax': jax.__version__}


if __name__ == '__main__':
  worker.serve(make)
