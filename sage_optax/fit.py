"""A method for each role, so that the optimizer state fits in a budget."""

import dataclasses
import itertools
import numbers
from typing import Any, NamedTuple

import optax

from sage_optax import memory, recipes
from sage_optax.explain import matrices
from sage_optax.leaves import arguments, routing
from sage_optax.recipe_table import Part

_BFLOAT16, _INT8 = {'state_dtype': 'bfloat16'}, {'state_dtype': 'int8'}


def _table(axis: int) -> tuple[Part, ...]:
  """Methods for embeddings and heads; `axis` is that of a token's features."""
  return (
    Part('adamw'),
    Part('adamw', _BFLOAT16),
    Part('adamw', _INT8),
    Part('adam_mini', {'axis': axis, **_INT8}),
    Part('adafactor'),
  )


# From more state to less. All use one learning rate, AdamW's.
_MUON = {'consistent_rms': 0.2}
_ORDER: dict[str, tuple[Part, ...]] = {
  'embedding': _table(-1),
  'head': _table(-2),
  'matrix': (
    Part('muon', _MUON),
    Part('muon', {**_MUON, **_BFLOAT16}),
    Part('muon', {**_MUON, **_INT8}),
    Part('sinkgd', lr_scale=0.33),
  ),
  'vector': (Part('adamw'),),
}


class Choice(NamedTuple):
  """A method that one role could have.

  Attributes:
    role: the role.
    place: position in the role's list of methods, from 0.
    part: method, its arguments and factor of the learning rate.
    state_bytes: bytes of state for all parameters of the role.
    chosen: whether it is part of the result.
  """

  role: str
  place: int
  part: Part
  state_bytes: int
  chosen: bool


@dataclasses.dataclass(frozen=True)
class Fit:
  """A method for each role; `str()` returns the table of all choices.

  Attributes:
    choices: the possible methods of each role that occurs.
    parts: role -> its chosen method.
    state_bytes: of the whole optimizer, for a learning rate that is a number.
  """

  choices: list[Choice]
  parts: dict[str, Part]
  state_bytes: int
  _routing: routing.Routing = dataclasses.field(repr=False)

  def optimizer(
    self, learning_rate: optax.ScalarOrSchedule, weight_decay: Any = 0.0
  ) -> optax.GradientTransformation:
    """Returns the optimizer.

    Args:
      learning_rate: AdamW's learning rate, a number or an Optax schedule.
      weight_decay: decay of embedding, head and matrix.
    """
    arguments.check_rate('weight_decay', weight_decay)
    parts = {
      role: part._replace(
        weight_decay=None if role == 'vector' else weight_decay
      )
      for role, part in self.parts.items()
    }
    return recipes.assemble(parts, learning_rate, self._routing)

  def __str__(self) -> str:
    lines = [
      (
        '*' if choice.chosen else ' ',
        choice.role,
        choice.part.method,
        _options(choice.part),
        memory.format_bytes(choice.state_bytes),
      )
      for choice in self.choices
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [' '.join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return '\n'.join([*table, f'state {memory.format_bytes(self.state_bytes)}'])


def _options(part: Part) -> str:
  scale = {} if part.lr_scale == 1 else {'lr_scale': part.lr_scale}
  return (
    ', '.join(f'{k}={v}' for k, v in {**part.kwargs, **scale}.items()) or '-'
  )


def fit(params: Any, budget_bytes: int, **options: Any) -> Fit:
  """Chooses a method for each role, so that the state fits in a budget.

  Each role has a list of methods, from more state to less. Of all combinations
  that fit, this takes the one with the smallest sum of positions in these
  lists; among equals, the one with the smallest state. That more state gives a
  lower loss is a guess until a study of whole models has ranked the methods. On
  a bilinear model Adafactor, last for embeddings, has a lower loss than AdamW.

    embedding, head: AdamW in float32, bfloat16 and int8, Adam-mini with one
      second moment per token in int8, Adafactor.
    matrix: Muon in float32, bfloat16 and int8, SinkGD.
    vector: AdamW.

  Args:
    params: tree of arrays or `ShapeDtypeStruct`s; nothing is allocated.
    budget_bytes: largest allowed size of the optimizer state.
    **options: rules and layout, as in `sage_optax.recipe`.

  Returns:
    A `Fit`: `.optimizer(learning_rate)`, `.parts`, `.choices`, `.state_bytes`.

  Raises:
    ValueError: no combination fits, `budget_bytes` is not a number, or the role
      or axes of a leaf are not clear.

  Example:
    >>> import jax.numpy as jnp, sage_optax
    >>> params = {'embed': {'embedding': jnp.zeros((512, 64))},
    ...           'dense': {'kernel': jnp.zeros((64, 64))}}
    >>> found = sage_optax.fit(params, budget_bytes=100_000)
    >>> print(found.parts['embedding'].kwargs, found.state_bytes)
    {'state_dtype': 'int8'} 90128
  """
  if unknown := options.keys() - set(recipes.ROUTING):
    raise ValueError(
      f'fit does not take {", ".join(sorted(unknown))}: use '
      f'{", ".join(recipes.ROUTING)}.'
    )
  if not isinstance(budget_bytes, numbers.Real):
    raise ValueError(
      f'budget_bytes must be a number of bytes, got {budget_bytes!r}.'
    )
  given = routing.Routing(**options)
  leaves = routing.resolve_tree(params, given).leaves
  costs: dict[str, list[int]] = {}
  for role, parts in _ORDER.items():
    mine = [matrices(leaf) for leaf in leaves if leaf.role == role]
    costs[role] = [
      memory.state_bytes(recipes.build_method(part, role), mine)
      for part in (parts if mine else parts[:1])
    ]
  combinations = [
    (
      sum(cost[i] for cost, i in zip(costs.values(), places, strict=True)),
      places,
    )
    for places in itertools.product(*map(range, map(len, costs.values())))
  ]
  fitting = [c for c in combinations if c[0] <= budget_bytes]
  if not fitting:
    smallest = min(combinations)[0]
    raise ValueError(
      f'No choice of methods fits in {budget_bytes:,} bytes of state: the '
      f'smallest needs {smallest:,}.'
    )
  total, places = min(fitting, key=lambda c: (sum(c[1]), c[0]))
  chosen = dict(zip(costs, places, strict=True))
  present = {leaf.role for leaf in leaves}
  choices = [
    Choice(role, place, _ORDER[role][place], size, place == chosen[role])
    for role, sizes in costs.items()
    if role in present
    for place, size in enumerate(sizes)
  ]
  best = {role: _ORDER[role][place] for role, place in chosen.items()}
  return Fit(choices, best, total, given)
