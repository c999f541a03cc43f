"""The hardware to plan for: names, published figures, JAX devices."""

import dataclasses
import importlib.util
import math
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies

from train.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of a device.

  Attributes:
    platform: 'tpu', 'gpu' or 'cpu'.
    memory: Bytes of main memory; None for CPUs.
    flops: Dense bfloat16 operations per second.
    hbm: Bytes per second of main memory.
    link: Bytes per second sent to other chips, all links together, one way.
    axes: Axes of a topology, 0 for a plain number of devices.
    cores: JAX devices per chip; they share all of the above.
  """

  platform: str
  memory: float | None = None
  flops: float | None = None
  hbm: float | None = None
  link: float | None = None
  axes: int = 0
  cores: int = 1


# TPUs: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x, where the
# interconnect is given for both ways together (v4: six links of 50 GB/s). H100:
# NVIDIA's data sheet of the SXM form, NVLink's 900 GB/s for both ways, and the
# memory that one says it has.
CHIPS = {
  'v4': Chip('tpu', 32 * GIB, 275e12, 1228e9, 300e9, 3),
  'v5e': Chip('tpu', 16 * GIB, 197e12, 819e9, 200e9, 2),
  'v5p': Chip('tpu', 95 * GIB, 459e12, 2765e9, 600e9, 3),
  'v6e': Chip('tpu', 32 * GIB, 918e12, 1638e9, 400e9, 2),
  'tpu7x': Chip('tpu', 192 * GIB, 2307e12, 7380e9, 600e9, 3, cores=2),
  'h100': Chip('gpu', 84929347584, 989e12, 3350e9, 450e9),
  'cpu': Chip('cpu'),
}

_EXAMPLES = 'v5e:4x4, v5p:2x2x4, tpu7x:2x2x1, h100:8, cpu:8'


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to plan for.

  Attributes:
    name: As given, such as 'v5e:4x4'.
    kind: Key of CHIPS.
    shape: Chips along each axis.
  """

  name: str
  kind: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    """The figures of one chip."""
    return CHIPS[self.kind]

  @property
  def device(self) -> Chip:
    """The figures of one JAX device: a chip, or its share of one."""
    chip = self.chip
    figures = {
      name: getattr(chip, name) and getattr(chip, name) / chip.cores
      for name in ('memory', 'flops', 'hbm', 'link')
    }
    return dataclasses.replace(chip, **figures)

  @property
  def num_devices(self) -> int:
    return math.prod(self.shape) * self.chip.cores

  def twice(self) -> 'Target':
    """The same chips, twice as many: the shortest axis doubled."""
    # Axes in a TPU's name ascend, except for trailing ones of flat shapes.
    shape = list(self.shape)
    axis = shape.index(min(shape)) if self.kind not in ('h100', 'cpu') else 0
    shape[axis] *= 2
    shape.sort()
    return parse(f'{self.kind}:{"x".join(map(str, shape))}')


def parse(name: str) -> Target:
  """Returns the target with a name such as 'v5e:4x4' or 'cpu:8'.

  Raises:
    UserError: if the name is unknown.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  if not match or match[1] not in CHIPS:
    raise UserError(
      f'unknown topology {name!r}: give a kind ({", ".join(CHIPS)}) and its '
      f'chips, such as {_EXAMPLES}'
    )
  target = Target(name, match[1], tuple(map(int, match[2].split('x'))))
  axes = target.chip.axes or 1
  if len(target.shape) != axes or min(target.shape) < 1:
    raise UserError(
      f'topology {name!r}: chips of {target.kind} are laid out along {axes} '
      f'{"axes" if axes > 1 else "axis"}; names that work: {_EXAMPLES}'
    )
  return target


def environment(target: Target) -> dict[str, str]:
  """Returns the environment variables to set before JAX starts."""
  # The default backend is the CPU, since nothing runs. Programs compiled for
  # other devices can be cached, but cannot be read back.
  result = {'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  if target.kind == 'cpu':
    flag = '--xla_force_host_platform_device_count'
    result['XLA_FLAGS'] = f'{flag}={target.num_devices}'
  elif target.chip.platform == 'tpu':
    # libtpu asks a metadata server about the machine, and locks a file.
    result |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  else:
    # Autotuning would need to run the program.
    result['XLA_FLAGS'] = '--xla_gpu_autotune_level=0'
  return result


def check_installed(target: Target) -> None:
  """Raises UserError if the compiler for a target is not installed."""
  module, extra = {
    'tpu': ('libtpu', 'tpu-plan'),
    'gpu': ('jax_cuda13_plugin', 'gpu-plan'),
    'cpu': ('jaxlib', 'train'),
  }[target.chip.platform]
  if importlib.util.find_spec(module) is None:
    raise UserError(
      f'{target.name} needs {module}, which is not installed: pip install -e '
      f"'.[train,{extra}]'"
    )


def devices(target: Target) -> list[Any]:
  """Returns abstract devices to compile for; no hardware is needed.

  Raises:
    UserError: if the compiler does not know the topology or is not installed.
  """
  check_installed(target)
  if target.kind == 'cpu':
    return jax.devices('cpu')
  shape = 'x'.join(map(str, target.shape))
  options: dict[str, Any]
  if target.chip.platform == 'gpu':
    config = pathlib.Path(__file__).with_name(f'{target.kind}.textproto')
    options = {
      'platform': 'cuda',
      'topology_name': target.kind,
      'target_config': config.read_text(),
      'topology': f'1x1x{shape}',
    }
  else:
    options = {'platform': 'tpu', 'topology_name': target.name}
    if target.kind == 'v4':
      options['chip_config_name'] = 'megacore'  # A chip is one device.
    if math.prod(target.shape) == 1:
      options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    found = topologies.get_topology_desc(**options).devices
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    text = ' '.join(str(error).split())
    raise UserError(
      f'no topology {target.name!r} ({text}): names that work: {_EXAMPLES}'
    ) from error
  return list(found)
