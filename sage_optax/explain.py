"""Shows what a recipe does to each parameter, without allocating memory."""

import collections
import dataclasses
import json
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax import memory, recipes, sharding
from sage_optax.leaves import messages, metadata, routing
from sage_optax.leaves.rules import ROLES

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
  'second look',
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter.

  Attributes:
    path: names from the root to the leaf, joined by '/'.
    shape: its shape.
    units: number and shape of the matrices or vectors that the method sees,
      such as '12 of 64x64'.
    role: 'embedding', 'head', 'matrix' or 'vector'.
    rule: the evidence for the role: the pattern or the name of the rule.
    axes: the batch axes, the axes of fan_in and those of fan_out.
    evidence: the evidence for the axes.
    method: the method that updates it.
    lr_scale: its learning rate relative to the recipe's.
    weight_decay: its decoupled weight decay; 'schedule' if it is a function.
    state_bytes: bytes of its optimizer state.
    replicated: axes that cannot be sharded as requested, because the mesh does
      not divide them.
    second_look: what to check by hand; '' if nothing.
  """

  path: str
  shape: tuple[int, ...]
  units: str
  role: str
  rule: str
  axes: tuple[tuple[int, ...], ...]
  evidence: str
  method: str
  lr_scale: float
  weight_decay: float | str
  state_bytes: int
  replicated: tuple[int, ...]
  second_look: str = ''


@dataclasses.dataclass(frozen=True)
class Total:
  """Sums over the parameters of one role, or over all parameters."""

  leaves: int = 0
  parameters: int = 0
  state_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What a recipe does to each parameter; `str()` returns it as a table.

  Attributes:
    recipe: name of the recipe.
    rows: one `Row` per parameter.
    totals: role -> `Total`; 'all' is the sum, including counters, and equals
      `sage_optax.memory.state_bytes` of the recipe.
    unmatched: the patterns of `rules`, `matrix_axes` and `stacked` that match
      no parameter, with these names.
  """

  recipe: str
  rows: list[Row]
  totals: dict[str, Total]
  unmatched: tuple[str, ...] = ()

  def to_json(self) -> str:
    """Returns all attributes as JSON."""
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
        row.weight_decay
        if isinstance(row.weight_decay, str)
        else f'{row.weight_decay:g}',
        memory.format_bytes(row.state_bytes),
        ', '.join(f'axis {axis}' for axis in row.replicated) or '-',
        row.second_look or '-',
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
      f'{role}: {total.leaves} {"leaf" if total.leaves == 1 else "leaves"}, '
      f'{total.parameters:,} parameters, '
      f'state {memory.format_bytes(total.state_bytes)}'
      for role, total in self.totals.items()
    ]
    if self.unmatched:
      sums += ['', f'No parameter matches {", ".join(self.unmatched)}.']
    return '\n'.join([f'recipe {self.recipe}', *table, '', *sums])


def explain(
  recipe_name: str,
  params: Any,
  *,
  mask: Any = None,
  param_specs: Any = None,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
  **options: Any,
) -> Explanation:
  """Lists method, learning rate, decay and state of each parameter.

  No memory is allocated: `params` may be `ShapeDtypeStruct`s.

  Args:
    recipe_name: one of `sage_optax.recipe_names()`.
    params: tree of arrays or `ShapeDtypeStruct`s, boxed or not.
    mask: as in `optax.masked`: a tree of booleans, or a function that returns
      one; parameters with False are omitted.
    param_specs: tree like `params`, of the desired `PartitionSpec`s; with
      `mesh`, rows list the axes that cannot be sharded this way.
    mesh: the mesh of `param_specs`.
    **options: the keyword arguments of `sage_optax.recipe`; a learning rate is
      ignored.

  Returns:
    An `Explanation`; `str()` returns it as a table.

  Raises:
    ValueError: as in `sage_optax.recipe`, also if the role or the axes of a
      leaf are not clear.

  Example:
    >>> import jax, jax.numpy as jnp, sage_optax
    >>> params = {'embed': {'embedding': jnp.zeros((32, 8))}}
    >>> explanation = sage_optax.explain('sage_hybrid', params)
    >>> row = explanation.rows[0]
    >>> print(row.path, row.role, row.method, row.state_bytes)
    embed/embedding embedding sage 1056
  """
  options.pop('learning_rate', None)
  tx = recipes.recipe(recipe_name, 0.0, **options)
  given = routing.Routing(
    **{key: options.pop(key) for key in recipes.ROUTING if key in options}
  )
  by_role = {role: options.pop(role, None) for role in ROLES}
  parts = recipes.resolve(recipe_name, overrides=by_role, **options)
  if mask is not None:
    params = _masked(params, mask)
  resolved = routing.resolve_tree(params, given)
  notes = messages.notes(resolved.leaves, resolved.vocabularies)
  rows = [
    _row(leaf, parts[leaf.role or ''], replicated, note)
    for leaf, replicated, note in zip(
      resolved.leaves,
      _replicated(params, param_specs, mesh),
      notes,
      strict=True,
    )
  ]
  return Explanation(
    recipe_name,
    rows,
    _totals(rows, tx, params),
    messages.unmatched([row.path for row in rows], given),
  )


