"""Whether this process is one of several, and how they find each other."""

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

HEARTBEAT_SECONDS = 30  # A process without one for so long counts as dead.
REACH_SECONDS = 40  # For process 0 to answer.
JOIN_SECONDS = 300  # For all processes to start.
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
  in one of them must not wait for others. A TPU VM has its chips in `devices`.
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
    UserError: If the flags are wrong, or the others cannot be joined.
  """
  given: dict[str, Any] = {
    'coordinator_address': flag_values['coordinator'].value,
    'num_processes': flag_values['num_processes'].value,
    'process_id': flag_values['process_id'].value,
  }
  given = {name: value for name, value in given.items() if value is not None}
  wanted = flag_values['distributed'].value
  _check(given, wanted)
  environment = dict(os.environ)
  if platform == 'cpu':
    environment['JAX_PLATFORMS'] = 'cpu'
  found = None if given else detect(environment)
  if wanted is False or not (wanted or given or found):
    return
  import jax

  # JAX reads this variable itself, if the flag is not there.
  address = given.get('coordinator_address') or os.environ.get(
    'JAX_COORDINATOR_ADDRESS'
  )
  if address and {'num_processes', 'process_id'} <= set(given):
    given['cluster_detection_method'] = 'deactivate'
    port = _port(address)
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
  except Exception as error:  # A library's, the network's or JAX's own.
    text = ' '.join(str(error).split())[:300]
    where = f' of {found}' if found else ''
    raise UserError(
      f'cannot join the other processes{where} ({text}): {_ADVICE}'
    ) from error
  finally:
    joined.set()


def _give_up(joined: threading.Event, address: str | None) -> None:
  """Ends the process with a line, where JAX would abort with a stack."""
  reason = 'they did not all start'
  waited = joined.wait(REACH_SECONDS)
  if address and not waited and not _answers(address):
    reason = f'nothing answers at {address}, where process 0 should be'
  elif waited or joined.wait(JOIN_SECONDS - REACH_SECONDS):
    return
  print(
    f'error: cannot join the other processes ({reason}): {_ADVICE}',
    file=sys.stderr,
    flush=True,
  )
  os._exit(2)


def _port(address: str) -> int:
  """The port of an address; raises UserError if that is none."""
  host, _, port = address.rpartition(':')
  if not (host and port.isdecimal() and 0 < int(port) < 65536):
    raise UserError(
      f'the coordinator is {address[:99]!r}: give HOST:PORT, with a PORT of 1 '
      'to 65535'
    )
  return int(port)


def _check_port(port: int) -> None:
  """Raises UserError if process 0 cannot listen; JAX would crash."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(('', port), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    raise UserError(
      f'process 0 cannot listen at port {port} ({error.strerror}): give '
      '--coordinator another PORT, the same in all processes'
    ) from error


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), 5).close()
  except (OSError, ValueError):
    return False
  return True


def _check(given: dict[str, Any], wanted: bool | None) -> None:
  """Raises UserError if the flags contradict each other."""
  if given and wanted is False:
    raise UserError('--nodistributed and the flags of processes: leave one out')
  if 'coordinator_address' in given:
    _port(given['coordinator_address'])
  count, index = given.get('num_processes', 1), given.get('process_id', 0)
  if count < 1:
    raise UserError(f'--num_processes is {count}: give at least 1')
  if index < 0 or ('num_processes' in given and index >= count):
    raise UserError(
      f'--process_id is {index}: give 0 to --num_processes - 1, another to '
      'each process'
    )
