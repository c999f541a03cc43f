"""Sums over the slices of big matrices, as fast as the memory, on one CPU.

XLA's code for CPUs sums over rows at a tenth of the memory's speed. Blocks that
fit in a cache are summed by products, which are fast. The loop over blocks
would gather a sharded matrix, so this is for one device; anywhere else the
plain forms run.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax import _matrix, _mesh

# Measured: below this size, XLA uses one core for a block.
_BLOCK_BYTES = 2**22

Function = Callable[[jax.Array], jax.Array]


def on_one_cpu(
  fast: Callable[..., Any], plain: Callable[..., Any], *arrays: jax.Array
) -> Any:
  """Calls `fast` where all runs on one CPU, `plain` elsewhere."""
  if not _mesh.one_device(arrays[0]):
    return plain(*arrays)
  return jax.lax.platform_dependent(*arrays, cpu=fast, default=plain)


def mean(function: Function, x: jax.Array, axis: int) -> jax.Array:
  """Mean of `function(x)` over an axis, which is kept with size 1.

  Args:
    function: elementwise; it is given float32 or wider.
    x: [..., m, n], of any type; vectors if `axis` is -1.
    axis: -2 or -1.

  Returns:
    The mean in the type that `function` was given; 0 if the axis is empty.
  """

  def plain(x):
    return jnp.sum(function(_matrix.as_stat(x)), axis=axis, keepdims=True)

  def fast(x):
    _, m, n = units(x).shape
    ones = jnp.ones(m, _matrix.stat_dtype(x))

    def unit(i):
      def add(start, block, total):
        part = jax.lax.dynamic_slice_in_dim(ones, start, block.shape[0])
        return total + part @ function(block)

      return fold(add, jnp.zeros(n, ones.dtype), units(x), i)

    sums = jax.lax.map(unit, jnp.arange(units(x).shape[0]))
    return sums.reshape(*x.shape[:-2], 1, n)

  if axis == _matrix.FAN_IN and x.size:
    total = on_one_cpu(fast, plain, x)
  else:
    total = plain(x)
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
  """Folds over the blocks of rows of one matrix.

  Args:
    step: (first row, block[rows, n] in float32 or wider, carry) -> carry.
    carry: before the first block.
    x: [units, m, n].
    unit: index of the matrix.

  Returns:
    The carry after the last block.
  """
  _, m, n = x.shape
  rows = min(m, max(_BLOCK_BYTES // (4 * n), 8))

  def at(start, size, carry):
    block = jax.lax.dynamic_slice(x, (unit, start, 0), (1, size, n))[0]
    return step(start, _matrix.as_stat(block), carry)

  carry = jax.lax.fori_loop(
    0, m // rows, lambda i, carry: at(i * rows, rows, carry), carry
  )
  rest = m % rows
  return at(m - rest, rest, carry) if rest else carry
