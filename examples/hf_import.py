"""Fine-tunes a Hugging Face Llama: python examples/hf_import.py DIR [NEW_DIR].

DIR holds config.json and safetensors of a Llama that transformers wrote, and
NEW_DIR gets those of the trained model. `python -m train.hf` does the same for
whole runs, with tokenized text, checkpoints and sharding.
"""

import argparse
import pathlib

import jax
import numpy as np
import optax

import sage_optax
from models import hf, llama
from train.errors import UserError
from train.hf import files


def main(
  source: str, target: str | None = None, *, steps: int = 10
) -> list[float]:
  path = pathlib.Path(source)
  config = files.read_config(path)
  params = hf.from_hf(files.Weights(path), config)
  if target is not None:
    pathlib.Path(target).mkdir(parents=True)  # Fails before the training.
  # Layers are stacked on axis 0. That is proved by the norm's scales.
  print(sage_optax.explain('sage_hybrid', params))
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    sage_optax.sage_hybrid(optax.linear_schedule(1e-3, 0, steps)),
  )

  @jax.jit
  def train_step(params, state, tokens, weights):
    def loss_fn(params):
      # Weights of 0 leave targets out, such as those of a prompt.
      total, count = llama.loss(
        params, tokens[:, :-1], tokens[:, 1:], weights, config
      )
      return total / count

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  rng = np.random.default_rng(0)
  tokens = rng.integers(0, config.vocab_size, (4, 17)).astype(np.int32)
  weights = np.ones((4, 16), np.float32)
  weights[:, :8] = 0
  state, losses = tx.init(params), []
  for _ in range(steps):
    params, state, loss = train_step(params, state, tokens, weights)
    losses.append(float(loss))
  print(f'loss {losses[0]:.2f} -> {losses[-1]:.2f}')
  if target is not None:
    files.write_weights(
      pathlib.Path(target), hf.to_hf(params, config), 5 * 10**9
    )
    fields = files.read_json(path / files.CONFIG) | {'dtype': 'float32'}
    files.write_json(pathlib.Path(target) / files.CONFIG, fields)
  return losses


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('source', metavar='DIR')
  parser.add_argument('target', metavar='NEW_DIR', nargs='?')
  try:
    main(**vars(parser.parse_args()))
  except (UserError, OSError, ValueError) as error:
    parser.error(str(error))
