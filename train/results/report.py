"""The results of a run: table, plot, text sample and results.json."""

import importlib.metadata
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import sage_optax
from models import llama
from train import config as config_lib
from train import errors, files
from train import workdir as workdir_lib
from train.config import Config
from train.data import loader, ngram
from train.distributed import processes
from train.distributed.signals import Stop, watch
from train.inputs import HASHES, read_hashes
from train.results import evaluate, plot, run_log, sample
from train.run import Run

RESULTS = 'results.json'
PLOT = 'loss.png'
SAMPLE = 'sample.txt'

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')


def advice(config: Config, checkpoint: pathlib.Path | None) -> str:
  """Suggests changes after a loss that is not finite.

  Args:
    config: The configuration.
    checkpoint: The last checkpoint, if there is one.

  Returns:
    Lines; settings that are already in effect are omitted.
  """
  good = (
    'there is no checkpoint yet'
    if checkpoint is None
    else f'the last good checkpoint is {checkpoint}'
  )
  rate = config_lib.learning_rate(config)
  warmup, clip = config.schedule.warmup_fraction, config.train.grad_clip
  lines = [
    f'{good}, and nothing later was saved.\n'
    'The same command would fail again. Try, with another --config.workdir:',
    f'optimizer.learning_rate={rate / 3:.1g}  (now {rate:g})',
  ]
  if warmup < 0.2:
    lines.append(f'schedule.warmup_fraction=0.2  (now {warmup:g})')
  if clip is None or clip > 1:
    lines.append(f'train.grad_clip=1.0  (now {clip})')
  lines.append(
    f'data.seed={config.data.seed + 1}, if it always fails at the same batch'
  )
  return '\n  --config.'.join(lines)


def write(
  run: Run,
  params: Any,
  scores: Mapping[str, evaluate.Score],
  *,
  max_windows: int,
  stop: Stop,
) -> None:
  """Writes the results of a run, results.json last, and prints them.

  All processes compute; the first writes.

  Args:
    run: The run.
    params: The parameters at the end.
    scores: Scores on the validation split.
    max_windows: Largest number of windows evaluated.
    stop: Polled by all processes.

  Raises:
    Interrupted: If the run was asked to stop; the run is then not complete.
  """
  samples = sample.continue_validation(run, params, stop.check)
  processes.first_does(
    lambda: _write(run, samples, scores, max_windows, stop), stop
  )


def _write(
  run: Run,
  samples: Mapping[str, str],
  scores: Mapping[str, evaluate.Score],
  max_windows: int,
  stop: Stop,
) -> None:
  """The part of `write` that runs in one process."""
  found, fitted = _baselines(run, max_windows, stop)
  config, program, workdir = run.config, run.program, run.workdir
  baselines = {'unigram': found.unigram, 'bigram': found.bigram}
  records = list(run_log.read(workdir / run_log.FILE))
  text = '\n\n'.join(f'[{name}] {t}' for name, t in samples.items())
  files.write_text(workdir / SAMPLE, text + '\n')
  plot.loss_curve(
    records,
    workdir / PLOT,
    title=f'{config.name}: {program.optimizer.recipe}, '
    f'{llama.num_params(program.model):,} parameters',
    final=scores['total'],
    levels={
      name: math.log(perplexity) for name, perplexity in baselines.items()
    },
  )
  results = {
    'name': config.name,
    'recipe': program.optimizer.recipe,
    'steps': config.train.steps,
    'tokens': run.tokens,
    'validation': {name: score.as_dict() for name, score in scores.items()},
    'validation_tokens': run.inputs.validation.num_targets,
    'baselines': baselines,
    'baseline_tokens': fitted,
    'model_parameters': llama.num_params(program.model),
    'optimizer_state_bytes': program.explanation.totals['all'].state_bytes,
    'seconds': records[-1]['timing']['seconds'] if records else 0.0,
    'device': f'{program.mesh.devices.size} x '
    f'{program.mesh.devices.flat[0].device_kind}',
    'versions': {name: importlib.metadata.version(name) for name in _PACKAGES}
    | {'sage_optax': sage_optax.__version__},
    'run': run.identity,
  }
  stop.check()
  results['crc'] = files.crc(results)
  files.write_text(workdir / RESULTS, json.dumps(results, indent=2) + '\n')
  print(f'\nText continued by the model (more in {SAMPLE}):')
  print(next(iter(samples.values()), '(none)'))
  print(f'\n{complete(workdir)}', flush=True)


