"""The speed of a run: a clock, a progress bar, JAX's profiler."""

import pathlib
import sys
import time
from typing import TextIO

import jax
import tqdm

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


class ProgressBar:
  """Shows progress: a bar on a terminal, periodic lines elsewhere."""

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
    """Resets the start time, to exclude time spent on other work."""
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
    """The seconds that the run has taken so far."""
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
      traces: Whether this process records the trace; otherwise it only
        synchronizes.
    """
    self._directory = directory
    self._start = start
    self._steps = steps
    self._traces = traces
    self._running = False

  def before(self, step: int) -> None:
    """Starts the trace if it is due after `step` steps."""
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
    """Ends a trace that a signal or an error interrupted."""
    if self._running:
      self.stop()
