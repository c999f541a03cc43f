"""The compiled parts of a run, and the description that identifies it."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import sage_optax
from models import attention, llama
from train import config as config_lib
from train import mesh as mesh_lib
from train import optimizer as optimizer_lib
from train import state as state_lib
from train import step as step_lib
from train.config import Config, model_config
from train.errors import UserError

# Memory limits of a container; without a limit, larger than the memory.
_CGROUP_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


@dataclasses.dataclass(frozen=True)
class Program:
  """What runs on the devices.

  Attributes:
    mesh: The devices.
    model: The model's configuration.
    optimizer: The transformation, its schedule and roles.
    explanation: What the optimizer does to each parameter.
    abstract: The state's shapes, types and shardings.
    train_step: Jitted (state, tokens) -> (state, metrics); state is donated.
    eval_step: Jitted (params, tokens, weights) -> losses.
    logits: (params, tokens) -> logits, not jitted.
  """

  mesh: Mesh
  model: llama.LlamaConfig
  optimizer: optimizer_lib.Optimizer
  explanation: sage_optax.Explanation
  abstract: state_lib.TrainState
  train_step: Any
  eval_step: Any
  logits: Any

  @property
  def shardings(self) -> state_lib.TrainState:
    return jax.tree.map(lambda x: x.sharding, self.abstract)

  def init(self, seed: int) -> state_lib.TrainState:
    """Creates the sharded state before the first step."""
    return state_lib.init_state(
      seed, self.model, self.optimizer.tx, self.shardings
    )

  def init_from(self, readers: Any) -> state_lib.TrainState:
    """Creates the state before the first step from given parameters.

    Args:
      readers: A tree like the parameters, of functions that return NumPy
        arrays; the host holds one array at a time.
    """

    def place(read, sharding):
      array = read()
      return jax.make_array_from_callback(
        array.shape, sharding, lambda index: array[index]
      )

    params = jax.tree.map(place, readers, self.shardings.params)
    return state_lib.state_of(params, self.optimizer.tx, self.shardings)

  def lower_train_step(self, batch_size: int, seq_len: int) -> Any:
    """Lowers the step for batches of this shape."""
    batch = jax.ShapeDtypeStruct(
      (batch_size, seq_len + 1),
      jnp.int32,
      sharding=mesh_lib.batch_sharding(self.mesh),
    )
    return self.train_step.lower(self.abstract, batch)

  def compile_train_step(self, batch_size: int, seq_len: int) -> Any:
    """Compiles the step for batches of this shape."""
    return self.lower_train_step(batch_size, seq_len).compile()


def build(
  config: Config,
  devices: Sequence[jax.Device] | None = None,
  platform: str | None = None,
) -> Program:
  """Builds the program of a run; nothing is allocated or compiled yet.

  Args:
    config: The configuration.
    devices: Devices of the mesh, which may be abstract; None: all devices.
    platform: Platform of `devices`: 'cpu', 'gpu' or 'tpu'; None: detect it.

  Returns:
    The program.

  Raises:
    UserError: If the configuration does not fit the devices or the optimizer.
  """
  if platform is None:
    platform = mesh_lib.resolve_platform(config.train.platform)
  mesh = mesh_lib.make_mesh(
    config, jax.devices() if devices is None else devices
  )
  model = model_config(config, platform)
  if model.attention == 'splash':
    attend = mesh_lib.attend_per_shard(mesh, attention.splash)
    model = dataclasses.replace(model, attention=attend)
  if model.attention == 'cudnn' and model.kv_heads % mesh.shape['tensor']:
    raise UserError(
      f"config.model.attention='cudnn' needs the mesh to divide the "
      f'{model.kv_heads} key heads, and config.mesh.tensor is '
      f'{mesh.shape["tensor"]}: set attention to auto'
    )
  params = state_lib.abstract_params(model)
  axes = llama.logical_axes(model)
  optimizer = optimizer_lib.make(config, params, axes)
  specs, _ = mesh_lib.param_specs(
    axes,
    params,
    mesh,
    strict=config.mesh.strict,
    units=mesh_lib.axis_units(model),
  )
  # Newton-Schulz and similar work runs on whole matrices, layer by layer.
  optimizer = dataclasses.replace(
    optimizer, tx=sage_optax.sharding.with_mesh(optimizer.tx, mesh, specs)
  )
  shardings = state_lib.state_shardings(optimizer.tx, params, specs, mesh)
  constrain = mesh_lib.constrain(mesh)
  rows = config.train.microbatch or config.train.batch_size
  train_step = step_lib.make_train_step(
    model,
    optimizer,
    microbatches=config.train.batch_size // rows,
    constrain=constrain,
    param_shardings=shardings.params,
    log_embedding=config.log.embedding,
  )
  eval_step = step_lib.make_eval_step(model, constrain)

  def logits(params, tokens):
    return llama.apply(params, tokens, model, constrain=constrain)

  return Program(
    mesh=mesh,
    model=model,
    optimizer=optimizer,
    explanation=explain(optimizer, params, mesh_lib.wanted_specs(axes), specs),
    abstract=jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      state_lib.abstract_state(model, optimizer.tx),
      shardings,
    ),
    train_step=step_lib.jit_train_step(train_step, shardings, mesh),
    eval_step=step_lib.jit_eval_step(eval_step, shardings, mesh),
    logits=logits,
  )


def explain(
  optimizer: optimizer_lib.Optimizer, params: Any, wanted: Any, specs: Any
) -> sage_optax.Explanation:
  """Explains what the optimizer does to each parameter, and what is replicated.

  Args:
    optimizer: The optimizer.
    params: Shapes of the parameters.
    wanted: PartitionSpecs for a mesh that divides all axes.
    specs: The PartitionSpecs in use.

  Returns:
    The explanation; its rows list the axes in which these specs differ.
  """
  explanation = sage_optax.explain(
    optimizer.recipe, params, **optimizer.options
  )
  rows = [
    dataclasses.replace(
      row,
      replicated=tuple(
        i for i, pair in enumerate(zip(w, s, strict=True)) if pair[0] != pair[1]
      ),
    )
    for row, w, s in zip(
      explanation.rows,
      jax.tree.leaves(wanted),
      jax.tree.leaves(specs),
      strict=True,
    )
  ]
  return dataclasses.replace(explanation, rows=rows)


def describe(config: Config, program: Program) -> dict[str, Any]:
  """Returns the identity of the run; checkpoints of other runs are rejected."""
  description = config_lib.select(config, 'value')
  description['train.dtype'] = program.model.compute_dtype
  description['optimizer.learning_rate'] = config_lib.learning_rate(config)
  for name, value in optimizer_lib.recipe_options(config).items():
    description[f'optimizer.{name}'] = value
  return description | optimizer_lib.resolved_parts(config)


def sharded_bytes(tree: Any) -> int:
  """Returns the bytes of abstract arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def batch_bytes(config: Config, program: Program) -> int:
  """Returns the bytes of a batch of tokens on one device."""
  shape = (config.train.batch_size, config.train.seq_len + 1)
  return 4 * math.prod(mesh_lib.batch_sharding(program.mesh).shard_shape(shape))


