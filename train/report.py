"""The results of a run: table, plot, text sample and results.json."""

import importlib.metadata
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import sage_optax
from models import llama
from train import data, evaluate, metrics, ngram, plot, sample
from train import program as program_lib
from train.config import Config
from train.inputs import Inputs
from train.signals import Stop

RESULTS = 'results.json'
PLOT = 'loss.png'
SAMPLE = 'sample.txt'

_PROMPT_TOKENS = 24
_SAMPLE_TOKENS = 72
_LEAST_TOKENS = 8
_MAX_SAMPLES = 3
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')


def flops_per_token(program: program_lib.Program, config: Config) -> float:
  """Returns the operations to train on one token."""
  return llama.flops_per_token(program.model, config.train.seq_len)


def write(
  workdir: pathlib.Path,
  config: Config,
  program: program_lib.Program,
  inputs: Inputs,
  params: Any,
  scores: Mapping[str, evaluate.Score],
  *,
  max_windows: int,
  stop: Stop,
) -> None:
  """Writes the results of a run, results.json last, and prints them.

  Args:
    workdir: Where to.
    config: The configuration.
    program: What ran.
    inputs: The data.
    params: The parameters at the end.
    scores: Of the validation split.
    max_windows: How much of it was evaluated at most.
    stop: May end this early; the run is then not complete.
  """
  baselines = _baselines(config, inputs, max_windows, stop)
  records = list(metrics.read(workdir / metrics.FILE))
  samples = _samples(config, program, inputs, params, stop)
  text = '\n\n'.join(f'[{name}] {t}' for name, t in samples.items())
  (workdir / SAMPLE).write_text(text + '\n')
  plot.loss_curve(
    records,
    workdir / PLOT,
    title=f'{config.name}: {program.optimizer.recipe}, '
    f'{llama.num_params(program.model):,} parameters',
    levels={
      name: math.log(perplexity) for name, perplexity in baselines.items()
    },
  )
  results = {
    'name': config.name,
    'recipe': program.optimizer.recipe,
    'steps': config.train.steps,
    'tokens': config.train.steps
    * config.train.batch_size
    * config.train.seq_len,
    'validation': {name: score.as_dict() for name, score in scores.items()},
    'validation_tokens': inputs.validation.num_tokens,
    'baselines': baselines,
    'model_parameters': llama.num_params(program.model),
    'optimizer_state_bytes': program.explanation.totals['all'].state_bytes,
    'seconds': records[-1]['timing']['seconds'],
    'device': f'{program.mesh.devices.size} x '
    f'{program.mesh.devices.flat[0].device_kind}',
    'versions': {name: importlib.metadata.version(name) for name in _PACKAGES}
    | {'sage_optax': sage_optax.__version__},
    'run': program_lib.describe(config, program) | inputs.hashes,
  }
  stop.check()
  part = workdir / f'{RESULTS}.part'
  part.write_text(json.dumps(results, indent=2) + '\n')
  part.replace(workdir / RESULTS)
  print(f'\nText that the model continued (more in {SAMPLE}):')
  print(next(iter(samples.values()), '(none)'))
  print(f'\n{complete(workdir)}', flush=True)


def complete(workdir: pathlib.Path) -> str:
  """What to say of a run that is complete, from its results.json."""
  results = json.loads((workdir / RESULTS).read_text())
  run, total = results['run'], results['validation']['total']
  share = (
    'all of it'
    if total['tokens'] == results['validation_tokens']
    else f'of {results["validation_tokens"]:,}, for the run was short'
  )
  return '\n'.join(
    [
      f'{workdir} is complete: {results["steps"]} steps of '
      f'{results["recipe"]}, {results["tokens"]:,} tokens, '
      f'{results["seconds"]:.0f} s on {results["device"]}.',
      f'Validation: {total["tokens"]:,} tokens ({share}), '
      f'{total["bytes"]:,} bytes '
      f'(corpus {run["data.corpus"][:12]}, '
      f'tokenizer {run["data.tokenizer"][:12]}).',
      '',
      *_table(results),
      '',
      f'results     {workdir / RESULTS}',
      f'loss curve  {workdir / PLOT}',
      f'sample      {workdir / SAMPLE}',
      f'metrics     {workdir / metrics.FILE}',
      f'optimizer   {workdir / "optimizer.txt"}',
      f'state       {workdir / "checkpoints" / str(results["steps"])}',
      'To train again, give another --config.workdir or remove this one.',
    ]
  )


def _table(results: Mapping[str, Any]) -> list[str]:
  """Perplexity and bits per byte: baselines, the run, and its subsets."""
  total = results['validation']['total']
  bits = total['tokens'] / max(total['bytes'], 1) / math.log(2)
  rows: list[Sequence[str]] = [('', 'perplexity', 'bits/byte', 'tokens')]
  for name, perplexity in results['baselines'].items():
    per_byte = f'{math.log(perplexity) * bits:.3f}'
    rows.append((name, f'{perplexity:.2f}', per_byte, f'{total["tokens"]:,}'))
  for name, score in results['validation'].items():
    rows.append(
      (
        'this run' if name == 'total' else f'  on {name}',
        f'{score["perplexity"]:.2f}',
        f'{score["bits_per_byte"]:.3f}',
        f'{score["tokens"]:,}',
      )
    )
  wide = max(len(row[0]) for row in rows)
  return [
    f'{row[0]:{wide}}  {row[1]:>10}  {row[2]:>9}  {row[3]:>10}' for row in rows
  ]


def _baselines(
  config: Config, inputs: Inputs, max_windows: int, stop: Stop
) -> dict[str, float]:
  """Perplexity of n-gram models of the tokens that the run has seen."""
  seen = data.seen_windows(
    inputs.train,
    seq_len=config.train.seq_len,
    batch_size=config.train.batch_size,
    seed=config.data.seed,
    steps=config.train.steps,
  )
  validation = inputs.validation.batches(max_windows)
  found = ngram.baselines(
    stop.watch(seen),
    inputs.tokenizer.vocab_size,
    ((tokens, weights) for _, tokens, weights in stop.watch(validation)),
  )
  return {'unigram': found.unigram, 'bigram': found.bigram}


def _samples(
  config: Config,
  program: program_lib.Program,
  inputs: Inputs,
  params: Any,
  stop: Stop,
) -> dict[str, str]:
  """Continues the beginning of the validation text of each subset."""
  tokenizer = inputs.tokenizer
  window = _PROMPT_TOKENS + _SAMPLE_TOKENS
  # Each token costs a window of a third of training; all together take a
  # tenth of the training at most, for a trial of a large model to end soon.
  trained = config.train.steps * config.train.batch_size * config.train.seq_len
  affordable = 3 * trained // (10 * _MAX_SAMPLES * window)
  num_tokens = min(max(affordable, _LEAST_TOKENS), _SAMPLE_TOKENS)
  generator = sample.Generator(
    program.logits,
    window=window,
    vocab_size=tokenizer.vocab_size,
  )
  result: dict[str, str] = {}
  for name, tokens, _ in inputs.validation.batches():
    if name in result:
      continue
    if len(result) == _MAX_SAMPLES:
      break
    prompt = tokens[0, :_PROMPT_TOKENS]
    added = generator(
      params,
      prompt,
      key=jax.random.key(config.train.seed),
      num_tokens=num_tokens,
      stop_at=tokenizer.eot_id,
      check=stop.check,
    )
    beginning, end = tokenizer.decode(prompt), tokenizer.decode(added)
    result[name] = f'{beginning} >>> {end}'
  return result
