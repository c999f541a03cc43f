"""Low-rank projections of matrices, and when they are renewed.

The smaller side of a unit [fan_in, fan_out] is projected to `rank`: fan_in when
fan_out >= fan_in, else fan_out. Both the projector and what it makes keep their
axes where the parameter has them, so that one rule shards any of them:

    smaller side   projector            projected gradient
    fan_in         [..., fan_in, rank]  [..., rank, fan_out]
    fan_out        [..., rank, fan_out] [..., fan_in, rank]
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax import _matrix

# 'gaussian', 'svd', 'subspace', or (key, matrix[fan_in, fan_out], count) ->
# P[rank, smaller side].
Projector = str | Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_POWER_ITERATIONS = 2
_PROJECTORS = ('gaussian', 'svd', 'subspace')


def raw_key(key: int | jax.Array) -> jax.Array:
  """What a random method keeps of its argument `key`: uint32[2], threefry's.

  Args:
    key: a seed (traced too, as `optax.inject_hyperparams` has it), a typed key
      of any kind, or the two numbers themselves.
  """
  if not isinstance(key, int):
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
      return jax.random.bits(key, (2,), jnp.uint32)
    if key.shape == (2,):
      return key.astype(jnp.uint32)
    key = key.astype(jnp.uint32)
  return jax.random.key_data(jax.random.key(key, impl='threefry2x32'))


def check(rank: Any, update_proj_gap: Any, projector: Any) -> None:
  """Raises ValueError unless these are what their names say."""
  _matrix.check_positive('rank', rank)
  _matrix.check_positive('update_proj_gap', update_proj_gap)
  if projector not in _PROJECTORS and not callable(projector):
    raise ValueError(
      f'projector must be one of {", ".join(_PROJECTORS)} or a callable '
      f'(key, matrix, count) -> P[rank, smaller side], got {projector!r}.'
    )


def projects_fan_in(shape: tuple[int, ...]) -> bool:
  """Whether the smaller side of a matrix of this shape is fan_in."""
  return shape[-1] >= shape[-2]


def projected_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
  """Shape of the projected gradient; `rank` never exceeds the smaller side."""
  *batch, fan_in, fan_out = shape
  rank = min(rank, fan_in, fan_out)
  if projects_fan_in(shape):
    return (*batch, rank, fan_out)
  return (*batch, fan_in, rank)


def projector_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
  """Shape of the projector of a matrix of this shape."""
  *batch, fan_in, fan_out = shape
  rank = min(rank, fan_in, fan_out)
  if projects_fan_in(shape):
    return (*batch, fan_in, rank)
  return (*batch, rank, fan_out)


def project(grad: jax.Array, projector: jax.Array) -> jax.Array:
  """The gradient in the subspace."""
  if projects_fan_in(grad.shape):
    return _matrix.matmul(projector.mT, grad)
  return _matrix.matmul(grad, projector.mT)


def back(
  low: jax.Array, projector: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """From the subspace to matrices of `shape`."""
  if projects_fan_in(shape):
    return _matrix.matmul(projector, low)
  return _matrix.matmul(low, projector)


def rank_axis(shape: tuple[int, ...]) -> int:
  """The axis of the projected gradient that has the rank's size."""
  return -2 if projects_fan_in(shape) else -1


def draw(
  kind: Projector,
  rank: int,
  key: jax.Array,
  grad: jax.Array,
  old: jax.Array | None,
  count: jax.Array,
) -> jax.Array:
  """A new projector for each unit of `grad`, in the layout of this module.

  Args:
    kind: which projector.
    rank: its rank; the smaller side where that is less.
    key: a key of this leaf and refresh.
    grad: gradients [..., fan_in, fan_out], float32 or wider.
    old: the projectors so far, from which 'subspace' goes on.
    count: int32 scalar, updates before this one.
  """
  shape = grad.shape
  if kind == 'svd':
    new = _leading_vectors(grad, rank)
  elif kind == 'subspace':
    assert old is not None
    first = _gaussian(key, shape, rank, grad.dtype)
    new = _power_iteration(grad, jnp.where(count == 0, first, old))
  elif kind == 'gaussian':
    new = _gaussian(key, shape, rank, grad.dtype)
  else:
    new = _called(kind, key, grad, count)  # type: ignore[arg-type]
    if new.shape != projector_shape(shape, rank):
      raise ValueError(
        'The projector must return [rank, smaller side] for each matrix '
        f'{shape[-2:]} and rank {rank}.'
      )
  return new.astype(grad.dtype)


def _gaussian(key, shape, rank, dtype):
  """Entries N(0, 1/rank), the rank being the one that is really used."""
  shape = projector_shape(shape, rank)
  rank = min(shape[-2:]) if 0 in shape else min(rank, *shape[-2:])
  # Drawn in float32: the same numbers whatever the statistics' type.
  drawn = jax.random.normal(key, shape, jnp.float32)
  return (drawn / max(rank, 1) ** 0.5).astype(dtype)


def _leading_vectors(grad, rank):
  """Singular vectors of the smaller side, in float32 as the authors have it."""
  u, _, vh = jnp.linalg.svd(grad.astype(jnp.float32), full_matrices=False)
  rank = min(rank, *grad.shape[-2:])
  if projects_fan_in(grad.shape):
    return u[..., :, :rank]
  return vh[..., :rank, :]


def _power_iteration(grad, old):
  """Orthogonal iteration with the Gram matrix of the smaller side."""
  matmul, fan_in = _matrix.matmul, projects_fan_in(grad.shape)
  grad = grad / jnp.maximum(_matrix.norm(grad, (-2, -1)), 1e-30)
  grad, basis = (grad, old) if fan_in else (grad.mT, old.mT)
  for _ in range(_POWER_ITERATIONS):
    basis, _ = jnp.linalg.qr(matmul(grad, matmul(grad.mT, basis)))
  return basis if fan_in else basis.mT


def _called(function, key, grad, count):
  batch, shape = grad.shape[:-2], grad.shape[-2:]
  units = math.prod(batch)
  keys = jax.random.split(key, units)
  new = jax.vmap(function, (0, 0, None))(
    keys, grad.reshape(units, *shape), count
  )
  new = new.reshape(*batch, *new.shape[-2:])
  return new.mT if projects_fan_in(shape) else new
