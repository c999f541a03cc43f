"""Trains a language model: python -m train.main --config configs/<name>.py.

If interrupted, rerun the same command to resume. Exit status: 0 if the run is
complete; 1 if the loss is not finite or the program failed; 2 for bad input,
with a one-line message; 3 if another process died or failed; 143 after SIGTERM
and 130 after Ctrl-C, with the state saved. A second Ctrl-C ends the process at
once.

Every field of the configuration can be set on the command line, such as
--config.train.steps=100; --helpfull lists them all.

With several hosts or processes, start the same command in each. They find each
other under Slurm (srun), Open MPI, and on Cloud TPU and GKE TPU slices;
--distributed and --nodistributed override the detection. Elsewhere, pass the
address of process 0; here for the first of four processes:

  python -m train.main --config configs/<name>.py \\
    --coordinator=HOST:PORT --num_processes=4 --process_id=0

Data and working directory must be on a shared file system. docs/hosts.md has
example scripts.
"""

import functools
import os
import pathlib
import subprocess
import sys

from train import output
from train.distributed import signals


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  with output.guarded():
    return _main(argv)


def _main(argv: list[str] | None) -> int:
  signals.quit_at_once()
  argv = sys.argv if argv is None else argv
  if {'-h', '--help'} & set(argv[1:]):
    print(__doc__)
    return 0
  # Imported late, because these imports take seconds.
  try:
    from absl import flags

    from train import config as config_lib
    from train import errors, loop
    from train.config import help as config_help
    from train.distributed import cluster, processes
    from train.results import run_log
  except ModuleNotFoundError as error:
    print(
      f'error: {sys.executable} has no module {error.name!r}: activate the '
      'environment (`. .venv/bin/activate` after `make train`), or pip install '
      "-e '.[train]'",
      file=sys.stderr,
    )
    return 2
  if '--helpfull' in argv[1:]:
    print(f'{__doc__}\n{config_help.text()}')
    return 0
  try:
    flag_values = flags.FlagValues()
    config_lib.define_flag(flag_values, argv)
    cluster.define_flags(flag_values)
    extra = config_lib.parse_flags(argv, flag_values)[1:]
    if extra:
      raise errors.UserError(
        f'unexpected argument {extra[0]!r}: flags begin with --config'
      )
    config = config_lib.read_flag(flag_values)
    run_log.check_wandb(config.log.wandb)
    _set_up_jax(config)
    check_xla_flags()
    cluster.join(flag_values, config.train.platform)
    check_platforms()
    return processes.run(lambda: loop.run(config))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


def _set_up_jax(config) -> None:
  """Applies the settings that JAX needs before the first array."""
  import jax

  if config.train.platform == 'cpu':
    jax.config.update('jax_platforms', 'cpu')
  if config.train.dtype == 'float64':
    jax.config.update('jax_enable_x64', True)
  cache = config.log.compilation_cache
  if cache is None and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    cache = str(pathlib.Path(home) / 'sage_optax' / 'jax')
  if cache:
    jax.config.update('jax_compilation_cache_dir', cache)


def check_xla_flags() -> None:
  """Raises UserError if XLA does not accept XLA_FLAGS.

  XLA aborts the process at an unknown flag, so another process tries the flags
  first.
  """
  if flags := os.environ.get('XLA_FLAGS'):
    _check_xla_flags(flags)


@functools.cache
def _check_xla_flags(flags: str) -> None:
  from train import errors

  code = 'from jaxlib import xla_client; xla_client.make_cpu_client()'
  tried = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    errors='replace',
  )
  if tried.returncode:
    # For example 'F1124 21:51:00.804531 30388 x.cc:234] Unknown flag ...'.
    lines = [
      line.partition('] ')[2]
      for line in tried.stderr.splitlines()
      if line[:1] in ('E', 'F') and '] ' in line
    ]
    reason = next(iter(lines), 'XLA rejects it')
    raise errors.UserError(
      f'XLA_FLAGS is {flags!r}: {reason}; correct or unset it'
    )


def check_platforms() -> None:
  """Raises UserError if JAX has no device of the requested platform."""
  import jax

  from train import errors

  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    asked = os.environ.get('JAX_PLATFORMS', '')
    reason = (str(error).splitlines() or ['no such device'])[0]
    reason = reason.partition(' (set JAX_PLATFORMS')[0].rstrip('.')
    raise errors.UserError(
      f'JAX_PLATFORMS is {asked!r}: {reason}; correct or unset it'
    ) from error


if __name__ == '__main__':
  sys.exit(main())
