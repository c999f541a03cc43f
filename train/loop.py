"""Orders the events of a run: data, state, steps, checkpoints, results."""

import contextlib
import pathlib
import time
from typing import Any

import jax

from train import checkpoint, errors, mesh, output, program
from train import config as config_lib
from train import workdir as workdir_lib
from train.config import Config
from train.data import loader
from train.distributed import processes
from train.distributed.signals import SharedStop, Stop, catch
from train.hf import pretrained
from train.inputs import open_together
from train.results import evaluate, report
from train.results.recorder import Recorder
from train.run import Run
from train.state import TrainState


def run(config: Config) -> int:
  """Trains or resumes a run, and reports its results.

  Args:
    config: The configuration, checked and completed.

  Returns:
    The exit status; see `train.main`.

  Raises:
    UserError: If the input is bad; nothing was overwritten.
  """
  stop = SharedStop() if processes.several() else Stop()
  with catch(stop), output.stops(stop):
    try:
      return _run(config, stop)
    except errors.Interrupted:
      processes.say('Stopped. Rerun the same command to resume.')
      return stop.status
    except errors.UserError:
      raise
    except Exception as error:
      raise errors.of_system(error) or error from error


def _run(config: Config, stop: Stop) -> int:
  """Like `run`, with signal handlers installed."""
  workdir = pathlib.Path(config.workdir)
  settings = config_lib.settings(config).items()
  processes.check_same([f'config.{k}={v!r}' for k, v in settings])
  compiled = processes.together(lambda: _build(config))
  identity = program.describe(config, compiled)
  if processes.first_does(lambda: report.is_complete(config, identity)):
    return 0
  run = Run(config, compiled, open_together(config, stop))
  with contextlib.ExitStack() as stack:

    def claim() -> None:
      workdir_lib.check(workdir, run.identity)
      stack.enter_context(workdir_lib.hold(workdir))
      if warning := workdir_lib.claim(workdir, run.identity, run.rounding):
        print(warning)

    processes.first_does(claim)
    run_file = workdir / workdir_lib.RUN_FILE
    processes.check_shared(run_file, 'the working directory')
    checkpoints = checkpoint.Checkpoints(
      workdir / workdir_lib.CHECKPOINTS,
      run.identity,
      keep=config.checkpoint.keep,
      asynchronous=config.checkpoint.async_,
    )
    stack.callback(checkpoints.close)
    trainer = Trainer(run, checkpoints, stop)
    stack.callback(trainer.close)
    try:
      trainer.run()
    except errors.NonFinite as error:
      processes.say(trainer.advice(error))
      return 1
  return 0


def _build(config: Config) -> program.Program:
  compiled = program.build(config)
  program.check_memory(config, compiled)
  pretrained.check(config, compiled.model)
  return compiled