def _masked(params: Any, mask: Any) -> Any:
  chosen = mask(params) if callable(mask) else mask
  chosen = jax.tree.broadcast(chosen, params)
  return jax.tree.map(
    lambda leaf, keep: leaf if keep else optax.MaskedNode(), params, chosen
  )


def _row(
  leaf: routing.Leaf, part: recipes.Part, replicated: tuple[int, ...], note: str
) -> Row:
  role, axes, decay = leaf.role or '', leaf.axes, part.weight_decay
  assert axes is not None
  tx = recipes.build_method(part, role)
  shape = jnp.shape(leaf.leaf)
  array = matrices(leaf)
  unit = array.shape[len(axes.batch) :]
  # The state of an empty tree has only counters; all leaves share them.
  counters = memory.state_bytes(tx, {})
  return Row(
    path=leaf.path,
    shape=shape,
    units=f'{math.prod(shape[a] for a in axes.batch)} of {_dimensions(unit)}',
    role=role,
    rule=leaf.rule,
    axes=tuple(axes),
    evidence=leaf.evidence,
    method=part.method,
    lr_scale=float(part.lr_scale),
    weight_decay='schedule' if callable(decay) else float(decay or 0.0),
    state_bytes=memory.state_bytes(tx, array) - counters,
    replicated=replicated,
    second_look=note,
  )


def matrices(leaf: routing.Leaf) -> jax.ShapeDtypeStruct:
  """The leaf as its method sees it: [..., fan_in, fan_out] or vectors."""
  axes, shape = leaf.axes, jnp.shape(leaf.leaf)
  assert axes is not None
  sides = (axes.fan_in, axes.fan_out)
  unit = tuple(math.prod(shape[a] for a in side) for side in sides)
  if not axes.fan_in and leaf.role == 'vector':
    unit = unit[1:]
  seen = (*(shape[a] for a in axes.batch), *unit) if shape else ()
  return jax.ShapeDtypeStruct(seen, jnp.result_type(leaf.leaf))


def _dimensions(shape: tuple[int, ...]) -> str:
  return 'x'.join(map(str, shape)) or 'scalar'


def _replicated(
  params: Any, param_specs: Any, mesh: Any
) -> list[tuple[int, ...]]:
  """Per leaf, the axes that the mesh cannot shard as requested."""
  if (param_specs is None) != (mesh is None):
    raise ValueError('explain needs both param_specs= and mesh=, or neither.')
  leaves = jax.tree.leaves_with_path(params)
  if param_specs is None:
    return [()] * len(leaves)
  # By path, so that one of the trees may be boxed and the other not.
  specs = {
    metadata.leaf_path(key)[0]: spec
    for key, spec in jax.tree.leaves_with_path(
      param_specs, is_leaf=lambda x: isinstance(x, jax.P)
    )
  }
  found = []
  for key, leaf in leaves:
    path = metadata.leaf_path(key)[0]
    if path not in specs:
      raise ValueError(f'param_specs has no entry for {path}.')
    found.append(sharding.undivided_axes(leaf.shape, specs[path], mesh.shape))
  return found


def _totals(rows: list[Row], tx: Any, params: Any) -> dict[str, Total]:
  totals: dict[str, Total] = collections.defaultdict(Total)
  for row in rows:
    size = math.prod(row.shape)
    for role in (row.role, 'all'):
      old = totals[role]
      totals[role] = Total(
        old.leaves + 1, old.parameters + size, old.state_bytes + row.state_bytes
      )
  with warnings.catch_warnings():  # The rows contain them.
    warnings.simplefilter('ignore', messages.RoutingWarning)
    whole = memory.state_bytes(tx, params)
  return {
    **{role: totals[role] for role in ROLES if role in totals},
    'all': dataclasses.replace(totals['all'], state_bytes=whole),
  }
