"""Detects whether this process is one of several, and joins them."""

import importlib.util
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

from absl import flags

from train.errors import UserError

HEARTBEAT_SECONDS = 30  # A process without a heartbeat for this long is dead.
REACH_SECONDS = 40  # Timeout for process 0 to answer.
JOIN_SECONDS = 300  # Timeout for all processes to start.
# Arguments of `jax.distributed.initialize`, and the flags that set them.
_FLAGS = {
  'coordinator_address': 'coordinator',
  'num_processes': 'num_processes',
  'process_id': 'process_id',
}


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags that describe the processes."""
  flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT where process 0 listens, the same in every process; PORT may be '
    'any free port.',
    flag_values,
  )
  flags.DEFINE_integer(
    'num_processes', None, 'Number of processes.', flag_values=flag_values
  )
  flags.DEFINE_integer(
    'process_id', None, 'Index of this process.', flag_values=flag_values
  )
  flags.DEFINE_bool(
    'distributed',
    None,
    'Whether to join other processes; by default, this is detected.',
    flag_values,
  )


def detect(
  environment: Mapping[str, str], devices: pathlib.Path = pathlib.Path('/dev')
) -> str | None:
  """Returns the launcher that started several processes, or None.

  A Slurm allocation or a pod of a cluster is not enough: plain `python` there
  must not wait for other processes.

  Args:
    environment: The environment variables.
    devices: Directory of a TPU VM's chips.
  """

  def number(name: str) -> int:
    text = environment.get(name, '')
    return int(text) if text.isdigit() else 0

  # Set by srun for a step; SLURM_NTASKS is also set in a batch script.
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
    # The metadata server of a TPU VM lists the workers of its slice. A VM that
    # has the list above, or that must not query the server, is not one of them.
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
    flag_values: The flags of `define_flags`, parsed.
    platform: The platform of the configuration.

  Raises:
    UserError: If the flags are wrong, or the others cannot be joined.
  """
  given: dict[str, Any] = {
    name: flag_values[flag].value
    for name, flag in _FLAGS.items()
    if flag_values[flag].value is not None
  }
  wanted = flag_values['distributed'].value
  _check(given, wanted)
  environment = dict(os.environ)
  if platform == 'cpu':
    environment['JAX_PLATFORMS'] = 'cpu'
  found = None if given else detect(environment)
  if wanted is False or not (wanted or given or found):
    return
  import jax

  # JAX reads this variable if the flag is not given.
  address = given.get('coordinator_address') or os.environ.get(
    'JAX_COORDINATOR_ADDRESS'
  )
  if address and {'num_processes', 'process_id'} <= set(given):
    given['cluster_detection_method'] = 'deactivate'
    _, port = _parse(address)
    if given['process_id'] == 0:
      _check_port(port)
  joined = threading.Event()
  threading.Thread(target=_give_up, args=(joined, address), daemon=True).start()
  try:
    jax.distributed.initialize(
      **given,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      initialization_timeout=JOIN_SECONDS + 60,
    )
  except Exception as error:  # From a library, the network or JAX.
    text = ' '.join(str(error).split())[:300]
    raise _cannot_join(f'{found}: {text}' if found else text) from error
  finally:
    joined.set()


def _give_up(joined: threading.Event, address: str | None) -> None:
  """Ends the process with one line, where JAX would print a stack trace."""
  if joined.wait(REACH_SECONDS):
    return
  reason = 'they did not all start'
  if address and not _answers(address):
    reason = f'nothing answers at {address}, where process 0 should be'
  elif joined.wait(JOIN_SECONDS - REACH_SECONDS):
    return
  print(f'error: {_cannot_join(reason)}', file=sys.stderr, flush=True)
  os._exit(2)


def _cannot_join(reason: str) -> UserError:
  return UserError(
    f'cannot join the other processes ({reason}): give --coordinator=HOST:PORT '
    '--num_processes=N --process_id=I to each, or --nodistributed to run this '
    'process alone'
  )


def _answers(address: str) -> bool:
  try:
    socket.create_connection(_parse(address), 5).close()
  except (OSError, UserError):
    return False
  return True


def _parse(address: str) -> tuple[str, int]:
  """Returns host and port; raises UserError if there are none."""
  host, _, port = address.rpartition(':')
  if not (host and port.isdecimal() and 0 < int(port) < 65536):
    raise UserError(
      f'the coordinator is {address[:99]!r}: give HOST:PORT, with a PORT of 1 '
      'to 65535'
    )
  return host.strip('[]'), int(port)


def _check_port(port: int) -> None:
  """Raises UserError if process 0 cannot listen, where JAX would crash."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(('', port), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    raise UserError(
      f'process 0 cannot listen at port {port} ({error.strerror}): give '
      '--coordinator another PORT, the same in all processes'
    ) from error


def _check(given: dict[str, Any], wanted: bool | None) -> None:
  """Raises UserError if the flags contradict each other."""
  if given and wanted is False:
    raise UserError(
      'give either --nodistributed or --coordinator, --num_processes and '
      '--process_id'
    )
  if 'coordinator_address' in given:
    _parse(given['coordinator_address'])
  count, index = given.get('num_processes', 1), given.get('process_id', 0)
  if count < 1:
    raise UserError(f'--num_processes is {count}: give at least 1')
  if index < 0 or ('num_processes' in given and index >= count):
    raise UserError(
      f'--process_id is {index}: give each process its own number from 0 to '
      '--num_processes - 1'
    )