def is_complete(config: Config, identity: dict[str, Any]) -> bool:
  """Prints the results if the run is complete; UserError for another run."""
  workdir = pathlib.Path(config.workdir)
  # If the data must be prepared first, its hashes are checked later.
  hashes = read_hashes(config)
  unknown = HASHES * (not hashes)
  workdir_lib.check(workdir, identity | hashes, unknown=unknown)
  done = (workdir / RESULTS).exists()
  if done:
    print(complete(workdir))
    if unknown:
      print('The data of this command is missing, so it was not compared.')
  return done


def complete(workdir: pathlib.Path) -> str:
  """Returns the message for a complete run, from its results.json."""
  path = workdir / RESULTS
  try:
    results = json.loads(files.read_text(path))
    files.check_crc(results)
    return _complete(workdir, results)
  except (
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RecursionError),
  ) as error:
    raise errors.UserError(
      f'{path} cannot be read as the results of a run '
      f'({errors.first_line(error)}): move it away to evaluate the last '
      'checkpoint again'
    ) from error


def _complete(workdir: pathlib.Path, results: Mapping[str, Any]) -> str:
  run, total = results['run'], results['validation']['total']
  share = (
    'all of it'
    if total['tokens'] == results['validation_tokens']
    else f'of {results["validation_tokens"]:,}; limited to the number of '
    f'training tokens and to about {evaluate.MAX_TOKENS:,}'
  )
  note = _baseline_note(results)
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
      *note,
      '',
      f'results     {workdir / RESULTS}',
      f'loss curve  {workdir / PLOT}',
      f'sample      {workdir / SAMPLE}',
      f'metrics     {workdir / run_log.FILE}',
      f'optimizer   {workdir / "optimizer.txt"}',
      f'state       {workdir / "checkpoints" / str(results["steps"])}',
      'To train again, choose another --config.workdir or remove this one.',
    ]
  )


def _baseline_note(results: Mapping[str, Any]) -> list[str]:
  """Describes the tokens of the baselines, if they are not those of the run."""
  used, total = results['baseline_tokens'], results['validation_tokens']
  text = f'Unigram and bigram are fitted on {used["fitted"]:,} of '
  if 'split' in used:
    evaluated = _evaluated(results)
    part = 'the whole'
    if evaluated < total:
      part = f'{evaluated:,} of {total:,} tokens of the'
    return [
      f'{text}{used["split"]:,} tokens of the training split,',
      f'and evaluated on {part} validation split.',
    ]
  seen = used['seen']
  return [f'{text}{seen:,} tokens seen.'] if used['fitted'] < seen else []


def _evaluated(results: Mapping[str, Any]) -> int:
  """The number of tokens that the baselines are evaluated on."""
  # Earlier versions did not record it; it was the whole split, up to 20M.
  return results['baseline_tokens'].get(
    'evaluated', results['validation_tokens']
  )


def _table(results: Mapping[str, Any]) -> list[str]:
  """Perplexity and bits per byte: baselines, the run, and its subsets."""
  total = results['validation']['total']
  bits = total['tokens'] / max(total['bytes'], 1) / math.log(2)
  rows: list[Sequence[str]] = [('', 'perplexity', 'bits/byte', 'tokens')]
  for name, perplexity in results['baselines'].items():
    per_byte = f'{math.log(perplexity) * bits:.3f}'
    tokens = f'{_evaluated(results):,}'
    rows.append((name, f'{perplexity:.2f}', per_byte, tokens))
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
  run: Run, max_windows: int, stop: Stop
) -> tuple[ngram.Baselines, dict[str, int]]:
  """Returns the n-gram baselines, and the tokens that they are fitted on.

  They are in the manifest. If the data was prepared without them, they are
  fitted now, on tokens that the run has seen.
  """
  inputs = run.inputs
  if prepared := inputs.manifest.get('baselines'):
    found = ngram.Baselines(**prepared)
    return found, {
      'fitted': found.train_tokens,
      'split': inputs.train.num_tokens,
      'evaluated': found.eval_tokens,
    }
  seen = loader.seen_windows(
    inputs.train, **run.order, steps=run.config.train.steps
  )
  validation = inputs.validation.batches(max_windows)
  found = ngram.baselines(
    watch(seen, stop),
    inputs.tokenizer.vocab_size,
    ((tokens, weights) for _, tokens, weights in watch(validation, stop)),
  )
  seq_len = run.config.train.seq_len
  windows = min(run.windows, loader.num_windows(inputs.train, seq_len))
  return found, {
    'fitted': found.train_tokens,
    'seen': windows * seq_len,
    'evaluated': found.eval_tokens,
  }
