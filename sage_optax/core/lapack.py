"""Factorizations of batches of matrices."""

from collections.abc import Callable
from typing import Any

import jax


def of_each(function: Callable[[jax.Array], Any], x: jax.Array) -> Any:
  """Applies a factorization to each matrix; on CPUs, one after the other.

  There, jaxlib distributes a batch over the same threads that wait for it: if
  there are as many devices as threads, all threads wait forever.

  Args:
    function: such as `jnp.linalg.svd`; returns arrays whose leading axes are
      those of its argument.
    x: matrices [..., m, n].

  Returns:
    What `function(x)` returns.
  """

  def in_turn(x):
    matrices = x.reshape(-1, *x.shape[-2:])
    return jax.tree.map(
      lambda y: y.reshape(*x.shape[:-2], *y.shape[1:]),
      jax.lax.map(function, matrices),
    )

  if x.ndim == 2:
    return function(x)
  return jax.lax.platform_dependent(x, cpu=in_turn, default=function)
