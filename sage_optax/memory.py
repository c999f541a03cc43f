"""Size of the optimizer state, computed without allocating it."""

import math
from typing import Any

import jax
import optax


def state_bytes(tx: optax.GradientTransformation, params: Any) -> int:
  """Returns the size of the state `tx.init(params)`.

  Args:
    tx: any gradient transformation.
    params: tree of arrays or `ShapeDtypeStruct`s.

  Returns:
    Bytes of all leaves of the state, including counters.

  Example:
    >>> import jax, jax.numpy as jnp, sage_optax
    >>> params = jax.ShapeDtypeStruct((128, 64), jnp.float32)
    >>> state_bytes(sage_optax.scale_by_sage(), params)  # 4 * (mn + n) + 4
    33028
  """
  return tree_bytes(jax.eval_shape(tx.init, params))


def tree_bytes(tree: Any) -> int:
  """Bytes of all leaves of a tree of arrays or `ShapeDtypeStruct`s."""
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def format_bytes(size: int) -> str:
  """Formats bytes in the largest binary unit that gives at least 1."""
  value, units = float(size), ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  while value >= 1024 and len(units) > 1:
    value, units = value / 1024, units[1:]
  return (
    f'{value:.0f} {units[0]}' if units[0] == 'B' else f'{value:.2f} {units[0]}'
  )
