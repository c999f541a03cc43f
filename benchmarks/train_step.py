"""Times the training step against PyTorch: python -m benchmarks.train_step.

Hugging Face's Llama with the same shapes and weights takes the same steps in
float32 on the same number of threads. Every implementation runs in its own
process; they take one step each, alternately, so that all see the same noise.
It is an error if their losses differ.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import results, worker

# Name -> fields of train.config.ModelConfig, and of TrainConfig.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
  '9M': (
    {
      'vocab_size': 4096,
      'hidden_size': 256,
      'intermediate_size': 768,
      'num_layers': 8,
      'num_heads': 4,
      'tie_embeddings': False,
    },
    {'batch_size': 8, 'seq_len': 512, 'microbatch': 2},
  ),
  # configs/quickstart.py
  'quickstart': (
    {
      'vocab_size': 4096,
      'hidden_size': 128,
      'intermediate_size': 384,
      'num_layers': 4,
      'num_heads': 4,
      'tie_embeddings': True,
    },
    {'batch_size': 8, 'seq_len': 256, 'microbatch': 2},
  ),
}
OURS = 'sage_optax'
EAGER = 'PyTorch eager'
COMPILED = 'PyTorch compiled'
# The losses are sums of the same numbers in another order.
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Row:
  """Results of one implementation.

  Attributes:
    name: Name of the implementation.
    tokens_per_second: From the median step.
    ms: Median time of a step.
    low: First quartile of the times.
    high: Third quartile of the times.
    ratio: Our tokens per second relative to its, median over rounds.
    ratio_low: First quartile of the ratio.
    ratio_high: Third quartile of the ratio.
    loss_gap: Largest difference of its losses from ours.
  """

  name: str
  tokens_per_second: float
  ms: float
  low: float
  high: float
  ratio: float
  ratio_low: float
  ratio_high: float
  loss_gap: float


def make_job(size: str, folder: str, threads: int, steps: int) -> dict:
  """Writes the batches, and returns the job description for the workers."""
  model, train = SIZES[size]
  rng = np.random.default_rng(0)
  shape = (steps, train['batch_size'], train['seq_len'] + 1)
  # Some tokens are more frequent, so that there is something to learn.
  batches = (model['vocab_size'] * rng.random(shape) ** 3).astype(np.int32)
  path = str(pathlib.Path(folder) / 'batches.npy')
  np.save(path, batches)
  return {
    'model': model,
    'train': {**train, 'steps': steps, 'grad_clip': 1.0, 'dtype': 'float32'},
    'learning_rate': 1e-3,
    'weight_decay': 0.1,
    'threads': threads,
    'batches': path,
    'weights': str(pathlib.Path(folder) / 'weights.npz'),
  }


def start(
  job: dict[str, Any], torch_python: str, names: Sequence[str] = ()
) -> dict[str, worker.Worker]:
  """Starts the workers; ours first, because it writes the weights."""
  torch: dict[str, dict[str, Any]] = {
    f'{EAGER}, {optimizer}': {'optimizer': optimizer, 'compile': False}
    for optimizer in ('fused', 'foreach')
  }
  torch[f'{COMPILED}, fused'] = {'optimizer': 'fused', 'compile': True}
  workers = {OURS: worker.Worker(sys.executable, 'benchmarks.step_jax', job)}
  for name, options in torch.items():
    if not names or name in names:
      workers[name] = worker.Worker(
        torch_python, 'benchmarks.step_torch', {**job, 'parts': 1, **options}
      )
  return workers


def run_steps(
  workers: dict[str, worker.Worker], warm_up: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Runs the steps of the workers alternately.

  Returns:
    The seconds per step without the warm-up, and the losses with it.
  """
  seconds: dict[str, list[float]] = {name: [] for name in workers}
  losses: dict[str, list[float]] = {name: [] for name in workers}
  names = list(workers)
  for i in range(warm_up + rounds):
    # In alternating order, so that none always follows the same worker.
    for name in names if i % 2 else reversed(names):
      took, loss = workers[name].step(i)
      losses[name].append(loss)
      if i >= warm_up:
        seconds[name].append(took)
  return seconds, losses


def summary(
  seconds: dict[str, list[float]], losses: dict[str, list[float]], tokens: int
) -> list[Row]:
  """Returns a row per implementation."""
  rows = []
  for name, took in seconds.items():
    low, median, high = statistics.quantiles(took, n=4, method='inclusive')
    ratios = [a / b for a, b in zip(took, seconds[OURS], strict=True)]
    spread = statistics.quantiles(ratios, n=4, method='inclusive')
    gap = np.abs(np.subtract(losses[name], losses[OURS])).max()
    rows.append(
      Row(
        name=name,
        tokens_per_second=tokens / median,
        ms=1e3 * median,
        low=1e3 * low,
        high=1e3 * high,
        ratio=spread[1],
        ratio_low=spread[0],
        ratio_high=spread[2],
        loss_gap=float(gap),
      )
    )
  return rows


def check(rows: Sequence[Row]) -> None:
  """Raises RuntimeError if losses differ: the computations are not the same."""
  for row in rows:
    if row.loss_gap > _TOLERANCE:
      raise RuntimeError(
        f"{row.name}'s losses differ from ours by {row.loss_gap:.1e}, expected "
        f'at most {_TOLERANCE}: the times compare different things'
      )


def markdown(rows: Sequence[Row]) -> str:
  """Returns the table."""
  return results.table(
    ('', 'tokens/s', 'ms a step', 'quartiles', 'our speed', 'quartiles'),
    [
      (
        row.name,
        results.number(row.tokens_per_second, 0),
        results.number(row.ms, 0),
        f'{row.low:.0f}-{row.high:.0f}',
        f'{row.ratio:.2f}x',
        f'{row.ratio_low:.2f}-{row.ratio_high:.2f}',
      )
      for row in rows
    ],
  )


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--size', choices=SIZES, default='9M')
  parser.add_argument('--rounds', type=int, default=12)
  parser.add_argument('--warm-up', type=int, default=3, help='steps of each')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--json', help='file to write')
  parser.add_argument(
    '--markdown', type=pathlib.Path, help='document to write the table into'
  )
  parser.add_argument(
    '--torch-python',
    default=sys.executable,
    help='interpreter that has torch and transformers (the extra bench)',
  )
  args = parser.parse_args()
  workers: dict[str, worker.Worker] = {}
  with tempfile.TemporaryDirectory() as folder:
    steps = args.warm_up + args.rounds
    job = make_job(args.size, folder, args.threads, steps)
    try:
      workers = start(job, args.torch_python)
      versions = {k: v for w in workers.values() for k, v in w.versions.items()}
      seconds, losses = run_steps(workers, args.warm_up, args.rounds)
    finally:
      for process in workers.values():
        process.close()
  tokens = job['train']['batch_size'] * job['train']['seq_len']
  rows = summary(seconds, losses, tokens)
  check(rows)
  found = results.machine()
  found['versions'] |= versions
  text = (
    f'{results.caption(found)}\n\n{args.size} parameters, {tokens} tokens a '
    f'step, float32, {args.threads} threads, {args.rounds} rounds.\n\n'
    f'{markdown(rows)}'
  )
  print(text)
  if args.markdown:
    results.put(args.markdown, 'train_step', text)
  if args.json:
    document = {
      'machine': found,
      'job': {k: job[k] for k in ('model', 'train', 'threads')},
      'rows': [dataclasses.asdict(row) for row in rows],
      'seconds': seconds,
    }
    pathlib.Path(args.json).write_text(json.dumps(document, indent=2))


if __name__ == '__main__':
  main()
