"""Declares, reads, checks and completes configurations.

A configuration file is Python with a function `get_config() -> Config`. Every
field can be overridden with `--config.section.field=value`; 'none' gives None
where the field accepts it. schema.py and optimizer_schema.py declare the
fields.
"""

from train.config.fields import select, settings
from train.config.flags import define_flag, load, parse_flags, read_flag
from train.config.optimizer_schema import OptimizerConfig, RoleConfig
from train.config.resolve import (
  complete,
  learning_rate,
  mesh_shape,
  model_config,
)
from train.config.schema import (
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  InitConfig,
  LogConfig,
  MeshConfig,
  ModelConfig,
  ScheduleConfig,
  TrainConfig,
)
from train.config.validate import check_mesh, validate

__all__ = [
  'CheckpointConfig',
  'Config',
  'DataConfig',
  'EvalConfig',
  'InitConfig',
  'LogConfig',
  'MeshConfig',
  'ModelConfig',
  'OptimizerConfig',
  'RoleConfig',
  'ScheduleConfig',
  'TrainConfig',
  'check_mesh',
  'complete',
  'define_flag',
  'learning_rate',
  'load',
  'mesh_shape',
  'model_config',
  'parse_flags',
  'read_flag',
  'select',
  'settings',
  'validate',
]
