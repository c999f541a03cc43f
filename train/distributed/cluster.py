"""Whether this process is one of several, and how they find each other."""

import importlib.util
import os
import pathlib
from collections.abc import Mapping

from absl import flags

from train.errors import UserError

_ADVICE = (
  'give --coordinator=HOST:PORT --num_processes=N --process_id=I to each, or '
  '--nodistributed to run this one alone'
)


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags that say which processes there are."""
  flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT at which process 0 listens, the same for every process; PORT '
    'may be any free one.',
    flag_values=flag_values,
  )
  flags.DEFINE_integer(
    'num_processes', None, 'How many there are.', flag_values=flag_values
  )
  flags.DEFINE_integer(
    'process_id', None, 'Which this is, from 0.', flag_values=flag_values
  )
  flags.DEFINE_bool(
    'distributed',
    None,
    'Whether to join other processes. By default that is found out.',
    flag_values=flag_values,
  )


def detect(
  environment: Mapping[str, str], devices: pathlib.Path = pathlib.Path('/dev')
) -> str | None:
  """What started several processes, if anything did.

  A Slurm allocation or a cluster's pod alone does not count: plain `python`
  in one of them must not wait for others.

  Args:
    environment: The environment variables.
    devices: Where a TPU VM has its chips.

  Returns:
    A name for people, or None.
  """

  def number(name: str) -> int:
    text = environment.get(name, '')
    return int(text) if text.isdigit() else 0

  # Set by srun for a step; SLURM_NTASKS also stands in a batch script.
  if number('SLURM_STEP_NUM_TASKS') > 1:
    return 'Slurm'
  if number('OMPI_COMM_WORLD_SIZE') > 1:
    return 'Open MPI'
  if environment.get('JAX_PLATFORMS', '') in ('', 'tpu', 'tpu,cpu'):
    workers = environment.get('TPU_PROCESS_ADDRESSES') or environment.get(
      'TPU_WORKER_HOSTNAMES', ''
    )
    if ',' in workers or number('MEGASCALE_NUM_SLICES') > 1:
      return 'GKE'
    # There the metadata server knows. One that is not to be asked is no
    # worker of a slice, nor is one with the list of workers above.
    if (
      not workers
      and 'TPU_SKIP_MDS_QUERY' not in environment
      and importlib.util.find_spec('libtpu')
      and (any(devices.glob('accel*')) or any(devices.glob('vfio/[0-9]*')))
    ):
      return 'Cloud TPU'
  return None


def join(flag_values: flags.FlagValues, platform: str) -> None:
  """Calls `jax.distributed.initialize` if there are other processes.

  Args:
    flag_values: As of `define_flags`, parsed.
    platform: Of the configuration.

  Raises:
    UserError: If the flags are wrong, or the others do not come.
  """
  given = {
    'coordinator_address': flag_values['coordinator'].value,
    'num_processes': flag_values['num_processes'].value,
    'process_id': flag_values['process_id'].value,
  }
  given = {name: value for name, value in given.items() if value is not None}
  _check(given, flag_values['distributed'].value)
  environment = dict(os.environ)
  if platform == 'cpu':
    environment['JAX_PLATFORMS'] = 'cpu'
  wanted = flag_values['distributed'].value
  found = None if given else detect(environment)
  if wanted is False or not (wanted or given or found):
    return
  import jax

  # It would take SIGTERM, which the run itself listens to.
  jax.config.update('jax_enable_preemption_service', False)
  arguments: dict = dict(given)
  # JAX reads this variable itself, if the flag is not there.
  address = given.get('coordinator_address') or os.environ.get(
    'JAX_COORDINATOR_ADDRESS'
  )
  if address and {'num_processes', 'process_id'} <= set(given):
    arguments['cluster_detection_method'] = 'deactivate'
  try:
    jax.distributed.initialize(**arguments)
  except Exception as error:  # A library's, the network's or JAX's own.
    text = ' '.join(str(error).split())[:300]
    where = f' of {found}' if found else ''
    raise UserError(
      f'cannot join the other processes{where} ({text}): {_ADVICE}'
    ) from error


def _check(given: Mapping[str, object], wanted: bool | None) -> None:
  """Raises UserError if the flags contradict each other."""
  if given and wanted is False:
    raise UserError('--nodistributed and the flags of processes: leave one out')
  address = str(given.get('coordinator_address', 'host:1'))
  host, _, port = address.rpartition(':')
  if not (host and port.isdigit()):
    raise UserError(f'--coordinator is {address!r}: give HOST:PORT')
  count, index = given.get('num_processes'), given.get('process_id')
  if isinstance(count, int) and count < 1:
    raise UserError(f'--num_processes is {count}: give at least 1')
  if isinstance(index, int) and not 0 <= index < (
    count if isinstance(count, int) else index + 1
  ):
    raise UserError(
      f'--process_id is {index}: give 0 to --num_processes - 1, another to '
      'each process'
    )
