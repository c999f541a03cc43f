"""Low-rank projections of matrices, and when they are renewed.

The smaller side of a unit [fan_in, fan_out] is projected to `rank`: fan_in if
fan_out >= fan_in, else fan_out. The axes of projectors and of projected
gradients are in the places of the parameter's axes, so that one rule shards
them all:

    smaller side   projector            projected gradient
    fan_in         [..., fan_in, rank]  [..., rank, fan_out]
    fan_out        [..., rank, fan_out] [..., fan_in, rank]
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sage_optax import rounding
from sage_optax.core import lapack, linalg, orthogonal, placement

# 'gaussian', 'svd', 'subspace', or (key, matrix[fan_in, fan_out], count) ->
# P[rank, smaller side].
Projector = str | Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_POWER_ITERATIONS = 2
_PROJECTORS = ('gaussian', 'svd', 'subspace')


class Schedule(NamedTuple):
  """The kind of projectors, and how often they are renewed."""

  rank: int
  update_proj_gap: int
  projector: Projector


def schedule(rank: Any, update_proj_gap: Any, projector: Any) -> Schedule:
  """Checks the arguments; raises ValueError."""
  linalg.check_positive('rank', rank)
  linalg.check_positive('update_proj_gap', update_proj_gap)
  if projector not in _PROJECTORS and not callable(projector):
    raise ValueError(
      f'projector must be one of {", ".join(_PROJECTORS)} or a callable '
      f'(key, matrix, count) -> P[rank, smaller side], got {projector!r}.'
    )
  return Schedule(rank, update_proj_gap, projector)


def projects_fan_in(shape: tuple[int, ...]) -> bool:
  """Whether the smaller side of a matrix of this shape is fan_in."""
  return shape[-1] >= shape[-2]


def rank_axis(shape: tuple[int, ...]) -> int:
  """The axis of the projected gradient that has the rank's size."""
  return -2 if projects_fan_in(shape) else -1


def projector_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
  """Shape of the projectors of matrices of this shape."""
  *batch, fan_in, fan_out = shape
  rank = min(rank, fan_in, fan_out)
  if projects_fan_in(shape):
    return (*batch, fan_in, rank)
  return (*batch, rank, fan_out)


def projected_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
  """Shape of the projected gradient; `rank` never exceeds the smaller side."""
  *batch, fan_in, fan_out = shape
  rank = min(rank, fan_in, fan_out)
  if projects_fan_in(shape):
    return (*batch, rank, fan_out)
  return (*batch, fan_in, rank)


def project(grad: jax.Array, projector: jax.Array) -> jax.Array:
  """Projects a gradient to the subspace."""
  if projects_fan_in(grad.shape):
    return linalg.matmul(projector.mT, grad)
  return linalg.matmul(grad, projector.mT)


