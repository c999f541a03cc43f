"""One record for each leaf: its role, its axes and the evidence for both.

Evidence is used in this order: the user's options, modules, names of axes,
names and shapes that agree. A leaf without evidence is refused.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from sage_optax.leaves import evidence, messages, names, rules, vocabulary
from sage_optax.leaves.records import Leaf, Role, Routing


class Resolved(NamedTuple):
  """Records of all leaves, and a dict from vocabulary length to embedding."""

  leaves: list[Leaf]
  vocabularies: dict[int, str]


def resolve(
  params: Any, routing: Routing, *, roles_only: bool = False
) -> list[Leaf]:
  """The records of `resolve_tree` alone."""
  return resolve_tree(params, routing, roles_only=roles_only).leaves


def resolve_tree(
  params: Any, routing: Routing, *, roles_only: bool = False
) -> Resolved:
  """The record of every leaf, in the order of the leaves.

  Args:
    params: tree of arrays or `ShapeDtypeStruct`s, boxed or not.
    routing: options given by the user.
    roles_only: accept leaves whose axes are not clear.

  Returns:
    A `Leaf` for each leaf of `params`, and the vocabularies.

  Raises:
    ValueError: leaves that are not clear, or malformed options.
  """
  found = records(params, routing)
  refused = [
    leaf
    for leaf in found.leaves
    if leaf.doubt and (leaf.role is None or not roles_only)
  ]
  if refused:
    raise ValueError(
      messages.refusal(found.leaves, refused, found.vocabularies)
    )
  return found


def records(params: Any, routing: Routing) -> Resolved:
  """As `resolve_tree`, but also returns leaves that are not clear."""
  routing = _merge_partial(routing)
  given = _given_roles(params, routing.roles)
  tree = evidence.Evidence(params, routing)
  roles = dict(zip(tree.paths, given, strict=True))
  vocabularies = vocabulary.Vocabularies(params, tree, roles)
  found = []
  for path, role in roles.items():
    leaf = tree.decide(path, None if role is None else Role(role, 'given'))
    leaf = vocabularies.check(leaf)
    default = routing.default_role
    unknown = leaf.role is None and leaf.rule != names.STATISTICS
    if unknown and default is not None:
      if default == 'auto':
        default = rules.auto_role(tree.shapes[path])
      leaf = tree.decide(path, Role(default, 'default_role'))
    found.append(leaf)
  return Resolved(found, vocabularies.lengths)


def is_assign(function: Any) -> bool:
  """Whether this is a partial of `sage_optax.roles.assign`."""
  if not isinstance(function, functools.partial):
    return False
  return getattr(function.func, 'is_assign', False) and not function.args


def _merge_partial(routing: Routing) -> Routing:
  """Merges the keyword arguments of a partial of `roles.assign`."""
  if not is_assign(routing.roles):
    return routing
  without = dataclasses.replace(routing, roles=None)
  return dataclasses.replace(without, **routing.roles.keywords)


def _given_roles(params: Any, roles: Any) -> list[str | None]:
  """The role of each leaf that `roles` gives."""
  count = len(jax.tree.leaves(params))
  if roles is None:
    return [None] * count
  given = roles(params) if callable(roles) else roles
  if not count:  # Optax's empty placeholder.
    return []
  if isinstance(given, str) and not jax.tree.all(
    jax.tree.map(lambda _: False, params)
  ):
    single = jax.tree_util.treedef_is_leaf(jax.tree.structure(params))
    if not single or not callable(roles):
      raise ValueError(
        f'roles must be a tree of roles, got the string {given!r}, which would '
        'be the role of every parameter. optax.inject_hyperparams calls a '
        "callable `roles` with its step count: pass static_args=('roles',), "
        'or rules= instead. For one role on purpose, pass '
        'roles=lambda params: jax.tree.map(lambda _: role, params).'
      )
  try:
    full = jax.tree.broadcast(given, params)
  except ValueError as error:
    raise ValueError(
      'roles must be a callable or a tree like params (or a prefix of it) of '
      f'role names; for rules pass rules=[(pattern, role), ...]. {error}'
    ) from None
  leaves = jax.tree.leaves(full)
  for role in leaves:
    rules.check_role(role)
  return leaves
