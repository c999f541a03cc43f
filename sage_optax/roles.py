"""A role for every leaf: embedding, head, matrix or vector.

A leaf's role decides which method a recipe applies to it. Roles come from the
user's rules, from logical axes or from names, never from the number of axes
alone: with stacked layers, matrices are 3-D and norm scales are 2-D.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax.leaves import presets, routing
from sage_optax.leaves.messages import RoutingWarning
from sage_optax.leaves.rules import ROLES, Rule

__all__ = ['ROLES', 'RoutingWarning', 'Rule', 'assign', 'match']


def assign(
  params: Any,
  *,
  rules: Sequence[Rule] | None = None,
  logical_axes: Any = None,
  default_role: str | None = None,
  preset: presets.Preset | None = None,
) -> Any:
  """Gives every leaf of `params` a role.

  `rules` come first, then `logical_axes`, modules of Equinox and Haliax, names
  of axes in metadata of Flax, Haliax and Penzai, and the names that leaves have
  in Flax (Linen and NNX), Haiku, Equinox, Hugging Face and PyTorch. A leaf
  whose path has no name (a bare array, lists, tuples) is 'vector' if it has
  fewer than 2 axes, else 'matrix'.

  Args:
    params: tree of arrays or `ShapeDtypeStruct`s, boxed or not.
    rules: (pattern, role) pairs. A pattern is either a regular expression,
      searched in the leaf's path, whose names are joined by '/' ('.' within a
      name counts as '/'; trailing parts that belong to a box, such as 'value',
      'array' and 'data_array', are dropped); or a tuple of axis names that must
      equal the leaf's logical axes, where '*' matches any one name.
    logical_axes: tree like `params` (it may have more leaves) whose leaves are
      tuples of axis names.
    default_role: role of named leaves whose role is not clear; 'auto' means
      matrix for two or more axes, else vector. None: raise an error.
    preset: the layout of a library, from `sage_optax.layout`.

  Returns:
    A tree like `params` whose leaves are 'embedding', 'head', 'matrix' or
    'vector'.

  Raises:
    ValueError: a leaf whose role is not clear, a leaf to which two rules of one
      list give different roles, an unknown role, or a leaf with fewer than 2
      axes and a role other than 'vector'.

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
  """As `assign`, but returns a list with a record for each leaf, in order."""
  given = routing.Routing(**kwargs)
  return routing.resolve(params, given, roles_only=True)