def back(
  low: jax.Array, projector: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """Maps from the subspace back to matrices of `shape`."""
  if projects_fan_in(shape):
    return linalg.matmul(projector, low)
  return linalg.matmul(low, projector)


def init_moments(params: Any, rank: int) -> Any:
  """Zeros in the shapes of the projected gradients."""
  return jax.tree.map(
    lambda p: linalg.aligned_zeros(
      p, projected_shape(p.shape, rank), linalg.stat_dtype(p)
    ),
    params,
  )


def init_projectors(params: Any, rank: int) -> Any:
  """Zeros in the shapes of the projectors; the first update computes them."""
  return jax.tree.map(
    lambda p: linalg.aligned_zeros(
      p, projector_shape(p.shape, rank), linalg.stat_dtype(p)
    ),
    params,
  )


def init_norms(params: Any) -> Any:
  """A zero [..., 1, 1] for each matrix, for `linalg.limit_growth`."""
  return jax.tree.map(
    lambda p: linalg.aligned_zeros(
      p, (*p.shape[:-2], 1, 1), linalg.stat_dtype(p)
    ),
    params,
  )


def renew(
  when: Schedule,
  state: Any,
  grads: Any,
  placements: placement.Placements | None = None,
) -> Any:
  """Returns the projectors of this step, renewed every `update_proj_gap` steps.

  Args:
    when: the kind of projectors and the number of steps between renewals; the
      first step is one.
    state: NamedTuple with `count` (updates before this one), `rng_key` and
      `projector`: a tree, or None for 'gaussian', whose projectors are
      generated from their key in each step and not stored.
    grads: tree of gradients, of any dtype.
    placements: how the parameters are sharded, if known.

  Returns:
    A tree like `grads`, in the layout of this module.
  """
  key = rounding.typed_key(state.rng_key)
  refresh = state.count // when.update_proj_gap

  def draw_leaf(place, grad, number, old):
    leaf_key = jax.random.fold_in(rounding.leaf_key(key, number), refresh)

    def new(leaf_key, count, grad, old):
      grad = linalg.as_stat(grad)
      drawn = _draw(when.projector, leaf_key, count, grad, old, place)
      # In `shard_map`, it varies over devices as the old one does.
      return jnp.zeros_like(old) + drawn.astype(old.dtype)

    new = linalg.in_auto_axes(new, old)
    # Otherwise, if the rank of the projected gradient is sharded, the compiler
    # would shard the projector likewise, and gather the gradient.
    return placement.sharded_as(place, new(leaf_key, state.count, grad, old))

  def renew_leaf(place, grad, number, old):
    # One condition per leaf, with gradients in their own dtype: all operands
    # of a condition stay in memory until it is decided.
    return jax.lax.cond(
      state.count % when.update_proj_gap == 0,
      lambda grad, old: draw_leaf(place, grad, number, old),
      lambda grad, old: old,
      grad,
      old,
    )

  if state.projector is None:
    old, function = init_projectors(grads, when.rank), draw_leaf
  else:
    old, function = state.projector, renew_leaf
  numbers = rounding.leaf_numbers(grads)
  return placement.tree_map(function, placements, grads, numbers, old)


def _draw(
  kind: Projector,
  key: jax.Array,
  count: jax.Array,
  grad: jax.Array,
  old: jax.Array,
  place: placement.Placement | None = None,
) -> jax.Array:
  """Returns new projectors of the units of `grad`, in this module's layout.

  Args:
    kind: the kind of projectors.
    key: a key for this leaf and renewal.
    count: int32 scalar, updates before this one.
    grad: gradients [..., fan_in, fan_out], float32 or wider.
    old: the current projectors, from which 'subspace' starts; the new ones have
      the same shape.
    place: how the gradients are sharded, if known.

  Raises:
    ValueError: a callable returns another shape than [rank, smaller side].
  """
  if 0 in old.shape:
    return old
  if kind == 'gaussian':
    return _gaussian(key, old.shape)
  if kind in ('svd', 'subspace'):
    first = _gaussian(key, old.shape).astype(old.dtype)
    # Add a little of other directions. Otherwise, a direction that a gradient
    # once lacked would never come back.
    used, side = sorted(first.shape[-2:])
    other = 0.03 * (used / side) ** 0.5 * first
    start = jnp.where(count == 0, first, old + other)
    find = _singular_vectors if kind == 'svd' else _orthogonal_iteration
    return placement.whole_matrices(find, place, grad, start)
  return _called(kind, key, count, grad, old)


def _gaussian(key, shape):
  """Entries N(0, 1/rank); the rank is the smaller side of the projector."""
  return jax.random.normal(key, shape, jnp.float32) / min(shape[-2:]) ** 0.5


def _singular_vectors(grad, start):
  """Singular vectors of the smaller side, in float32 as the authors' code."""
  shape = grad.shape
  grad, start = _smaller_side_first(grad, start)
  svd = functools.partial(jnp.linalg.svd, full_matrices=False)
  u, _, _ = lapack.of_each(svd, grad.astype(jnp.float32))
  basis = u[..., : start.shape[-1]].astype(start.dtype)
  return _unless_zero(grad, basis, start, shape)


def _orthogonal_iteration(grad, start):
  """Turns the subspace `start` towards the leading singular vectors.

  The basis stays as close to the previous one as possible, since moments are
  kept across renewals.
  """
  shape = grad.shape
  grad, start = _smaller_side_first(grad, start)
  unit = linalg.over_peak(grad, (-2, -1))
  basis = orthogonal.polar(start)
  for _ in range(_POWER_ITERATIONS):
    # Orthonormalized after each product: with the Gram matrix alone, singular
    # values below 3e-4 of the largest would be lost.
    larger = orthogonal.polar(linalg.matmul(unit.mT, basis))
    basis = orthogonal.polar(linalg.matmul(unit, larger))
  return _unless_zero(grad, basis, start, shape)


def _smaller_side_first(grad, start):
  """[..., smaller, larger] and [..., smaller, rank]."""
  if projects_fan_in(grad.shape):
    return grad, start
  return grad.mT, start.mT


def _unless_zero(grad, basis, start, shape):
  """The new basis; a zero gradient keeps the old one."""
  before = orthogonal.polar(start)
  largest = jnp.max(jnp.abs(grad), axis=(-2, -1), keepdims=True)
  basis = jnp.where(largest > 0, basis, before)
  return basis if projects_fan_in(shape) else basis.mT


def _called(function, key, count, grad, old):
  *batch, fan_in, fan_out = grad.shape
  units = math.prod(batch)
  new = jax.vmap(function, (0, 0, None))(
    jax.random.split(key, units), grad.reshape(units, fan_in, fan_out), count
  )
  expected = tuple(sorted(old.shape[-2:]))
  if new.shape[1:] != expected:
    raise ValueError(
      f'The projector must return {list(expected)} ([rank, smaller side]) for '
      f'a matrix {[fan_in, fan_out]}, got {list(new.shape[1:])}.'
    )
  new = new.reshape(*batch, *expected)
  return new.mT if projects_fan_in(grad.shape) else new
