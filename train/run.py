"""A run: its configuration, program and data."""

import dataclasses
import importlib.metadata
import pathlib
from typing import Any

import jax

from train import config as config_lib
from train import program as program_lib
from train.config import Config
from train.inputs import Inputs
from train.program import Program


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run that are fixed before the first step.

  Attributes:
    config: The configuration, checked and completed.
    program: The functions that run on the devices.
    inputs: The opened data.
  """

  config: Config
  program: Program
  inputs: Inputs

  @property
  def workdir(self) -> pathlib.Path:
    return pathlib.Path(self.config.workdir)

  @property
  def windows(self) -> int:
    """The total number of sequences in all steps."""
    return self.config.train.steps * self.config.train.batch_size

  @property
  def tokens(self) -> int:
    """The total number of training tokens."""
    return self.windows * self.config.train.seq_len

  @property
  def order(self) -> dict[str, int]:
    """The arguments that determine the order of the data."""
    return {
      'seq_len': self.config.train.seq_len,
      'batch_size': self.config.train.batch_size,
      'seed': self.config.data.seed,
    }

  @property
  def identity(self) -> dict[str, Any]:
    """What identifies the run; checkpoints of other runs are rejected."""
    description = program_lib.describe(self.config, self.program)
    return description | self.inputs.hashes

  @property
  def rounding(self) -> dict[str, Any]:
    """Settings and versions that may affect rounding."""
    mesh = self.program.mesh
    return {
      'mesh': dict(mesh.shape),
      'processes': jax.process_count(),
      'device': mesh.devices.flat[0].device_kind,
      **config_lib.select(self.config, 'rounding'),
      **{
        name: importlib.metadata.version(name)
        for name in ('jax', 'jaxlib', 'grain')
      },
    }
