"""Views of leaves as matrices [..., fan_in, fan_out], and back."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import boxes, linalg, placement
from sage_optax.leaves import metadata
from sage_optax.leaves.axis_names import Axes

# Paths of leaves that an outer transformation views as [..., fan_in, fan_out].
matrices: contextvars.ContextVar[frozenset[str]]
matrices = contextvars.ContextVar('matrices', default=frozenset())


@contextlib.contextmanager
def _as_matrices(views: Any) -> Iterator[None]:
  """Records which leaves are viewed as matrices inside the context."""
  leaves = jax.tree.leaves_with_path(views, is_leaf=_is_view)
  paths = {metadata.leaf_path(key)[0] for key, leaf in leaves if _is_view(leaf)}
  token = matrices.set(matrices.get() | paths)
  try:
    yield
  finally:
    matrices.reset(token)


def with_views(
  tx: optax.GradientTransformation, views_of: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
  """Presents each leaf to `tx` as matrices.

  Args:
    tx: any gradient transformation.
    views_of: maps a tree to the tree of its leaves' `View`s; None for unchanged
      leaves.

  Returns:
    A transformation for parameters in their own layout.
  """
  inner = optax.with_extra_args_support(tx)

  def init_fn(params):
    seen = views_of(params)
    if not _any(seen):
      return inner.init(params)
    with _as_matrices(seen):
      state = inner.init(_apply(View.to_matrix, seen, params))
      state_seen = _state_views(inner, state, seen)
    return _apply(View.from_matrix, state_seen, state)

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    seen = views_of(updates)
    if not _any(seen):
      return inner.update(
        updates, state, params, placements=placements, **extra_args
      )
    places = placement.as_matrices(placements, seen)
    updates = _apply(View.to_matrix, seen, updates)
    if params is not None:
      params = _apply(View.to_matrix, views_of(params), params)
    # The shapes of the state show which of its arrays init changed.
    like = updates if params is None else params
    with _as_matrices(seen):
      state_seen = _state_views(inner, jax.eval_shape(inner.init, like), seen)
      state = _apply(View.to_matrix, state_seen, state)
      updates, state = inner.update(
        updates, state, params, placements=places, **extra_args
      )
    return (
      _apply(View.from_matrix, seen, updates),
      _apply(View.from_matrix, state_seen, state),
    )

  return boxes.opened(optax.GradientTransformationExtraArgs(init_fn, update_fn))


def view(axes: Axes | None, leaf: Any) -> 'View | None':
  """The view of a leaf with these axes; None if it needs none."""
  if axes is None or not (axes.fan_in or axes.fan_out):
    return None
  order = (*axes.batch, *axes.fan_in, *axes.fan_out)
  sides = (len(axes.fan_in), len(axes.fan_out))
  if order == tuple(range(len(order))) and sides in ((1, 1), (0, 1)):
    return None
  sharding = linalg.explicit_sharding(leaf)
  return View(jnp.shape(leaf), axes.fan_in, axes.fan_out, sharding)


def _any(views: Any) -> bool:
  return any(map(_is_view, jax.tree.leaves(views, is_leaf=_is_view)))


def _is_view(x: Any) -> bool:
  return isinstance(x, View)


@dataclasses.dataclass(frozen=True)
class View:
  """How a parameter, and arrays that belong to it, are viewed as matrices.

  Attributes:
    shape: shape of the parameter.
    fan_in: its axes that form fan_in.
    fan_out: its axes that form fan_out.
    sharding: its explicit sharding, if any.
  """

  shape: tuple[int, ...]
  fan_in: tuple[int, ...]
  fan_out: tuple[int, ...]
  sharding: jax.sharding.NamedSharding | None = None

  @property
  def batch(self) -> tuple[int, ...]:
    named = {*self.fan_in, *self.fan_out}
    return tuple(a for a in range(len(self.shape)) if a not in named)

  @property
  def order(self) -> tuple[int, ...]:
    return (*self.batch, *self.fan_in, *self.fan_out)

  def merged(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array in the parameter's layout, viewed as matrices."""
    return (
      *(shape[a] for a in self.batch),
      math.prod(shape[a] for a in self.fan_in),
      math.prod(shape[a] for a in self.fan_out),
    )

  def split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse of `merged`, still in the order of the matrices."""
    sizes = list(shape[:-2])
    for size, axes in zip(shape[-2:], (self.fan_in, self.fan_out), strict=True):
      own = [self.shape[a] for a in axes]
      rest = [1] * (len(axes) - 1)
      sizes += own if size == math.prod(own) else [size, *rest]
    return tuple(sizes)

  def takes(self, shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape fits the parameter's layout."""
    if len(shape) != len(self.batch) + 2:
      return False
    return len(self.split(shape)) == len(self.shape)

  def merged_spec(self, spec: jax.P) -> jax.P:
    """The spec of an array, viewed as matrices."""
    names = _names(spec, len(self.shape))
    merged = (
      tuple(name for a in axes for name in names[a]) or None
      for axes in (*((a,) for a in self.batch), self.fan_in, self.fan_out)
    )
    return jax.P(*merged)

  def to_matrix(self, x: Any) -> jax.Array:
    """Converts from the parameter's layout to matrices; axes may be reduced."""
    x = jnp.asarray(x)
    sharding = linalg.explicit_sharding(x)
    if sharding is not None:
      sharding = jax.sharding.NamedSharding(
        sharding.mesh, self.merged_spec(sharding.spec)
      )
    shape = self.merged(x.shape)
    x = jnp.transpose(x, self.order)
    return jnp.reshape(x, shape, out_sharding=sharding)

  def from_matrix(self, x: jax.Array) -> jax.Array:
    """The inverse; axes of the parameter's size are sharded like it."""
    shape, sharding = self.split(x.shape), None
    if self.sharding is not None:
      names = _names(self.sharding.spec, len(self.shape))
      aligned = (
        names[a] if size == self.shape[a] else ()
        for a, size in zip(self.order, shape, strict=True)
      )
      sharding = jax.sharding.NamedSharding(
        self.sharding.mesh, jax.P(*(name or None for name in aligned))
      )
    x = jnp.reshape(x, shape, out_sharding=sharding)
    inverse = [self.order.index(a) for a in range(len(self.order))]
    return jnp.transpose(x, inverse)


def _names(spec: jax.P, ndim: int) -> list[tuple[str, ...]]:
  """The mesh axes that shard each axis."""
  names = [linalg.mesh_axes(entry) for entry in spec]
  return names + [()] * (ndim - len(names))


def _apply(change: Callable[[View, Any], Any], views: Any, tree: Any) -> Any:
  """Applies `change` to leaves that have a view; others are unchanged."""
  return jax.tree.map(
    lambda view, x: x if view is None else change(view, x),
    views,
    tree,
    is_leaf=lambda view: view is None,
  )


def _state_views(tx: Any, state: Any, views: Any) -> Any:
  """A tree like `state` (of matrices), of the views of its arrays or None."""

  def pick(leaf, view):
    if isinstance(leaf, optax.MaskedNode) or view is None:
      return leaf if isinstance(leaf, optax.MaskedNode) else None
    return view if view.takes(leaf.shape) else None

  return optax.tree.map_params(
    tx,
    pick,
    state,
    views,
    transform_non_params=lambda _: None,
    is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
  )
