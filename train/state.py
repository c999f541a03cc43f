"""The state of a run: made sharded, from abstract shapes and a seed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import sage_optax
from models import llama
from train.mesh import named


class TrainState(NamedTuple):
  """What a step takes and gives back; also a tree of its shapes or specs.

  Attributes:
    step: int32 scalar, the number of steps taken.
    params: The parameters, nested dicts.
    opt_state: The optimizer's state.
  """

  step: Any
  params: Any
  opt_state: Any


def abstract_params(config: llama.LlamaConfig) -> Any:
  """Returns the ShapeDtypeStructs of the parameters."""
  return jax.eval_shape(lambda: llama.init(jax.random.key(0), config))


def abstract_state(
  config: llama.LlamaConfig, tx: optax.GradientTransformation
) -> TrainState:
  """Returns the ShapeDtypeStructs of a state; nothing is allocated."""
  return jax.eval_shape(lambda: _init(0, config, tx))


def state_specs(
  tx: optax.GradientTransformation, params: Any, param_specs: Any, mesh: Mesh
) -> TrainState:
  """Returns a TrainState of PartitionSpecs."""
  opt_specs = sage_optax.sharding.state_specs(
    tx, params, param_specs, mesh.shape
  )
  return TrainState(P(), param_specs, opt_specs)


def state_shardings(
  tx: optax.GradientTransformation, params: Any, param_specs: Any, mesh: Mesh
) -> TrainState:
  """Returns a TrainState of NamedShardings."""
  return named(state_specs(tx, params, param_specs, mesh), mesh)


def init_state(
  seed: int,
  config: llama.LlamaConfig,
  tx: optax.GradientTransformation,
  shardings: TrainState,
) -> TrainState:
  """Returns the state before step 0, every array made where it belongs."""
  return jit_init(config, tx, shardings)(seed)


def jit_init(
  config: llama.LlamaConfig,
  tx: optax.GradientTransformation,
  shardings: TrainState,
) -> Any:
  """Returns the jitted function seed -> state that init_state calls."""
  return jax.jit(lambda s: _init(s, config, tx), out_shardings=shardings)


def _init(
  seed: int | jax.Array,
  config: llama.LlamaConfig,
  tx: optax.GradientTransformation,
) -> TrainState:
  params = llama.init(jax.random.key(seed), config)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
