"""Orders the events of a run: data, state, steps, checkpoints, results."""

import math
import pathlib
import time
from typing import Any

import jax

from train import (
  checkpoint,
  data,
  errors,
  evaluate,
  lock,
  mesh,
  metrics,
  program,
  report,
  signals,
)
from train.config import Config
from train.inputs import HASHES, Inputs, open_inputs


class NonFinite(Exception):
  """A loss or a norm is not a finite number."""

  def __init__(self, step: int, name: str, value: float):
    super().__init__(f'{name} is {value} at step {step}')


def run(config: Config) -> int:
  """Trains, or goes on with training, and reports.

  Args:
    config: The configuration, checked and completed.

  Returns:
    The exit status; see `train.main`.

  Raises:
    UserError: If the input is bad; nothing was written over.
  """
  with signals.catch() as stop:
    try:
      return _run(config, stop)
    except errors.Interrupted:
      print('Stopped. The same command goes on.', flush=True)
      return stop.status


def _run(config: Config, stop: signals.Stop) -> int:
  """As `run`, with what a signal sets."""
  if jax.process_count() > 1:
    raise errors.UserError(
      f'this is one of {jax.process_count()} processes, and a run takes one: '
      'start it once, on one host, without jax.distributed'
    )
  workdir = pathlib.Path(config.workdir)
  compiled = program.build(config)
  identity = program.describe(config, compiled)
  # Checked before anything is written: without the data that may have to be
  # prepared, and then with it.
  checkpoint.check_workdir(workdir, identity, unknown=HASHES)
  if (workdir / report.RESULTS).exists():
    print(report.complete(workdir))
    return 0
  inputs = open_inputs(config, stop, print)
  identity |= inputs.hashes
  data.check_enough(inputs.train, config.train.seq_len, config.train.batch_size)
  checkpoint.check_workdir(workdir, identity)
  with lock.hold(workdir):
    warning = checkpoint.claim_workdir(
      workdir, identity, report.rounding(config, compiled)
    )
    if warning:
      print(warning)
    run = Trainer(config, workdir, compiled, inputs, identity, stop)
    try:
      run.all()
    except NonFinite as error:
      print(run.advice(error), flush=True)
      return 1
    finally:
      run.close()
  return 0


def _order(config: Config) -> dict[str, int]:
  """The arguments that fix the order of the data."""
  return {
    'seq_len': config.train.seq_len,
    'batch_size': config.train.batch_size,
    'seed': config.data.seed,
  }


def non_finite(values: dict[str, float]) -> str | None:
  """The name of a value that is not finite: the loss, if it is one."""
  bad = [name for name, value in values.items() if not math.isfinite(value)]
  return 'loss' if 'loss' in bad else next(iter(bad), None)


