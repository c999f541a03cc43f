"""Records a run; only process 0 writes."""

import math

import sage_optax
from models import llama
from train import errors, files
from train.distributed import processes
from train.results import evaluate, run_log, speed
from train.run import Run


class Recorder:
  """Metrics, TensorBoard, progress and profile of a run.

  Attributes:
    evaluated: The last step that was evaluated, the same in all processes.
  """

  def __init__(self, run: Run, step: int):
    """Opens the files, truncated to the restored step."""
    config, workdir = run.config, run.workdir
    self._config = config
    self._workdir = workdir
    self._tokens = config.train.batch_size * config.train.seq_len
    self._log: run_log.JsonLines | None = None
    self._wandb: run_log.WeightsAndBiases | None = None
    processes.first_does(lambda: self._open(run, step))  # May refuse.
    first = processes.is_first()
    board = workdir / 'tensorboard' if config.log.tensorboard else None
    self._board = run_log.TensorBoard(board if first else None, step)
    self._progress = speed.ProgressBar(
      config.train.steps,
      step,
      show=config.log.progress and first,
      quiet=not first,
    )
    self.profile = speed.Profile(
      workdir / 'profile',
      step + config.log.profile_start,
      config.log.profile_steps,
      traces=first,
    )
    if self._log and not self._log.complete:
      self.say(
        f'{workdir / run_log.FILE} has no records of the steps before '
        f'{step}: the loss curve will start there.'
      )
    self._clock = speed.Clock(
      self._tokens, self._log.seconds if self._log else 0.0
    )
    self._peak = _peak_tokens_per_second(run)
    log = self._log
    self.evaluated: int = processes.first_does(
      lambda: log.evaluated if log else 0
    )

  def _open(self, run: Run, step: int) -> None:
    self._log = run_log.JsonLines(run.workdir / run_log.FILE, step)
    project = run.config.log.wandb
    if project is None:
      return
    try:
      self._wandb = run_log.WeightsAndBiases(
        project, run.config.name, run.workdir, run.identity
      )
    except errors.UserError:
      self._log.close()
      raise

  def say(self, text: str) -> None:
    """Prints a line, once for all processes."""
    self._progress.say(text)

  def begin(self, step: int) -> None:
    """Resets the throughput clock."""
    self.resume(step)
    self._progress.restart()

  def resume(self, step: int) -> None:
    """Starts measuring throughput after `step` steps."""
    self._clock.start(step)

  def explanation(self, table: sage_optax.Explanation, step: int) -> None:
    """Saves what the optimizer does to each parameter, and prints it once."""
    if self._log is not None:
      files.write_text(self._workdir / 'optimizer.txt', f'{table}\n')
      files.write_text(self._workdir / 'optimizer.json', f'{table.to_json()}\n')
    if step == 0:
      self.say(f'{table}\n')

  def train(self, step: int, values: dict[str, float]) -> None:
    """Records a step if it is due.

    Args:
      step: The step.
      values: Its metrics.

    Raises:
      NonFinite: If one is not finite; the step is recorded first.
    """
    bad = non_finite(values)
    due = step % self._config.log.every == 0
    if not (bad or due or step in (1, self._config.train.steps)):
      return
    timing = self._clock.read(step)
    if self._peak is not None and 'tokens_per_second' in timing:
      timing['mfu'] = timing['tokens_per_second'] / self._peak
    self._write(step, values, timing)
    self._progress.update(
      step, values['loss'], timing.get('tokens_per_second', 0.0)
    )
    if bad:
      raise errors.NonFinite(step, bad, values[bad])

  def evaluation(self, step: int, scores: dict[str, evaluate.Score]) -> None:
    """Records a point of the validation curve."""
    self._write(step, evaluate.flatten(scores), self._clock.elapsed())
    self.evaluated = step
    total = scores['total']
    self.say(
      f'step {step}  validation: perplexity {total.perplexity:.2f}, '
      f'{total.bits_per_byte:.3f} bits per byte ({total.tokens:,} tokens)'
    )

  def _write(
    self, step: int, values: dict[str, float], timing: dict[str, float]
  ) -> None:
    record = {
      'step': step,
      'tokens': step * self._tokens,
      **values,
      'timing': timing,
    }
    if self._log is not None:
      self._log.write(record)
    self._board.write(record)
    if self._wandb is not None:
      self._wandb.write(record)

  def sync(self) -> None:
    """Flushes to disk, so that the records survive a crash of the machine."""
    if self._log is not None:
      self._log.sync()

  def end_progress(self) -> None:
    self._progress.close()

  def close(self) -> None:
    self._progress.close()
    self.profile.close()
    if self._log is not None:
      self._log.close()
    self._board.close()
    if self._wandb is not None:
      self._wandb.close()


def non_finite(values: dict[str, float]) -> str | None:
  """Returns the name of a value that is not finite, preferably the loss."""
  bad = [name for name, value in values.items() if not math.isfinite(value)]
  return 'loss' if 'loss' in bad else next(iter(bad), None)


def _peak_tokens_per_second(run: Run) -> float | None:
  """The throughput if devices computed the model's FLOPs at their peak rate."""
  devices = run.program.mesh.devices
  peak = speed.peak_flops(devices.flat[0].device_kind)
  if peak is None:
    return None
  flops = llama.flops_per_token(run.program.model, run.config.train.seq_len)
  return peak * devices.size / flops