class Trainer:
  """Trains a run in its working directory.

  Attributes:
    state: The state after `step` steps, perhaps still being computed.
    step: The number of steps dispatched.
  """

  def __init__(self, run: Run, checkpoints: checkpoint.Checkpoints, stop: Stop):
    self._run = run
    self._config = config = run.config
    self._program = run.program
    self._stop = stop
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._checkpoints = checkpoints
    # This may raise an error, so nothing is written before.
    restored = checkpoints.restore_newest(
      run.program.abstract, processes.say, strict=config.checkpoint.strict
    )
    self.step: int
    self.state: Any
    self.step, self.state = restored or (0, None)
    self._recorder = Recorder(run, self.step)
    self._sample, self._all = evaluate.windows(
      config.eval.max_windows,
      trained=run.windows,
      seq_len=config.train.seq_len,
    )

  def run(self) -> None:
    """Trains from the current step to the end, and reports."""
    try:
      self._recorder.explanation(self._program.explanation, self.step)
      self._start()
      self._train()
      self._finish()
    except errors.Interrupted:
      self._save_at_once()
      raise
    except errors.NonFinite:
      raise
    except Exception as error:
      processes.fail(errors.of_system(error) or error)
      raise

  def _start(self) -> None:
    """Compiles the step, and creates the state if none was restored."""
    say = self._recorder.say
    if self.step:
      say(f'Resuming from the checkpoint of step {self.step}.')
    self._stop.check()
    if self.step == self._config.train.steps:
      return
    began = time.monotonic()
    self._train_step = self._program.compile_train_step(
      self._config.train.batch_size, self._config.train.seq_len
    )
    self._stop.check()
    if self.state is None:
      self.state = self._initial_state()
    # On CPUs, the first collective times out after 30 s, and the compilation
    # may take longer in another process.
    processes.together(lambda: jax.block_until_ready(self.state))
    say(f'Compiled in {time.monotonic() - began:.1f} s.')

  def _initial_state(self) -> TrainState:
    path = self._config.init.path
    if path is None:
      return self._program.init(self._config.train.seed)
    self._recorder.say(f'Starting from the weights of {path}.')
    return self._program.init_from(
      pretrained.readers(pathlib.Path(path), self._program.model)
    )

  def _train(self) -> None:
    """Runs the remaining steps."""
    config = self._config
    batch_size = config.train.batch_size
    rows = mesh.local_rows(self._program.mesh, batch_size)
    batches = loader.train_iterator(
      self._run.inputs.train, **self._run.order, start_step=self.step, rows=rows
    )
    # In case a signal interrupted this evaluation.
    if 0 < self.step < config.train.steps and self._due(config.eval.every):
      self._evaluate()
    self._recorder.begin(self.step)
    profile = self._recorder.profile
    while self.step < config.train.steps:
      self._stop.check()
      profile.before(self.step)
      batch = mesh.put_batch(
        next(batches), self._program.mesh, rows, batch_size
      )
      self.state, values = self._train_step(self.state, batch)
      self.step += 1
      # The next step runs on the devices while this one's values are read.
      previous, self._pending = self._pending, (self.step, values)
      jax.tree.map(lambda x: x.copy_to_host_async(), values)
      if previous is not None:
        self._read(*previous)
      if profile.ends(self.step):
        self._drain()
        self._recorder.say(profile.stop())
      self._events()

  def _events(self) -> None:
    """Evaluates, then saves, if due."""
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
      self._recorder.resume(self.step)

  def _due(self, every: int) -> bool:
    return every > 0 and self.step % every == 0

  def _drain(self) -> None:
    """Waits for the last step and reads its metrics."""
    pending, self._pending = self._pending, None
    if pending is not None:
      self._read(*pending)

  def _read(self, step: int, values: dict[str, jax.Array]) -> None:
    """Fetches the metrics of a step; raises NonFinite if one is not finite.

    If all metrics are finite, so are the loss, the gradients, and the
    parameters before and after the update.
    """
    found = {k: float(v) for k, v in jax.device_get(values).items()}
    self._recorder.train(step, found)
    self._checkpoints.check()

  def _score(self, max_windows: int | None) -> dict[str, evaluate.Score]:
    losses = evaluate.on_mesh(
      self._program.eval_step, self.state.params, self._program.mesh
    )
    return self._run.inputs.validation.score(
      losses, max_windows, self._stop.check
    )

  def _evaluate(self) -> dict[str, evaluate.Score] | None:
    """Evaluates on the same windows each time, at most once per step."""
    if self._recorder.evaluated == self.step:
      return None
    scores = self._score(self._sample)
    self._recorder.evaluation(self.step, scores)
    return scores

  def _save(self) -> None:
    """Saves the state, whose metrics are known to be finite."""
    self._recorder.sync()
    self._checkpoints.save(self.state, self.step)

  def _save_at_once(self) -> None:
    """Saves the current state before the process ends."""
    self._drain()
    if self.state is not None and self.step:
      self._save()
      self._checkpoints.wait()
      path = self._checkpoints.path(self.step)
      self._recorder.say(f'The state of step {self.step} is in {path}.')

  def _finish(self) -> None:
    """Evaluates and writes the report, which completes the run."""
    self._checkpoints.wait()
    self._recorder.end_progress()
    # The last point of the curve uses the same windows as the others.
    scores = self._evaluate()
    if scores is None or self._sample < min(
      self._all, self._run.inputs.validation.num_windows
    ):
      scores = self._score(self._all)
    report.write(
      self._run,
      self.state.params,
      scores,
      max_windows=self._all,
      stop=self._stop,
    )

  def advice(self, error: errors.NonFinite) -> str:
    """Returns the message for a metric that is not finite."""
    self._checkpoints.wait()
    latest = self._checkpoints.latest
    good = None if latest is None else self._checkpoints.path(latest)
    return f'{error}: stopped; {report.advice(self._config, good)}'

  def close(self) -> None:
    """Closes the files of the recorder."""
    self._recorder.close()
