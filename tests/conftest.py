"""Settings that must be made before JAX starts."""

import ctypes
import gc
import importlib.util
import os
import pathlib
import signal

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = ' '.join(
  (
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    # Most of the tests' time is compilation of programs that run once.
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    # In half the time, where there is a choice.
    '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters',
  )
)

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

_CACHE = pathlib.Path(__file__).parent.parent / '.cache' / 'jax'

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(_CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


# A shell starts `make test &` of a script with SIGINT ignored, which children
# would inherit: those that are sent one would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(items):
  for item in items:
    marker = item.get_closest_marker('nightly_except')
    if marker and not item.name.endswith(tuple(f'_{a}' for a in marker.args)):
      item.add_marker(pytest.mark.nightly)


@pytest.fixture(scope='module', autouse=True)
def _free_programs():
  """Frees a module's compiled programs: a worker would keep all of them."""
  yield
  jax.config.update('jax_enable_x64', False)  # A run in float64 sets it.
  jax.clear_caches()
  gc.collect()
  # glibc keeps what is freed: two thirds of a worker's memory.
  if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):
    trim(0)


@pytest.fixture
def uncached():
  """What was compiled for devices that are not there cannot be read back."""
  before = jax.config.jax_enable_compilation_cache
  _use_cache(False)
  yield
  _use_cache(before)


@pytest.fixture
def libtpu():
  """Skips a test where programs for TPUs cannot be compiled."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('needs the extra tpu-plan')


def _use_cache(value):
  jax.config.update('jax_enable_compilation_cache', value)
  compilation_cache.reset_cache()  # Or JAX does not look again.
