"""Builds recipes from the table, by name."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import optax

from sage_optax.leaves import arguments, pairs, partition, routing, rules
from sage_optax.leaves.rules import ROLES
from sage_optax.recipe_table import ELEMENTWISE, METHODS, RECIPES, Part, Recipe

ROUTING = tuple(field.name for field in dataclasses.fields(routing.Routing))

# Keyword arguments of every recipe.
_COMMON = (*ROUTING, 'weight_decay', *ROLES)


def recipe_names() -> tuple[str, ...]:
  """Names that `recipe` and `explain` accept."""
  return tuple(RECIPES)


def recipe(
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: Any = 0.0,
  **options: Any,
) -> optax.GradientTransformation:
  """An optimizer by name: one method per role, routed by `optax.partition`.

  Each role gets `chain(scale_by_x, scale(lr_scale), add_decayed_weights,
  scale_by_learning_rate)`: the decay is decoupled and multiplied by the
  learning rate, but not by lr_scale. Vectors are not decayed unless their dict
  sets `weight_decay`.

  The role of a leaf, and its axes of fan_in and fan_out, are inferred from, in
  this order: the arguments below, its module (Equinox, Haliax), the names of
  its axes (Flax's boxes, Haliax, Penzai), its own name if the shape agrees. If
  they are not clear, the error contains the lines to paste.

  Args:
    name: one of `recipe_names()`.
    learning_rate: a number or an Optax schedule.
    weight_decay: decay of embedding, head and matrix.
    **options: more arguments, all optional:

      embedding, head, matrix, vector: a dict of overrides for the role:
        `lr_scale`, `weight_decay`, and arguments of its method.
      rules: (pattern, role) pairs, as in `sage_optax.roles.assign`.
      logical_axes: tree like the parameters, of tuples of axis names.
      matrix_axes: for leaves that are not [..., fan_in, fan_out]: pairs
        (pattern, (axes of fan_in, axes of fan_out)) or a function of the path,
        as in `sage_optax.with_matrix_axes`. For leaves with role 'vector', use
        ((), axes).
      stacked: pattern, or patterns, of leaves that have an axis of layers.
      scan_axis: the index of that axis, also in norm scales and biases.
      preset: the layout of a library, from `sage_optax.layout`.
      default_role: role of leaves whose role is not clear; 'auto' means matrix
        for two or more axes, else vector.
      roles: tree of roles (or a prefix of one), or a callable that computes it
        from the parameters; replaces the rules.
      paper: whether to use the authors' released form, where there is one.
      Arguments of methods such as `b1`, passed to every role whose method
        accepts them.

  Returns:
    An ordinary `GradientTransformation`; its `update` needs `params`.

  Raises:
    ValueError: unknown recipe, or an argument that no method accepts; from
      `init`, leaves whose role or axes are not clear.

  Example:
    >>> import jax.numpy as jnp, optax, sage_optax
    >>> params = {'embed': {'embedding': jnp.ones((8, 4))},
    ...           'dense': {'kernel': jnp.ones((4, 4))}}
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0),
    ...                  sage_optax.sage_hybrid(2e-3, weight_decay=0.1))
    >>> updates, state = tx.update(params, tx.init(params), params)
  """
  if isinstance(options.get('options'), Mapping):
    raise ValueError(
      'optax.inject_hyperparams passes the options of sage_optax.recipe as one '
      f'argument: use sage_optax.{name} instead, which takes the same options.'
    )
  given = routing.Routing(
    **{key: options.pop(key) for key in ROUTING if key in options}
  )
  pairs.axes_function(given.matrix_axes)
  rules.check(given.rules, given.default_role)
  overrides = {role: options.pop(role, None) for role in ROLES}
  parts = resolve(
    name, weight_decay=weight_decay, overrides=overrides, **options
  )
  return assemble(parts, learning_rate, given)


def assemble(
  parts: Mapping[str, Part],
  learning_rate: optax.ScalarOrSchedule,
  given: routing.Routing,
) -> optax.GradientTransformation:
  """Returns the optimizer that applies to each role its part."""
  arguments.check_rate('learning_rate', learning_rate)
  transforms = {
    role: optax.chain(
      build_method(part, role),
      optax.scale(part.lr_scale),
      *(
        []
        if part.weight_decay is None
        else [optax.add_decayed_weights(part.weight_decay)]
      ),
      optax.scale_by_learning_rate(learning_rate),
    )
    for role, part in parts.items()
  }
  elementwise = all(part.method in ELEMENTWISE for part in parts.values())
  return partition.by_role(transforms, given, elementwise=elementwise)


def build_method(part: Part, role: str) -> optax.GradientTransformation:
  """Returns the method of a part alone, on the units of its role."""
  method = METHODS[part.method]
  kwargs = dict(part.kwargs)
  if 'core_ndim' in inspect.signature(method).parameters:
    kwargs.setdefault('core_ndim', 1 if role == 'vector' else 2)
  return method(**kwargs)


def resolve(
  name: str,
  *,
  weight_decay: float = 0.0,
  overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
  paper: bool = False,
  **shared: Any,
) -> dict[str, Part]:
  """Returns the parts of a recipe, with all overrides applied.

  Args:
    name: one of `recipe_names()`.
    weight_decay: decay of all roles but 'vector'.
    overrides: role -> `lr_scale`, `weight_decay` and arguments of its method.
    paper: whether to use the authors' released form.
    **shared: arguments for every part whose method accepts them.

  Returns:
    Role -> `Part`, for all four roles.

  Raises:
    ValueError: unknown recipe, or an argument that no method accepts.
  """
  if name not in RECIPES:
    known = ', '.join(RECIPES)
    raise ValueError(f'Unknown recipe {name!r}: use one of {known}.')
  row = RECIPES[name]
  arguments.check_rate('weight_decay', weight_decay)
  if paper and row.paper is None:
    raise ValueError(f'Recipe {name!r} has no paper form: omit paper=True.')
  variants = (row.paper or {}) if paper else {}
  parts: dict[str, Part] = {}
  taken: set[str] = set()
  for role in ROLES:
    part = getattr(row, role)
    parameters = _parameters(part.method)
    common = {k: v for k, v in shared.items() if k in parameters}
    taken |= common.keys()
    part = part._replace(
      weight_decay=None if role == 'vector' else weight_decay
    )
    own = (overrides or {}).get(role)
    for changes in (variants.get(role), common, own):
      part = _override(part, changes or {}, f'{name}, role {role}')
    parts[role] = part
  if unknown := shared.keys() - taken:
    raise ValueError(
      f'No method of recipe {name!r} takes {_join(unknown)}: use '
      f'{_join([*shared_names(row), *_COMMON])}.'
    )
  return parts


def _override(part: Part, changes: Mapping[str, Any], where: str) -> Part:
  if not isinstance(changes, Mapping):
    raise ValueError(f'{where}: overrides must be a dict, got {changes!r}.')
  kwargs = dict(changes)
  own = {k: kwargs.pop(k) for k in ('lr_scale', 'weight_decay') if k in kwargs}
  known = _parameters(part.method)
  if unknown := kwargs.keys() - known:
    raise ValueError(
      f'{where}: {part.method} does not take {_join(unknown)}: use '
      f'{_join({"lr_scale", "weight_decay", *known})}.'
    )
  for key, value in own.items():
    scale = key == 'lr_scale'
    check = arguments.check_factor if scale else arguments.check_rate
    check(f'{where}: {key}', value)
  signature = inspect.signature(METHODS[part.method]).parameters
  kwargs = {
    key: arguments.check(f'{where}: {key}', value, signature[key])
    for key, value in kwargs.items()
  }
  return part._replace(kwargs={**part.kwargs, **kwargs}, **own)


def _join(names) -> str:
  return ', '.join(sorted(names))


def _parameters(method: str) -> tuple[str, ...]:
  """Names of a method's arguments that a user may set."""
  names = inspect.signature(METHODS[method]).parameters
  return tuple(name for name in names if name != 'core_ndim')


def shared_names(row: Recipe) -> list[str]:
  """Arguments that some method of the recipe accepts, in its order."""
  names = [n for r in ROLES for n in _parameters(getattr(row, r).method)]
  return list(dict.fromkeys([*names, *(['paper'] if row.paper else [])]))
