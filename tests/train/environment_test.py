"""Environment variables and models that cannot work: one line, status 2."""

import jax
import pytest

from train import config, main, program
from train.errors import UserError


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ('--xla_foo=1', 'Unknown flag in XLA_FLAGS: --xla_foo=1'),
    ('--xla_force_host_platform_device_count=abc', 'interpret value abc'),
    ('nowhere.txt', 'Could not open file "nowhere.txt"'),
  ],
)
def test_xla_flags(flags, message, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', flags)
  with pytest.raises(UserError, match='XLA_FLAGS is') as error:
    main.check_xla_flags()
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_good_xla_flags(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=2')
  main.check_xla_flags()
  monkeypatch.delenv('XLA_FLAGS')
  main.check_xla_flags()


def test_platforms(monkeypatch):
  main.check_platforms()

  def devices():
    raise RuntimeError("no backend 'foo'. (set JAX_PLATFORMS='' to choose)\nx")

  monkeypatch.setattr(jax, 'devices', devices)
  with pytest.raises(UserError, match=r"no backend 'foo'; correct") as error:
    main.check_platforms()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('override', 'fits'),
  [
    ('model.num_layers=4', True),
    ('model.hidden_size=1048576', False),
    ('model.vocab_size=2147483647', False),
    ('train.seq_len=2147483647', False),
  ],
)
def test_memory(override, fits):
  run = config.load('configs/quickstart.py', override)
  compiled = program.build(run, jax.devices()[:2])
  if fits:
    program.check_memory(run, compiled)
  else:
    with pytest.raises(UserError, match=r'each device needs .* GiB'):
      program.check_memory(run, compiled)
