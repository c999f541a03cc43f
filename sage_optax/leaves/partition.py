"""`optax.partition` by role, on leaves viewed as matrices."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import boxes
from sage_optax.leaves import messages, views
from sage_optax.leaves.records import Axes, Leaf, Routing
from sage_optax.leaves.routing import resolve_tree


def by_role(
  transforms: Mapping[str, optax.GradientTransformation],
  routing: Routing,
  *,
  elementwise: bool,
) -> optax.GradientTransformationExtraArgs:
  """Updates each leaf by its role's transformation.

  Args:
    transforms: role -> transformation of matrices [..., fan_in, fan_out].
    routing: options given by the user.
    elementwise: whether no transformation needs to know a leaf's shape.

  Returns:
    A transformation whose state is in the layout of the parameters. `init`
    warns once about leaves that should be checked.

  Raises:
    ValueError: from `init` and `update`, leaves whose role or axes are not
      clear.
  """
  # Role and axes of each leaf; a `Leaf` would keep its array in memory.
  known: dict[Any, list[tuple[str | None, Axes | None]]] = {}

  def leaves_of(tree):
    forms = tuple(map(_form, jax.tree.leaves(tree)))
    key = jax.tree.structure(tree), forms, views.matrices.get()
    if key not in known:
      resolved = resolve_tree(tree, routing)
      _check_flat(resolved.leaves, routing, elementwise)
      known[key] = [(leaf.role, leaf.axes) for leaf in resolved.leaves]
      notes = messages.notes(resolved.leaves, resolved.vocabularies)
      for leaf, note in zip(resolved.leaves, notes, strict=True):
        if note:
          warnings.warn(
            f'{leaf.path} {jnp.shape(leaf.leaf)} has the role {leaf.role}: '
            f'{note}. If this is correct, filter this warning; if not, correct '
            'it with rules= and matrix_axes= (see sage_optax.explain).',
            messages.RoutingWarning,
            stacklevel=4,
          )
    return known[key]

  def routed(params):
    leaves = leaves_of(params)
    labels = jax.tree.unflatten(
      jax.tree.structure(boxes.unbox(params)), [role for role, _ in leaves]
    )

    def views_of(tree):
      arrays, treedef = jax.tree.flatten(tree)
      if not arrays:  # Optax's empty placeholder.
        return tree
      if len(arrays) != len(leaves):
        raise ValueError(
          f'There are {len(leaves)} parameters, but {len(arrays)} gradients: '
          'pass trees of the same structure. If gradients are None, filter or '
          'mask the parameters likewise.'
        )
      found = [
        views.view(axes, array)
        for (_, axes), array in zip(leaves, arrays, strict=True)
      ]
      return jax.tree.unflatten(treedef, found)

    return views.with_views(_partition(transforms, labels), views_of)

  def init_fn(params):
    return routed(params).init(params)

  def update_fn(updates, state, params=None, **extra_args):
    tx = routed(updates if params is None else params)
    return tx.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _partition(
  transforms: Mapping[str, optax.GradientTransformation], labels: Any
) -> optax.GradientTransformationExtraArgs:
  """`optax.partition`, also for trees that are callable.

  An Equinox module is both a tree of parameters and a function; Optax would
  call a mask that is such a module.
  """

  def only(role):
    mask = jax.tree.map(lambda label: label == role, labels)

    def mask_of(tree):
      return mask if jax.tree.leaves(tree) else tree

    tx = optax.with_extra_args_support(transforms[role])
    return optax.masked(tx, mask_of)

  def init_fn(params):
    states = {role: only(role).init(params) for role in transforms}
    return optax.transforms.PartitionState(states)

  def update_fn(updates, state, params=None, **extra_args):
    states = {}
    for role in transforms:
      updates, states[role] = only(role).update(
        updates, state.inner_states[role], params, **extra_args
      )
    return updates, optax.transforms.PartitionState(states)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _form(leaf: Any) -> tuple[Any, ...]:
  return getattr(leaf, 'shape', ()), getattr(leaf, 'dtype', type(leaf))


def _check_flat(
  leaves: list[Leaf], routing: Routing, elementwise: bool
) -> None:
  """Rejects a tree that was flattened to one vector."""
  if elementwise or len(leaves) != 1 or routing.default_role is not None:
    return
  (leaf,) = leaves
  if leaf.named or jnp.ndim(leaf.leaf) != 1 or leaf.rule == 'given':
    return
  raise ValueError(
    f'The parameters are one vector {jnp.shape(leaf.leaf)} without a name, as '
    'jax.flatten_util.ravel_pytree and optax.flatten return it, but this '
    'recipe needs the shapes of matrices: pass the unflattened tree. If the '
    "only parameter is a vector, pass default_role='auto'."
  )
