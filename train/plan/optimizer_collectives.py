"""The communication between devices that an optimizer causes by itself."""

import collections
import dataclasses
from typing import Any

import jax
import optax

import sage_optax
from models import llama
from train import mesh as mesh_lib
from train import optimizer as optimizer_lib
from train import state as state_lib
from train.config import Config, model_config
from train.plan import cost, hlo, measure, targets


@dataclasses.dataclass(frozen=True)
class ParameterUpdate:
  """One parameter, updated alone; sizes are per device.

  Attributes:
    recipe: The recipe.
    path: Name of the first parameter of this kind.
    role: Its role.
    shape: Its shape.
    spec: Its sharding, per axis.
    matrix: Number of elements of one of its matrices, over all shards.
    vectors: Number of elements in a row and a column of all its matrices.
    counts: Number of collectives per update, by kind.
    bytes: Their bytes, by kind.
    largest: Number of elements of the largest array sent; 0 if none.
    notes: Differences from the request.
  """

  recipe: str
  path: str
  role: str
  shape: tuple[int, ...]
  spec: tuple[str | None, ...]
  matrix: int
  vectors: int
  counts: dict[str, int]
  bytes: dict[str, int]
  largest: int
  notes: list[str]

  @property
  def only_vectors(self) -> bool:
    """Whether all arrays sent are smaller than a matrix."""
    return self.largest <= self.vectors


def rows(config: Config, target: targets.Target) -> list[ParameterUpdate]:
  """Compiles the update of one parameter of each kind.

  A kind is a role, a shape and a sharding. Clipping by the global norm, which
  adds an all-reduce of a scalar, is left out.

  Args:
    config: The configuration; it names the recipe.
    target: The hardware to plan for.

  Raises:
    UserError: see `train.plan.measure.measure`.
  """
  config, notes = measure.plannable(config, target)
  train = dataclasses.replace(config.train, grad_clip=None)
  config = dataclasses.replace(config, train=train)
  mesh = mesh_lib.make_mesh(config, targets.devices(target))
  model = model_config(config, target.chip.platform)
  params, axes = state_lib.abstract_params(model), llama.logical_axes(model)
  roles = optimizer_lib.make(config, params, axes).roles
  units = mesh_lib.axis_units(model)
  specs, _ = mesh_lib.param_specs(axes, params, mesh, units=units)
  result, seen = [], set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    role, spec, names = (_at(tree, path) for tree in (roles, specs, axes))
    kind = (role, leaf.shape, spec)
    if kind in seen:
      continue
    seen.add(kind)
    nested = (_nest(path, value) for value in (leaf, names, spec))
    found = _collectives(config, target, mesh, *nested)
    counts: dict[str, int] = collections.Counter()
    for c in found:
      counts[c.kind] += c.times
    fan_in, fan_out = leaf.shape[-2:] if role != 'vector' else (1, leaf.size)
    batch = leaf.size // (fan_in * fan_out)
    result.append(
      ParameterUpdate(
        recipe=config.optimizer.recipe,
        path=jax.tree_util.keystr(path, simple=True, separator='/'),
        role=role,
        shape=leaf.shape,
        spec=tuple(spec),
        matrix=fan_in * fan_out,
        vectors=batch * (fan_in + fan_out),
        counts=dict(counts),
        bytes=cost.bytes_by_kind(found),
        largest=max((c.largest for c in found), default=0),
        notes=notes,
      )
    )
  return result


def _collectives(
  config: Config,
  target: targets.Target,
  mesh: Any,
  params: Any,
  axes: Any,
  specs: Any,
) -> list[cost.Collective]:
  """Compiles the update of the parameters."""
  tx = optimizer_lib.make(config, params, axes).tx
  tx = sage_optax.sharding.with_mesh(tx, mesh, specs)
  shardings = state_lib.state_shardings(tx, params, specs, mesh)
  state = jax.eval_shape(tx.init, params)

  def place(tree, where):
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree,
      where,
    )

  def update(grads, state, params):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  where = (shardings.params, shardings.opt_state)
  params, state = place(params, where[0]), place(state, where[1])
  step = jax.jit(update, out_shardings=where, donate_argnums=(1, 2))
  options = measure.compiler_options(config, target)
  lowered = step.lower(params, state, params)
  compiled = lowered.compile(compiler_options=options or None)
  return cost.find_collectives(hlo.parse(str(compiled.as_text())))


def _nest(path: Any, value: Any) -> Any:
  """Returns nested dicts with one leaf, at `path`."""
  for entry in reversed(path):
    value = {entry.key: value}
  return value


def _at(tree: Any, path: Any) -> Any:
  for entry in path:
    tree = tree[entry.key]
  return tree
