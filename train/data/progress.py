"""The progress of a preparation: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Callable

import tqdm

_LINE_SECONDS = 30


class Progress:
  """Shows the share of the input done, the rate and the time left."""

  def __init__(
    self,
    total: int,
    log: Callable[[str], None],
    *,
    done: int = 0,
    text: int = 0,
  ):
    """Starts the clock.

    Args:
      total: Bytes of the input files, as stored.
      log: Receives lines if standard error is not a terminal.
      done: Bytes of them that were done before.
      text: Bytes of text in them.
    """
    self._total = max(1, total)
    self._log = log
    self._done, self._text = done, text
    self._start = self._last = time.monotonic()
    # disable=None: no bar where there is no terminal.
    self._bar = tqdm.tqdm(
      total=self._total,
      initial=done,
      disable=None,
      bar_format='{percentage:3.0f}% |{bar}| {postfix}, {remaining} left',
    )

  def update(self, done: int, text: int, bad: int) -> None:
    """Shows the progress.

    Args:
      done: Bytes of the input files done.
      text: Bytes of text in them.
      bad: Lines skipped.
    """
    now = time.monotonic()
    seconds = max(now - self._start, 1e-9)
    rate = (text - self._text) / seconds
    state = f'{text / 1e6:,.0f} MB of text, {rate / 1e6:.1f} MB/s'
    if bad:
      state += f', {bad} bad lines'
    self._bar.set_postfix_str(state, refresh=False)
    self._bar.update(done - self._bar.n)
    if self._bar.disable and now - self._last >= _LINE_SECONDS:
      self._last = now
      left = seconds * (self._total - done) / max(1, done - self._done)
      self._log(
        f'{done / self._total:.1%} of the input, {state}, '
        f'{tqdm.tqdm.format_interval(left)} left'
      )

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()