class Trainer:
  """A run in its working directory.

  Attributes:
    state: The state after `step` steps, maybe still being computed.
    step: The number of steps dispatched.
  """

  def __init__(
    self,
    config: Config,
    workdir: pathlib.Path,
    compiled: program.Program,
    inputs: Inputs,
    identity: dict[str, Any],
    stop: signals.Stop,
  ):
    self._config = config
    self._workdir = workdir
    self._program = compiled
    self._inputs = inputs
    self._stop = stop
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self.state: Any = None
    self._checkpoints = checkpoint.Checkpoints(
      workdir / checkpoint.DIRECTORY,
      identity,
      keep=config.checkpoint.keep,
      asynchronous=config.checkpoint.async_,
    )
    self.step = self._checkpoints.latest or 0
    self._log = metrics.JsonLines(workdir / metrics.FILE, self.step)
    board = workdir / 'tensorboard' if config.log.tensorboard else None
    self._board = metrics.TensorBoard(board, self.step)
    self._progress = metrics.Progress(
      config.train.steps, self.step, show=config.log.progress
    )
    self._profile = metrics.Profile(
      workdir / 'profile',
      self.step + config.log.profile_start,
      config.log.profile_steps,
    )
    self._clock = metrics.Clock(
      config.train.batch_size * config.train.seq_len, self._log.seconds
    )
    self._peak = report.peak_tokens_per_second(config, compiled)
    self._sample, self._all = evaluate.windows(
      config.eval.max_windows,
      trained=config.train.steps * config.train.batch_size,
      seq_len=config.train.seq_len,
    )

  def all(self) -> None:
    """Goes through the run, from wherever it is, to its end."""
    try:
      self._explain()
      self._start()
      self._train()
      self._finish()
    except errors.Interrupted:
      self._save_at_once()
      raise

  def _explain(self) -> None:
    """Prints and saves what the optimizer does to each parameter."""
    table = self._program.explanation
    (self._workdir / 'optimizer.txt').write_text(f'{table}\n')
    (self._workdir / 'optimizer.json').write_text(table.to_json() + '\n')
    if self.step == 0:
      self._progress.say(f'{table}\n')

  def _start(self) -> None:
    """Makes or restores the state, and compiles the step."""
    if self.step:
      self.state = self._checkpoints.restore(self._program.abstract)
      self._progress.say(f'Going on from the checkpoint of step {self.step}.')
    self._stop.check()
    if self.step == self._config.train.steps:
      return
    began = time.monotonic()
    batch_size, seq_len = (
      self._config.train.batch_size,
      self._config.train.seq_len,
    )
    self._train_step = self._program.compile_train_step(batch_size, seq_len)
    self._stop.check()
    if self.state is None:
      self.state = self._program.init(self._config.train.seed)
    self._progress.say(f'Compiled in {time.monotonic() - began:.1f} s.')

  def _train(self) -> None:
    """Takes the steps that are left."""
    config = self._config
    batches = data.train_iterator(
      self._inputs.train,
      **_order(config),
      start_step=self.step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    # A signal may have cut this evaluation short.
    if 0 < self.step < config.train.steps and self._due(config.eval.every):
      self._evaluate()
    self._clock.start(self.step)
    self._progress.restart()
    while self.step < config.train.steps:
      self._stop.check()
      self._profile.before(self.step)
      batch = mesh.put_batch(next(batches), self._program.mesh)
      self.state, values = self._train_step(self.state, batch)
      self.step += 1
      # The next step runs on the devices while this one's values are read.
      previous, self._pending = self._pending, (self.step, values)
      jax.tree.map(lambda x: x.copy_to_host_async(), values)
      if previous is not None:
        self._read(*previous)
      if self._profile.ends(self.step):
        self._drain()
        self._progress.say(self._profile.stop())
      self._events()

  def _events(self) -> None:
    """Evaluation, then the checkpoint: so that it implies the evaluation."""
    last = self.step == self._config.train.steps
    evaluates = self._due(self._config.eval.every) and not last
    saves = self._due(self._config.checkpoint.every) or last
    if evaluates or saves:
      self._drain()
    if evaluates:
      self._evaluate()
    if saves:
      self._save()
    if evaluates or saves:
      self._clock.start(self.step)

  def _due(self, every: int) -> bool:
    return every > 0 and self.step % every == 0

  def _drain(self) -> None:
    """Reads what the last step returned, and waits for it."""
    pending, self._pending = self._pending, None
    if pending is not None:
      self._read(*pending)

  def _read(self, step: int, values: dict[str, jax.Array]) -> None:
    """Fetches and checks a step's metrics, and logs them if it is time.

    All of them finite means that the loss and the gradients were, and that
    the parameters were before and are after the update.
    """
    found = {k: float(v) for k, v in jax.device_get(values).items()}
    every = self._config.log.every
    bad = non_finite(found)
    logged = step % every == 0 or step in (1, self._config.train.steps)
    if logged or bad:
      timing = self._clock.read(step)
      if self._peak is not None and 'tokens_per_second' in timing:
        timing['mfu'] = timing['tokens_per_second'] / self._peak
      self._write(step, found, timing)
      self._progress.update(
        step, found['loss'], timing.get('tokens_per_second', 0.0)
      )
    if bad:
      raise NonFinite(step, bad, found[bad])

  def _write(
    self, step: int, values: dict[str, float], timing: dict[str, float]
  ) -> None:
    tokens = step * self._config.train.batch_size * self._config.train.seq_len
    record = {'step': step, 'tokens': tokens, **values, 'timing': timing}
    self._log.write(record)
    self._board.write(record)

  def _score(self, max_windows: int | None) -> dict[str, evaluate.Score]:
    losses = evaluate.on_mesh(
      self._program.eval_step, self.state.params, self._program.mesh
    )
    return self._inputs.validation.score(losses, max_windows, self._stop.check)

  def _evaluate(self) -> dict[str, evaluate.Score] | None:
    """Evaluates on the same sample each time, once for each step."""
    if self._log.evaluated == self.step:
      return None
    scores = self._score(self._sample)
    self._write(self.step, evaluate.flatten(scores), self._clock.elapsed())
    total = scores['total']
    self._progress.say(
      f'step {self.step}  validation: perplexity {total.perplexity:.2f}, '
      f'{total.bits_per_byte:.3f} bits per byte ({total.tokens:,} tokens)'
    )
    return scores

  def _save(self) -> None:
    """Saves the state; what came before it has been found to be finite."""
    self._log.sync()
    self._checkpoints.save(self.state, self.step)

  def _save_at_once(self) -> None:
    """Saves what there is, because the process is about to end."""
    self._drain()
    if self.state is not None and self.step:
      self._save()
      self._checkpoints.wait()
      path = self._checkpoints.path(self.step)
      self._progress.say(f'The state of step {self.step} is in {path}.')

  def _finish(self) -> None:
    """Evaluates and reports; the run is complete when this is done."""
    self._checkpoints.wait()
    self._progress.close()
    # The curve's last point is of the same sample as the others.
    scores = self._evaluate()
    if scores is None or self._sample < min(
      self._all, self._inputs.validation.num_windows
    ):
      scores = self._score(self._all)
    report.write(
      self._workdir,
      self._config,
      self._program,
      self._inputs,
      self.state.params,
      scores,
      max_windows=self._all,
      stop=self._stop,
    )

  def advice(self, error: NonFinite) -> str:
    """What to say when the loss is not finite."""
    self._checkpoints.wait()
    latest = self._checkpoints.latest
    good = None if latest is None else self._checkpoints.path(latest)
    return f'{error}: stopped; {report.advice(self._config, good)}'

  def close(self) -> None:
    """Ends what runs beside the process."""
    self._progress.close()
    self._profile.close()
    self._checkpoints.close()
    self._log.close()
    self._board.close()
