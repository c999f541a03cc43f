"""What a recipe does to each parameter, before anything is allocated."""

import collections
import dataclasses
import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax import layout, memory, recipes, sharding
from sage_optax import roles as roles_lib

_HEADER = (
  'path',
  'shape',
  'units',
  'role',
  'rule',
  'method',
  'lr_scale',
  'decay',
  'state',
  'replicated',
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter.

  Attributes:
    path: names from the root to the leaf, joined by '/'.
    shape: its shape.
    units: what the method takes as one matrix or vector, and how many there
      are: '12 of 64x64'.
    role: 'embedding', 'head', 'matrix' or 'vector'.
    rule: the pattern that gave it the role.
    method: the method that updates it.
    lr_scale: its learning rate over the recipe's.
    weight_decay: its decoupled weight decay.
    state_bytes: bytes of optimizer state that belong to it.
    replicated: axes that were to be sharded but that the mesh does not divide.
  """

  path: str
  shape: tuple[int, ...]
  units: str
  role: str
  rule: str
  method: str
  lr_scale: float
  weight_decay: float
  state_bytes: int
  replicated: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Total:
  """The sum over the parameters of one role, or over all."""

  leaves: int = 0
  parameters: int = 0
  state_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Explanation:
  """A table of what each parameter gets; `str()` draws it.

  Attributes:
    recipe: name of the recipe.
    rows: one `Row` per parameter.
    totals: role -> `Total`; 'all' is the sum, counters included, and equals
      `sage_optax.memory.state_bytes` of the recipe.
  """

  recipe: str
  rows: list[Row]
  totals: dict[str, Total]

  def to_json(self) -> str:
    """The same as JSON."""
    return json.dumps(dataclasses.asdict(self), indent=2)

  def __str__(self) -> str:
    lines = [
      (
        row.path,
        _dimensions(row.shape),
        row.units,
        row.role,
        row.rule,
        row.method,
        f'{row.lr_scale:g}',
        f'{row.weight_decay:g}',
        format_bytes(row.state_bytes),
        ', '.join(f'axis {axis}' for axis in row.replicated) or '-',
      )
      for row in self.rows
    ]
    widths = [
      max(map(len, column)) for column in zip(_HEADER, *lines, strict=True)
    ]
    rule = tuple('-' * width for width in widths)
    table = [
      '  '.join(map(str.ljust, line, widths)).rstrip()
      for line in (_HEADER, rule, *lines)
    ]
    sums = [
      f'{role}: {total.leaves} leaves, {total.parameters:,} parameters, '
      f'state {format_bytes(total.state_bytes)}'
      for role, total in self.totals.items()
    ]
    return '\n'.join([f'recipe {self.recipe}', *table, '', *sums])


def format_bytes(size: int) -> str:
  """Bytes in the largest binary unit that leaves at least 1."""
  value, units = float(size), ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  while value >= 1024 and len(units) > 1:
    value, units = value / 1024, units[1:]
  return (
    f'{value:.0f} {units[0]}' if units[0] == 'B' else f'{value:.2f} {units[0]}'
  )


def explain(
  recipe_name: str,
  params: Any,
  *,
  roles: Any = None,
  matrix_axes: layout.MatrixAxes | None = None,
  param_specs: Any = None,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
  **overrides: Any,
) -> Explanation:
  """Says which method, learning rate, decay and state each parameter gets.

  Nothing is allocated: `params` may be `ShapeDtypeStruct`s.

  Args:
    recipe_name: one of `sage_optax.recipe_names()`.
    params: tree of arrays or `ShapeDtypeStruct`s.
    roles: as in `sage_optax.recipe`.
    matrix_axes: as in `sage_optax.recipe`.
    param_specs: tree like `params` of the `PartitionSpec`s wished for; with
      `mesh`, rows list the axes that cannot be sharded so.
    mesh: the mesh of `param_specs`.
    **overrides: the other keyword arguments of `sage_optax.recipe`.

  Returns:
    An `Explanation`: `.rows`, `.totals`, `str()` and `.to_json()`.

  Raises:
    ValueError: as `sage_optax.recipe` and `sage_optax.roles.assign` do.

  Example:
    >>> import jax, jax.numpy as jnp, sage_optax
    >>> params = {'embed': {'embedding': jnp.zeros((32, 8))}}
    >>> explanation = sage_optax.explain('sage_hybrid', params)
    >>> row = explanation.rows[0]
    >>> print(row.path, row.role, row.method, row.state_bytes)
    embed/embedding embedding sage 1056
  """
  by_role = {role: overrides.pop(role, None) for role in roles_lib.ROLES}
  parts = recipes.resolve(recipe_name, overrides=by_role, **overrides)
  rows = [
    _row(match, parts[match.role], replicated, matrix_axes)
    for match, replicated in zip(
      _matches(params, roles),
      _replicated(params, param_specs, mesh),
      strict=True,
    )
  ]
  kwargs = {'roles': roles, 'matrix_axes': matrix_axes, **by_role, **overrides}
  tx = recipes.recipe(recipe_name, 0.0, **kwargs)
  return Explanation(recipe_name, rows, _totals(rows, tx, params))


def _row(
  match: roles_lib.Match,
  part: recipes.Part,
  replicated: tuple[int, ...],
  matrix_axes: layout.MatrixAxes | None,
) -> Row:
  tx = recipes.build_method(part, match.role)
  shape = seen = jnp.shape(match.leaf)
  if matrix_axes is not None:
    axes_of = layout.axes_function(matrix_axes, match.role)
    seen = layout.matrix_shape(match.path, shape, axes_of)
  leaf = jax.ShapeDtypeStruct(seen, jnp.result_type(match.leaf))
  # An empty tree has the counters only; all leaves share them.
  counters = memory.state_bytes(tx, {})
  return Row(
    path=match.path,
    shape=shape,
    units=_units(seen, match.role),
    role=match.role,
    rule=match.rule,
    method=part.method,
    lr_scale=float(part.lr_scale),
    weight_decay=float(part.weight_decay or 0.0),
    state_bytes=memory.state_bytes(tx, leaf) - counters,
    replicated=replicated,
  )


def _units(shape: tuple[int, ...], role: str) -> str:
  core_ndim = min(len(shape), 1 if role == 'vector' else 2)
  split = len(shape) - core_ndim
  return f'{math.prod(shape[:split])} of {_dimensions(shape[split:])}'


def _dimensions(shape: tuple[int, ...]) -> str:
  return 'x'.join(map(str, shape)) or 'scalar'


def _matches(params: Any, roles: Any) -> list[roles_lib.Match]:
  """A `Match` per leaf; roles that come without rules have none to name."""
  if roles is None:
    return roles_lib.match(params)
  if isinstance(roles, functools.partial) and roles.func is roles_lib.assign:
    return roles_lib.match(params, **roles.keywords)
  given = jax.tree.leaves(roles_lib.labels(params, roles))
  return [
    match._replace(role=role, rule='given')
    for match, role in zip(
      roles_lib.match(params, rules=[('', 'vector')]), given, strict=True
    )
  ]


def _replicated(
  params: Any, param_specs: Any, mesh: Any
) -> list[tuple[int, ...]]:
  """Per leaf, the axes that the mesh cannot shard as wished."""
  if (param_specs is None) != (mesh is None):
    raise ValueError('explain needs both param_specs= and mesh=, or neither.')
  leaves = jax.tree.leaves(params)
  if param_specs is None:
    return [()] * len(leaves)
  treedef: Any = jax.tree.structure(params)
  return [
    sharding.undivided_axes(leaf.shape, spec, mesh.shape)
    for leaf, spec in zip(
      leaves, treedef.flatten_up_to(param_specs), strict=True
    )
  ]


def _totals(rows: list[Row], tx: Any, params: Any) -> dict[str, Total]:
  totals: dict[str, Total] = collections.defaultdict(Total)
  for row in rows:
    size = math.prod(row.shape)
    for role in (row.role, 'all'):
      old = totals[role]
      totals[role] = Total(
        old.leaves + 1, old.parameters + size, old.state_bytes + row.state_bytes
      )
  whole = memory.state_bytes(tx, params)
  return {
    **{role: totals[role] for role in roles_lib.ROLES if role in totals},
    'all': dataclasses.replace(totals['all'], state_bytes=whole),
  }
