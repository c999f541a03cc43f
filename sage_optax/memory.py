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
