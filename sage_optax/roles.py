"""A role for every leaf: embedding, head, matrix or vector.

Roles decide which method a recipe gives to a leaf. They come from rules of the
user, from logical axes or from names, never from the number of axes alone:
stacked layers make matrices 3-D and norm scales 2-D.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax.leaves import names, routing
from sage_optax.leaves.rules import ROLES, Rule
from sage_optax.leaves.second_look import RoutingWarning

__all__ = ['ROLES', 'RoutingWarning', 'Rule', 'assign', 'match']


def assign(
  params: Any,
  *,
  rules: Sequence[Rule] | None = None,
  logical_axes: Any = None,
  default_role: str | None = None,
  preset: names.Preset | None = None,
) -> Any:
  """Gives every leaf of `params` a role.

  `rules` come first, then the names of axes (`logical_axes`, or metadata of
  Flax, Haliax and Penzai), then the names of leaves in Flax (Linen and NNX),
  Haiku, Equinox, Hugging Face and PyTorch. A leaf whose path has no name (a
  bare array, lists, tuples) is 'vector' if it has fewer than 2 axes, else
  'matrix'.

  Args:
    params: tree of arrays or `ShapeDtypeStruct`s, boxed or not.
    rules: (pattern, role) pairs. A regular expression is searched in the
      leaf's path, whose names are joined by '/' ('.' within a name counts as
      '/'; last parts that belong to a box, such as 'value', 'array' and
      'data_array', are dropped). A tuple of axis names must equal the leaf's
      logical axes; '*' matches any one name.
    logical_axes: tree like `params` (it may have more leaves) whose leaves are
      tuples of axis names.
    default_role: role of named leaves that no rule knows; 'auto' means matrix
      from two axes on, else vector. None: an error.
    preset: of `sage_optax.layout`, whose library made the names.

  Returns:
    A tree like `params` whose leaves are 'embedding', 'head', 'matrix' or
    'vector'.

  Raises:
    ValueError: a leaf whose role is not clear, a leaf that two rules of one
      list give different roles, an unknown role, or a leaf of fewer than 2
      axes with a role other than 'vector'.

  Example:
    >>> import jax, jax.numpy as jnp, sage_optax
    >>> params = {'embed': {'embedding': jnp.zeros((9, 4))},
    ...           'router': jnp.zeros((4, 2))}
    >>> sage_optax.roles.assign(params, rules=[('router', 'matrix')])
    {'embed': {'embedding': 'embedding'}, 'router': 'matrix'}
  """
  if isinstance(params, jax.Array) and jnp.ndim(params) == 0:
    raise ValueError(
      'roles.assign needs a tree of parameters, got a scalar. '
      'optax.inject_hyperparams calls a callable `roles` with its step count: '
      "pass static_args=('roles',), or rules= instead of roles=."
    )
  matches = match(
    params,
    rules=rules,
    logical_axes=logical_axes,
    default_role=default_role,
    preset=preset,
  )
  return jax.tree.unflatten(
    jax.tree.structure(params), [m.role for m in matches]
  )


assign.is_assign = True  # type: ignore[attr-defined]


def match(params: Any, **kwargs: Any) -> list[routing.Leaf]:
  """As `assign`, but returns the record of every leaf, in their order."""
  said = routing.Routing(**kwargs)
  return routing.resolve(params, said, roles_only=True)
