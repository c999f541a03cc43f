"""The records of a run: JSON lines, TensorBoard, a progress bar."""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TextIO

import jax
import msgspec
import tqdm

from train import errors, files

FILE = 'metrics.jsonl'

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]


class _Timing(msgspec.Struct):
  seconds: _Number


class _Record(msgspec.Struct):
  """What of a record is read again; others only pass through."""

  step: _Count
  tokens: _Count
  timing: _Timing
  loss: _Number | str = 0
  eval_loss: _Number | str = msgspec.field(name='eval/loss', default=0)
  eval_tokens: _Count = msgspec.field(name='eval/tokens', default=0)


# Peak dense bfloat16 FLOP/s of what JAX calls one device. TPUs: the pages
# 'TPU v2' ... 'TPU v6e' of cloud.google.com/tpu/docs, where a chip of v2 and
# v3 is two devices. GPUs: NVIDIA's data sheets, without sparsity.
_PEAK_FLOPS = {
  'TPU v2': 22.5e12,
  'TPU v3': 61.5e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H200': 989e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Returns the peak bfloat16 FLOP/s of a device, or None if not known."""
  return _PEAK_FLOPS.get(device_kind)


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the records of a file of JSON lines, except a partial last line.

  Args:
    path: The file, which need not exist.

  Yields:
    The records.

  Raises:
    UserError: If the file was not written by `JsonLines`.
  """
  if not path.exists():
    return
  try:
    lines = files.read_text(path).split('\n')
    for line in lines[:-1]:
      record = json.loads(line)
      msgspec.convert(record, _Record)
      yield record
  except (
    *(OSError, ValueError, RecursionError),
    msgspec.ValidationError,
  ) as error:
    raise errors.UserError(
      f'{path} is not readable or not of a run ({errors.first_line(error)}): '
      'move it away to resume without the records of the steps so far'
    ) from error


class JsonLines:
  """Appends records to a file, after cutting it back to the restored step.

  Steps are repeated bit for bit after a restart, so the file is the same as
  that of an uninterrupted run, except for the key 'timing'.

  Attributes:
    seconds: Duration of the run until the restored step.
    evaluated: The last step that was evaluated.
    complete: Whether the file has the records of all previous steps.
  """

  def __init__(self, path: pathlib.Path, restored_step: int):
    """Opens the file.

    Args:
      path: The file; it may exist.
      restored_step: Records of later steps are removed.
    """
    kept = [r for r in read(path) if r['step'] <= restored_step]
    self.seconds = max((r['timing']['seconds'] for r in kept), default=0.0)
    self.evaluated = max(
      (r['step'] for r in kept if 'eval/loss' in r), default=0
    )
    self.complete = bool(kept) or not restored_step
    if path.exists():
      files.write_text(path, ''.join(map(_line, kept)))
    self._file = path.open('a', encoding='utf-8')

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends a record, which then survives the death of the process."""
    self._file.write(_line(record))
    self._file.flush()
    if 'eval/loss' in record:
      self.evaluated = record['step']

  def sync(self) -> None:
    """Flushes to disk, so that the records survive a crash of the machine."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()


def _line(record: Mapping[str, Any]) -> str:
  finite = {k: _finite(v) for k, v in record.items()}
  return json.dumps(finite, allow_nan=False) + '\n'


def _finite(value: Any) -> Any:
  """Converts NaN and infinity to strings, since JSON does not have them."""
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


class TensorBoard:
  """Scalars for TensorBoard; does nothing without a directory."""

  def __init__(self, directory: pathlib.Path | None, restored_step: int):
    self._writer = None
    if directory is not None:
      import tensorboardX  # Slow to import, and optional.

      self._writer = tensorboardX.SummaryWriter(
        str(directory), purge_step=restored_step + 1
      )

  def write(self, record: Mapping[str, Any]) -> None:
    if self._writer is None:
      return
    scalars = {k: v for k, v in record.items() if k not in ('step', 'timing')}
    for name, value in {**scalars, **record['timing']}.items():
      if isinstance(value, int | float):
        self._writer.add_scalar(name, value, record['step'])

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


class Progress:
  """A progress bar on a terminal; periodic lines elsewhere."""

  def __init__(
    self,
    total: int,
    initial: int,
    *,
    show: bool = True,
    quiet: bool = False,
    every_seconds: float = 15.0,
    file: TextIO | None = None,
  ):
    """Starts at step `initial` of `total`.

    Args:
      total: Steps of the run.
      initial: Steps done already.
      show: Whether to show progress; `say` prints in any case.
      quiet: Whether `say` prints nothing.
      every_seconds: Seconds between lines if there is no terminal.
      file: The output stream; standard output if None.
    """
    self._file = sys.stdout if file is None else file
    self._total = total
    self._start = initial
    self._show = show
    self._quiet = quiet
    self._every = every_seconds
    self._began = self._last = time.monotonic()
    self._bar = None
    if show and self._file.isatty():
      self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        file=self._file,
        unit='step',
        dynamic_ncols=True,
        smoothing=0.05,
        bar_format=(
          '{n_fmt}/{total_fmt} |{bar}| {percentage:.0f}%  {desc}'
          '  {elapsed} gone, {remaining} left'
        ),
      )

  def restart(self) -> None:
    """Resets the start time, to leave out time spent on other work."""
    self._began = self._last = time.monotonic()
    if self._bar is not None:
      self._bar.unpause()

  def update(self, step: int, loss: float, tokens_per_second: float) -> None:
    """Shows that `step` steps are done."""
    text = f'loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s'
    now = time.monotonic()
    if self._bar is not None:
      self._bar.n = step
      self._bar.desc = text
      self._bar.refresh()
    elif self._show and (
      now - self._last >= self._every or step == self._total
    ):
      self._last = now
      rate = (step - self._start) / max(now - self._began, 1e-9)
      left = tqdm.tqdm.format_interval((self._total - step) / max(rate, 1e-9))
      self.say(f'step {step}/{self._total}  {text}  {left} left')

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._bar is not None:
      self._bar.write(text, file=self._file)
    elif not self._quiet:
      print(text, file=self._file, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


class Clock:
  """Measures speed between events, and the time of the whole run."""

  def __init__(self, tokens_per_step: int, seconds_before: float):
    """Starts the clock.

    Args:
      tokens_per_step: Tokens trained on in a step.
      seconds_before: Duration of the run before this process.
    """
    self._tokens = tokens_per_step
    self._zero = time.monotonic() - seconds_before
    self._last: tuple[int, float] | None = None

  def start(self, step: int) -> None:
    """Begins an interval after `step` steps."""
    self._last = (step, time.monotonic())

  def elapsed(self) -> dict[str, float]:
    """The seconds that the run took so far."""
    return {'seconds': time.monotonic() - self._zero}

  def read(self, step: int) -> dict[str, float]:
    """Ends an interval after `step` steps, and begins the next."""
    timing = self.elapsed()
    if self._last is not None and step > self._last[0]:
      steps, began = step - self._last[0], self._last[1]
      passed = max(time.monotonic() - began, 1e-9)
      timing['tokens_per_second'] = self._tokens * steps / passed
    self.start(step)
    return timing


class Profile:
  """A trace of some steps by JAX's profiler."""

  def __init__(
    self, directory: pathlib.Path, start: int, steps: int, traces: bool = True
  ):
    """Plans a trace.

    Args:
      directory: Output directory.
      start: Number of steps before it begins.
      steps: Number of steps it covers; 0 for no trace.
      traces: Whether this process records it, or only keeps in step.
    """
    self._directory = directory
    self._start = start
    self._steps = steps
    self._traces = traces
    self._running = False

  def before(self, step: int) -> None:
    """Begins the trace if it is time, after `step` steps."""
    if self._steps and step == self._start:
      if self._traces:
        jax.profiler.start_trace(self._directory)
      self._running = True

  def ends(self, step: int) -> bool:
    """Whether to stop after `step` steps."""
    return self._running and step >= self._start + self._steps

  def stop(self) -> str:
    """Ends the trace; returns a message with its location."""
    self._running = False
    if self._traces:
      jax.profiler.stop_trace()
    return f'The profile is in {self._directory}.'

  def close(self) -> None:
    """Ends a trace that a signal or an error cut short."""
    if self._running:
      self.stop()
