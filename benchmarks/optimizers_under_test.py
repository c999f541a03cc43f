"""The optimizers to time: recipes, bare methods, and Optax's own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import sage_optax
from configs import llama_60m, llama_270m
from train import state as state_lib
from train.config import Config, model_config

RATE, DECAY, RANK = 1e-4, 0.1, 256
BASELINE = 'optax.adamw'
# Reads gradients and reads and writes parameters once: the speed of memory.
FLOOR = 'optax.sgd'
SIZES: dict[str, Callable[[], Config]] = {
  '60M': llama_60m.get_config,
  '270M': llama_270m.get_config,
}


@dataclasses.dataclass(frozen=True)
class Tree:
  """Shapes of the parameters, with stacked layers, and their roles."""

  params: Any
  roles: Any


@dataclasses.dataclass(frozen=True)
class OptimizerUnderTest:
  """An optimizer to time.

  Attributes:
    name: Its name in tables.
    tx: The transformation, including learning rate and decay.
    unstacked: Whether it takes one matrix per layer instead of stacked ones.
  """

  name: str
  tx: optax.GradientTransformation
  unstacked: bool = False


def tree(config: Config) -> Tree:
  """Returns the parameters of a configuration's model."""
  params = state_lib.abstract_params(model_config(config, 'cpu'))
  return Tree(params, sage_optax.roles.assign(params))


def names() -> tuple[str, ...]:
  """Returns the names of all JAX optimizers to time."""
  return (BASELINE, FLOOR, *sage_optax.recipe_names(), *_BARE, *_OPTAX)


def make(name: str, to: Tree, mesh: Any, **options: Any) -> OptimizerUnderTest:
  """Returns an optimizer to time.

  Args:
    name: One of `names()`.
    to: The parameters that it updates.
    mesh: A mesh of one device, given to our methods as the trainer does.
    **options: Options of a recipe.
  """
  if name in _OPTAX:
    return OptimizerUnderTest(
      name, _OPTAX[name](to.roles), name == 'optax.galore'
    )
  if name == BASELINE:
    return OptimizerUnderTest(name, optax.adamw(RATE, weight_decay=DECAY))
  if name == FLOOR:
    return OptimizerUnderTest(name, optax.sgd(RATE))
  if name in _BARE:
    tx = optax.chain(
      _BARE[name](),
      optax.add_decayed_weights(DECAY),
      optax.scale_by_learning_rate(RATE),
    )
  else:
    tx = sage_optax.recipe(
      name, RATE, roles=to.roles, weight_decay=DECAY, **options
    )
  specs = jax.tree.map(lambda _: P(), to.params)
  return OptimizerUnderTest(
    name, sage_optax.sharding.with_mesh(tx, mesh, specs)
  )


def unstack(tree: Any) -> Any:
  """Returns a copy of the tree with a list of layers."""
  tree = jax.tree.map(jnp.copy, tree)
  count = len(jax.tree.leaves(tree['layers'])[0])
  layers = [
    jax.tree.map(lambda x, i=i: x[i], tree['layers']) for i in range(count)
  ]
  return {**tree, 'layers': layers}


def _muon(roles: Any) -> optax.GradientTransformation:
  """Optax's Muon, with stacked matrices treated as matrices."""
  axes = optax.contrib.MuonDimensionNumbers(-2, -1)
  return optax.contrib.muon(
    RATE,
    weight_decay=DECAY,
    adam_weight_decay=DECAY,
    muon_weight_dimension_numbers=jax.tree.map(
      lambda role: axes if role == 'matrix' else None, roles
    ),
  )


def _galore(roles: Any) -> optax.GradientTransformation:
  """Optax's GaLore with our recipe's rank, and Adam outside the layers."""
  del roles  # These belong to the stacked tree.
  axes = optax.contrib.GaLoreDimensionNumbers(0, 1)
  return optax.contrib.galore(
    RATE,
    rank=RANK,
    weight_decay=DECAY,
    weight_dimension_numbers=lambda params: jax.tree.map(
      lambda role: axes if role == 'matrix' else None,
      sage_optax.roles.assign(params),
    ),
  )


_BARE: dict[str, Callable[[], optax.GradientTransformation]] = {
  'scale_by_sage': sage_optax.scale_by_sage,
  'scale_by_sinkgd': sage_optax.scale_by_sinkgd,
  'scale_by_lion': sage_optax.scale_by_lion,
  'scale_by_column_norm': sage_optax.scale_by_column_norm,
}
# Optax's own optimizers: roles -> transformation.
_OPTAX: dict[str, Callable[[Any], optax.GradientTransformation]] = {
  'optax.lion': lambda _: optax.lion(RATE, weight_decay=DECAY),
  'optax.adafactor': lambda _: optax.adafactor(
    RATE, weight_decay_rate=RATE * DECAY
  ),
  'optax.muon': _muon,
  'optax.galore': _galore,
}