def check_memory(config: Config, program: Program) -> None:
  """Raises UserError if the state and a batch cannot fit the devices.

  A step needs more memory than that, so this rejects only clear cases, before
  anything is allocated.

  Args:
    config: The configuration.
    program: A program for devices of this machine.
  """
  state = sharded_bytes(program.abstract)
  batch = batch_bytes(config, program)
  device = program.mesh.local_devices[0]
  there = (device.memory_stats() or {}).get('bytes_limit')
  sharing = 1
  if there is None:  # Devices on CPU share the machine's memory.
    there, sharing = _host_bytes(), len(program.mesh.local_devices)
  if (state + batch) * sharing > there:
    gib = [f'{x / 2**30:,.1f} GiB' for x in (state, batch, there / sharing)]
    raise UserError(
      f'each device needs {gib[0]} for parameters and optimizer state and '
      f'{gib[1]} for a batch, but has {gib[2]}: use a smaller model or batch, '
      'more devices (config.mesh.fsdp), or a recipe with less state'
    )


def _host_bytes() -> int:
  limits = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  for path in map(pathlib.Path, _CGROUP_LIMITS):
    text = path.read_text().strip() if path.is_file() else ''
    if text.isdigit():  # 'max' is no limit.
      limits.append(int(text))
  return min(limits)
