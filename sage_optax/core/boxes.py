"""Boxed parameters: arrays with the names of mesh axes that shard them.

Flax Linen boxes arrays as `nn.Partitioned` or `nn.LogicallyPartitioned`, Flax
NNX as `nnx.Variable`. To JAX, a box is a tree node with one child and the names
as static data. A tree map would therefore give the names of a parameter to each
array of its state, even if a reduced axis cannot be sharded like this. Here,
methods see the arrays, and their state gets boxes without the names of reduced
axes. Flax is not imported: a box is recognized by its attributes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Attributes where NNX stores the names; the last two are of older versions.
_NNX_NAMES = ('out_sharding', 'sharding_names', 'sharding')


class _Sealed:
  """A box that JAX treats as a leaf."""

  def __init__(self, box: Any):
    self.box = box


def is_box(x: Any) -> bool:
  """Whether this is a box of Flax Linen or NNX."""
  return _is_linen(x) or _is_nnx(x)


def unbox(tree: Any) -> Any:
  """Replaces the boxes in a tree by their contents."""
  return jax.tree.map(_content, tree, is_leaf=is_box)


def opened(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Extends `tx` to parameters that may be boxed.

  Args:
    tx: a transformation of arrays.

  Returns:
    A transformation whose updates are boxed like the gradients. Its state is
    boxed like the parameters, with names only for axes of the parameter's size.
  """
  inner = optax.with_extra_args_support(tx)

  def init_fn(params):
    state = inner.init(unbox(params))
    boxes = [x for x in jax.tree.leaves(params, is_leaf=is_box) if is_box(x)]
    return _boxed(inner, state, params) if boxes else state

  def update_fn(updates, state, params=None, **extra_args):
    new_updates, new_state = inner.update(
      unbox(updates), unbox(state), unbox(params), **extra_args
    )
    return _reboxed(updates, new_updates), _reboxed(state, new_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_linen(x):
  return hasattr(type(x), 'replace_boxed') and hasattr(x, 'names')


def _is_nnx(x):
  return hasattr(type(x), 'get_metadata') and hasattr(type(x), 'copy')


def _content(x):
  """The content of a box; anything else unchanged."""
  return jax.tree.leaves(x, is_leaf=lambda y: y is not x)[0] if is_box(x) else x


def _put(box, content):
  """The same box with other content."""
  structure = jax.tree.structure(box, is_leaf=lambda y: y is not box)
  return jax.tree.unflatten(structure, [content])


def _reboxed(like, tree):
  return jax.tree.map(
    lambda box, x: _put(box, x) if is_box(box) else x,
    like,
    tree,
    is_leaf=is_box,
  )


def _boxed(tx, state, params):
  """The state, with each array that belongs to a parameter boxed like it."""

  def seal(x):  # A box of None has no array, and the state has none for it.
    return _Sealed(x) if jax.tree.leaves(x) else None

  sealed = jax.tree.map(seal, params, is_leaf=is_box)

  def wrap(x, sealed):
    if isinstance(x, optax.MaskedNode) or not is_box(sealed.box):
      return x
    return _with_names_of(sealed.box, x)

  return optax.tree.map_params(
    tx,
    wrap,
    state,
    sealed,
    is_leaf=lambda x: isinstance(x, optax.MaskedNode),
  )


def _with_names_of(box, x):
  """`x` in a box like its parameter's."""
  shape = jnp.shape(_content(box))
  if jnp.shape(x) == shape:
    return _put(box, x)
  if _is_linen(box):
    names = _aligned(box.names, shape, jnp.shape(x))
    return _put(box, x).replace(names=names)
  metadata = box.get_metadata()
  changed = {
    key: _aligned(metadata[key], shape, jnp.shape(x))
    for key in _NNX_NAMES
    if metadata.get(key)
  }
  return box.copy(x, **changed)


def _aligned(
  names: Sequence[Any], shape: tuple[int, ...], other: tuple[int, ...]
) -> tuple[Any, ...]:
  """The names of an array's axes: None for axes of another size."""
  if len(other) != len(shape) or len(names) > len(shape):
    return ()  # It is unknown which axis a name belongs to.
  padded = (*names, *(None,) * (len(shape) - len(names)))
  return tuple(
    name if size == other_size else None
    for name, size, other_size in zip(padded, shape, other, strict=True)
  )
