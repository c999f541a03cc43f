"""Recipes: built from the table, by name or by their public functions."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from sage_optax import layout
from sage_optax import roles as roles_lib
from sage_optax.table import METHODS, RECIPES, Part, Recipe

# Keyword arguments of every recipe.
_COMMON = ('roles', 'matrix_axes', 'weight_decay', *roles_lib.ROLES)


def recipe_names() -> tuple[str, ...]:
  """Names that `recipe` and `explain` know."""
  return tuple(RECIPES)


def recipe(
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  *,
  roles: Any = None,
  matrix_axes: layout.MatrixAxes | None = None,
  weight_decay: float = 0.0,
  embedding: Mapping[str, Any] | None = None,
  head: Mapping[str, Any] | None = None,
  matrix: Mapping[str, Any] | None = None,
  vector: Mapping[str, Any] | None = None,
  **shared: Any,
) -> optax.GradientTransformation:
  """An optimizer by name: one method per role, routed by `optax.partition`.

  Each role gets `chain(scale_by_x, scale(lr_scale), add_decayed_weights,
  scale_by_learning_rate)`: the decay is decoupled, multiplied by the learning
  rate and not by lr_scale. Role 'vector' is not decayed unless its own dict
  asks for it.

  Args:
    name: one of `recipe_names()`.
    learning_rate: a number or an Optax schedule.
    roles: tree of roles (or a prefix of one), or a callable that makes it from
      parameters, such as `functools.partial(sage_optax.roles.assign,
      rules=...)`. None: the default rules of `sage_optax.roles.assign`.
    matrix_axes: for leaves that are not [..., fan_in, fan_out], as
      `sage_optax.with_matrix_axes` takes it: [(pattern, (axes of fan_in, axes
      of fan_out)), ...] or a function of the path. Leaves with role 'vector'
      take ((), axes). None: all leaves are.
    weight_decay: decay of embedding, head and matrix.
    embedding: overrides for this role: `lr_scale`, `weight_decay`, and the
      arguments of its method.
    head: as `embedding`.
    matrix: as `embedding`.
    vector: as `embedding`.
    **shared: arguments such as `b1`, given to every part whose method takes
      them; `paper=True` chooses the authors' released form where there is one.

  Returns:
    An ordinary `GradientTransformation`; its `update` needs `params`. Under
    `optax.inject_hyperparams` with bfloat16 parameters pass
    hyperparam_dtype=jnp.float32: Optax makes bfloat16 numbers of b2 and the
    like otherwise, and 0.999 is 1 there.

  Raises:
    ValueError: unknown recipe, or an argument that no part takes; from `init`,
      a leaf that has no role.

  Example:
    >>> import jax.numpy as jnp, optax, sage_optax
    >>> params = {'embed': {'embedding': jnp.ones((8, 4))},
    ...           'dense': {'kernel': jnp.ones((4, 4))}}
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0),
    ...                  sage_optax.sage_hybrid(2e-3, weight_decay=0.1))
    >>> updates, state = tx.update(params, tx.init(params), params)
  """
  overrides = {
    'embedding': embedding,
    'head': head,
    'matrix': matrix,
    'vector': vector,
  }
  parts = resolve(
    name, weight_decay=weight_decay, overrides=overrides, **shared
  )
  transforms = {
    role: optax.chain(
      build_method(part, role, matrix_axes),
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
  return optax.partition(
    transforms, functools.partial(roles_lib.labels, roles=roles)
  )


def build_method(
  part: Part, role: str, matrix_axes: layout.MatrixAxes | None = None
) -> optax.GradientTransformation:
  """The method of a part alone, with the units of its role."""
  method = METHODS[part.method]
  kwargs = dict(part.kwargs)
  if 'core_ndim' in inspect.signature(method).parameters:
    kwargs.setdefault('core_ndim', 1 if role == 'vector' else 2)
  tx = method(**kwargs)
  if matrix_axes is None:
    return tx
  return layout.with_matrix_axes(tx, layout.axes_function(matrix_axes, role))


def resolve(
  name: str,
  *,
  weight_decay: float = 0.0,
  overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
  paper: bool = False,
  **shared: Any,
) -> dict[str, Part]:
  """The parts of a recipe, role by role, with all overrides applied.

  Args:
    name: one of `recipe_names()`.
    weight_decay: decay of all roles but 'vector'.
    overrides: role -> `lr_scale`, `weight_decay` and arguments of its method.
    paper: take the authors' released form.
    **shared: arguments for every part whose method takes them.

  Returns:
    Role -> `Part`, for all four roles.

  Raises:
    ValueError: unknown recipe, or an argument that no part takes.
  """
  if name not in RECIPES:
    known = ', '.join(RECIPES)
    raise ValueError(f'Unknown recipe {name!r}: use one of {known}.')
  row = RECIPES[name]
  if paper and row.paper is None:
    raise ValueError(
      f'Recipe {name!r} has no paper form: leave paper=True out.'
    )
  variants = (row.paper or {}) if paper else {}
  parts: dict[str, Part] = {}
  taken: set[str] = set()
  for role in roles_lib.ROLES:
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
      f'{_join([*_shared_names(row), *_COMMON])}.'
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
  return part._replace(kwargs={**part.kwargs, **kwargs}, **own)


def _join(names) -> str:
  return ', '.join(sorted(names))


def _parameters(method: str) -> tuple[str, ...]:
  """Names of a method's arguments that a user may set."""
  names = inspect.signature(METHODS[method]).parameters
  return tuple(name for name in names if name != 'core_ndim')


