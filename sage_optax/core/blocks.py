"""Sums over slices of large matrices at memory bandwidth, on one CPU.

XLA's code for CPUs sums over rows at a tenth of the memory bandwidth. Here,
blocks that fit in a cache are summed by matrix products, which are fast. The
loop over blocks would gather a sharded matrix, so this form runs only if
`sharding.with_mesh` names a mesh of one device; otherwise, the plain form runs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax.core import linalg, placement

# Measured: below this size, XLA uses one core for a block.
_BLOCK_BYTES = 2**22
# A product adds sequentially, so long sums lose digits.
_MOST_ROWS = 2048

Function = Callable[[jax.Array], jax.Array]


def mean(
  function: Function,
  x: jax.Array,
  axis: int,
  place: placement.Placement | None = None,
) -> jax.Array:
  """Mean of `function(x)` over an axis, which is kept with size 1.

  Args:
    function: elementwise; its argument is float32 or wider.
    x: [..., m, n], of any dtype; vectors if `axis` is -1.
    axis: -2 or -1.
    place: how the parameter is sharded, if known.

  Returns:
    The mean in the dtype of `function`'s argument; 0 if the axis is empty.
  """

  def fast(x):
    stack = units(x)
    _, m, n = stack.shape
    over_rows = axis == linalg.FAN_IN
    ones = jnp.ones(m if over_rows else n, linalg.stat_dtype(x))

    def unit(i):
      def add(start, block, total):
        if over_rows:
          return total + ones[: block.shape[0]] @ function(block)
        part = function(block) @ ones
        return jax.lax.dynamic_update_slice_in_dim(total, part, start, 0)

      total = jnp.zeros(n if over_rows else m, ones.dtype)
      return fold(add, total, stack, i)

    sums = jax.lax.map(unit, jnp.arange(stack.shape[0]))
    sums = jnp.expand_dims(sums.reshape(*x.shape[:-2], -1), axis)
    return sums / x.shape[axis]

  # XLA's code is fast over columns, but copies an array of a narrow dtype.
  slow = axis == linalg.FAN_IN or x.dtype != linalg.stat_dtype(x)
  one = placement.on_one_device(place, x)
  if not (slow and one and x.ndim >= 2 and x.size):
    return plain_mean(function, x, axis)
  return jax.lax.platform_dependent(
    x, cpu=fast, default=lambda x: plain_mean(function, x, axis)
  )


def plain_mean(function: Function, x: jax.Array, axis: int) -> jax.Array:
  """As `mean`, for any devices."""
  total = jnp.sum(function(linalg.as_stat(x)), axis=axis, keepdims=True)
  return total / max(x.shape[axis], 1)


def units(x: jax.Array) -> jax.Array:
  """[..., m, n] as [units, m, n]."""
  return x.reshape(-1, *x.shape[-2:])


def fold(
  step: Callable[[Any, jax.Array, Any], Any],
  carry: Any,
  x: jax.Array,
  unit: jax.typing.ArrayLike,
) -> Any:
  """Folds over blocks of rows of one matrix.

  Args:
    step: (first row, block[rows, n] in float32 or wider, carry) -> carry.
    carry: the carry before the first block.
    x: [units, m, n].
    unit: index of the matrix.

  Returns:
    The carry after the last block.
  """
  _, m, n = x.shape
  rows = min(m, max(_BLOCK_BYTES // (4 * n), 8), _MOST_ROWS)

  def at(start, size, carry):
    return step(start, rows_of(x, unit, start, size), carry)

  carry = jax.lax.fori_loop(
    0, m // rows, lambda i, carry: at(i * rows, rows, carry), carry
  )
  rest = m % rows
  return at(m - rest, rest, carry) if rest else carry


def rows_of(x: jax.Array, unit: Any, start: Any, size: int) -> jax.Array:
  """Some rows of a matrix of x[units, m, n], in float32 or wider."""
  if x.dtype != linalg.stat_dtype(x):
    # Without the barrier, XLA would convert the whole array to float32 before
    # the loop, because only the indices depend on the iteration.
    x, unit, start = jax.lax.optimization_barrier((x, unit, start))
  rows = jax.lax.dynamic_slice(x, (unit, start, 0), (1, size, x.shape[2]))[0]
  return linalg.as_stat(rows)
