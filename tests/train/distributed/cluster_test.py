"""Several processes are found where there are several, and only there."""

import importlib.util
import socket
import subprocess
import sys

import jax
import pytest
from absl import flags

from tests.support import runs
from train import errors
from train.distributed import cluster

_STEP = {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'n[1-2]'}


@pytest.mark.parametrize(
  ('environment', 'found'),
  [
    ({}, None),
    # srun with 8 tasks; with one; python in a batch script of 8 tasks.
    (_STEP | {'SLURM_STEP_NUM_TASKS': '8', 'SLURM_NTASKS': '8'}, 'Slurm'),
    (_STEP | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '1'}, None),
    ({'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '0'}, None),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1'}, 'GKE'),
    ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, 'GKE'),
    ({'TPU_WORKER_HOSTNAMES': 'a'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'}, None),
    # A pod of a cluster, maybe one of many runs.
    (
      {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'},
      None,
    ),
  ],
)
def test_environments(tmp_path, environment, found):
  assert cluster.detect(environment, tmp_path) == found


@pytest.mark.parametrize('device', ['accel0', 'vfio/0', 'vfio/vfio', 'null'])
@pytest.mark.parametrize('library', [True, False])
def test_tpu_vm(tmp_path, monkeypatch, device, library):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: library or None)
  (tmp_path / device).parent.mkdir(exist_ok=True)
  (tmp_path / device).touch()
  chips = device in ('accel0', 'vfio/0')
  wanted = 'Cloud TPU' if chips and library else None
  assert cluster.detect({}, tmp_path) == wanted
  assert cluster.detect({'TPU_SKIP_MDS_QUERY': '1'}, tmp_path) is None
  assert cluster.detect({'JAX_PLATFORMS': 'cpu'}, tmp_path) is None


def _join(monkeypatch, *args, environment=None, platform='auto', error=None):
  """The arguments that JAX is initialized with, or None."""
  calls = []

  def initialize(
    *, heartbeat_timeout_seconds, initialization_timeout, **kwargs
  ):
    # JAX's own timeout aborts the process: it must not come first.
    assert initialization_timeout > cluster.JOIN_SECONDS
    assert 0 < heartbeat_timeout_seconds < 60
    calls.append(kwargs)
    if error:
      raise error

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setattr(cluster.os, 'environ', environment or {})
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  flag_values = flags.FlagValues()
  cluster.define_flags(flag_values)
  flag_values(['main', *args])
  cluster.join(flag_values, platform)
  return calls[0] if calls else None


_ALL = ('--coordinator=h:1', '--num_processes=2', '--process_id=1')
_ARGUMENTS = {
  'coordinator_address': 'h:1',
  'num_processes': 2,
  'process_id': 1,
  'cluster_detection_method': 'deactivate',
}
_SLURM = {'SLURM_STEP_NUM_TASKS': '2'}
_TPU = {'TPU_WORKER_HOSTNAMES': 'a,b'}


def test_joins_what_is_given_or_found(monkeypatch):
  assert _join(monkeypatch) is None
  assert _join(monkeypatch, *_ALL) == _ARGUMENTS
  assert _join(monkeypatch, *_ALL, environment=_SLURM) == _ARGUMENTS
  assert _join(monkeypatch, environment=_SLURM) == {}
  assert _join(monkeypatch, '--distributed') == {}
  assert _join(monkeypatch, '--nodistributed', environment=_SLURM) is None
  # The address of the environment, which JAX reads.
  address = {'JAX_COORDINATOR_ADDRESS': 'h:1'}
  wanted = {k: v for k, v in _ARGUMENTS.items() if k != 'coordinator_address'}
  assert _join(monkeypatch, *_ALL[1:], environment=address) == wanted
  assert _join(monkeypatch, environment=_TPU) == {}
  assert _join(monkeypatch, environment=_TPU, platform='cpu') is None


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('--coordinator=host',), "is 'host': give HOST:PORT"),
    (('--coordinator=host:0',), 'PORT of 1 to 65535'),
    (('--coordinator=host:65536',), 'PORT of 1 to 65535'),
    (('--coordinator=:80',), "is ':80': give HOST:PORT"),
    (('--num_processes=0',), 'give at least 1'),
    (('--num_processes=2', '--process_id=2'), '--num_processes - 1'),
    (('--process_id=-1',), '--process_id is -1'),
    (('--nodistributed', '--process_id=1'), 'either --nodistributed'),
  ],
)
def test_flags_that_cannot_be(monkeypatch, args, message):
  with pytest.raises(errors.UserError, match=message):
    _join(monkeypatch, *args)


_START = """
import sys
from train import main
from train.distributed import cluster
cluster.REACH_SECONDS = 1
main.main(['main', *sys.argv[1:]])
"""


def test_coordinator_that_does_not_answer(tmp_path):
  address = f'127.0.0.1:{runs.free_port()}'
  addresses = [address, 'host.invalid:80']
  command = [sys.executable, '-c', _START, '--num_processes=2']
  command += ['--process_id=1', *runs.command(tmp_path, tmp_path / 'run')]
  started = [
    subprocess.Popen(
      [*command, f'--coordinator={address}'],
      cwd=runs.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for address in addresses
  ]
  statuses, outs, errs = runs.ends(started)
  assert (statuses, outs) == ([2, 2], ['', ''])
  for address, text in zip(addresses, errs, strict=True):
    assert text.startswith(
      f'error: cannot join the other processes (nothing answers at {address}, '
    )
    assert text.count('\n') == 1
  assert cluster.REACH_SECONDS < 60
  assert not (tmp_path / 'run').exists()


def test_port_that_is_taken(monkeypatch):
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    args = (f'--coordinator=h:{port}', '--num_processes=2', '--process_id=0')
    with pytest.raises(errors.UserError, match=f'cannot listen at port {port}'):
      _join(monkeypatch, *args)
  assert _join(monkeypatch, *args)


def test_address_of_the_environment_that_cannot_be(monkeypatch):
  environment = {'JAX_COORDINATOR_ADDRESS': 'h:x'}
  with pytest.raises(errors.UserError, match="is 'h:x': give HOST:PORT"):
    _join(monkeypatch, *_ALL[1:], environment=environment)


def test_those_that_cannot_be_joined(monkeypatch):
  error = ValueError('coordinator_address should\nbe defined.')
  with pytest.raises(errors.UserError, match='Slurm: ') as info:
    _join(monkeypatch, environment=_SLURM, error=error)
  assert 'address should be defined' in str(info.value)
  assert '--nodistributed' in str(info.value)
  assert '\n' not in str(info.value)