def _shared_names(row: Recipe) -> list[str]:
  """Arguments that some part of the recipe takes, in their methods' order."""
  names = [
    n for r in roles_lib.ROLES for n in _parameters(getattr(row, r).method)
  ]
  return list(dict.fromkeys([*names, *(['paper'] if row.paper else [])]))


# What optax.inject_hyperparams must not trace, or take for a schedule.
_STATIC = (
  *('roles', 'matrix_axes', 'axis', 'rank', 'update_proj_gap', 'ns_steps'),
  'projector',
)


class _Default:
  """Says that an argument was not given (None means something to methods)."""

  def __repr__(self):
    return '<default>'


_DEFAULT = _Default()


def _public(name: str) -> Callable[..., optax.GradientTransformation]:
  """The function `sage_optax.<name>`.

  Its signature names every argument, for help() and inject_hyperparams, which
  cannot pass `**shared` on.
  """

  def build(learning_rate, **kwargs):
    given = {k: v for k, v in kwargs.items() if v is not _DEFAULT}
    return recipe(name, learning_rate, **given)

  row = RECIPES[name]
  parameters = list(inspect.signature(recipe).parameters.values())[1:-1]
  parameters += [
    inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULT)
    for n in _shared_names(row)
  ]
  static = tuple(p.name for p in parameters if p.name in _STATIC)
  signature = inspect.Signature(
    parameters, return_annotation=optax.GradientTransformation
  )
  build.__signature__ = signature  # type: ignore[attr-defined]
  build.__name__ = build.__qualname__ = name
  build.__doc__ = (
    f'{row.summary}\n\n'
    + '\n'.join(
      f'  {role}: {part.method}, lr_scale {part.lr_scale}, {dict(part.kwargs)}'
      for role, part in zip(roles_lib.ROLES, row[1:5], strict=True)
    )
    + f"\n\nThe same as `sage_optax.recipe('{name}', learning_rate, ...)`,\n"
    'whose docstring describes the arguments. With optax.inject_hyperparams,\n'
    f'static_args={static} keeps them as they are.\n'
  )
  return build


adamw = _public('adamw')
lion = _public('lion')
sage = _public('sage')
sage_hybrid = _public('sage_hybrid')
lion_hybrid = _public('lion_hybrid')
sinkgd = _public('sinkgd')
sinkgd_pure = _public('sinkgd_pure')
stable_spam = _public('stable_spam')
spam = _public('spam')
sgd_sai = _public('sgd_sai')
scale = _public('scale')
apollo = _public('apollo')
apollo_mini = _public('apollo_mini')
galore = _public('galore')
fira = _public('fira')
swan = _public('swan')
muon = _public('muon')
muon_eq = _public('muon_eq')
adafactor = _public('adafactor')
adam_mini = _public('adam_mini')
coupled_adam = _public('coupled_adam')
sage_muon = _public('sage_muon')
sage_scale = _public('sage_scale')
