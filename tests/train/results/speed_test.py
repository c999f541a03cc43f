"""Tests of train.results.speed."""

import io

import jax
import pytest

from train.results import speed


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_bar_on_a_terminal():
  file = _Terminal()
  progress = speed.ProgressBar(100, 40, file=file)
  progress.update(50, 3.14159, 12345.6)
  progress.say('a line')
  progress.close()
  assert '50/100' in file.getvalue()
  assert 'loss 3.142' in file.getvalue()
  assert '12,346 tokens/s' in file.getvalue()
  assert 'left' in file.getvalue()
  assert 'a line\n' in file.getvalue()


@pytest.mark.parametrize(
  ('every_seconds', 'steps'), [(0.0, [1, 2, 3]), (1e9, [3])]
)
def test_lines_now_and_then_without_a_terminal(every_seconds, steps):
  file = io.StringIO()
  progress = speed.ProgressBar(3, 0, every_seconds=every_seconds, file=file)
  for step in range(1, 4):
    progress.update(step, 2.0, 10.0)
  progress.close()
  lines = file.getvalue().splitlines()
  assert [line.split('  ')[0] for line in lines] == [
    f'step {step}/3' for step in steps
  ]


def test_show_turns_the_bar_off():
  file = _Terminal()
  progress = speed.ProgressBar(3, 0, show=False, file=file)
  progress.update(3, 2.0, 10.0)
  progress.say('spoken')
  progress.close()
  assert file.getvalue() == 'spoken\n'


def test_peak_flops_only_where_the_chip_is_known():
  assert speed.peak_flops('TPU v5 lite') == 197e12
  assert speed.peak_flops(jax.devices()[0].device_kind) is None
