"""Size, temporaries, error and time of bfloat16 and int8 states.

python -m benchmarks.state_dtypes

Prints a Markdown table. The gradients are normal, with means and sizes that
differ by row and column, and become ten times smaller halfway. The error is the
norm of the difference of all updates from those with float32 state, divided by
the norm of the latter. Temporaries are those of the compiled update of one
leaf, in bytes per number. Times are the minimum of several runs, which
alternate between the dtypes.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sage_optax

_DTYPES = ('float32', 'bfloat16', 'int8')
_METHODS: dict[str, Callable[..., Any]] = {
  'adamw': sage_optax.scale_by_adam,
  'lion': sage_optax.scale_by_lion,
  'sage': sage_optax.scale_by_sage,
  'scale, momentum 0.9': functools.partial(
    sage_optax.scale_by_column_norm, momentum=0.9
  ),
  'muon': sage_optax.scale_by_muon,
}
_STEPS, _SHAPE, _TIMED = 400, (64, 256), (4, 1024, 1024)


def _updates(tx: Any, size: jax.Array) -> jax.Array:
  """The updates of all steps."""

  def step(state, index):
    noise = jax.random.normal(jax.random.key(index), _SHAPE)
    level = jnp.where(index < _STEPS // 2, 1.0, 0.1)
    update, state = tx.update(level * size * (noise + 0.3), state)
    return state, update

  return jax.lax.scan(step, tx.init(size), jnp.arange(_STEPS))[1]


def _compiled(tx: Any) -> Any:
  """Compiles the update of one leaf."""
  grads = jax.ShapeDtypeStruct(_TIMED, jnp.float32)
  state = jax.eval_shape(tx.init, grads)
  return jax.jit(tx.update, donate_argnums=1).lower(grads, state).compile()


def _seconds(
  transformations: list[Any], updates: list[Any], rounds: int = 7
) -> list[float]:
  """Minimum time of a step, for each transformation."""
  grads = jax.random.normal(jax.random.key(0), _TIMED)
  states = [tx.init(grads) for tx in transformations]
  times = [float('inf')] * len(updates)
  for _ in range(rounds):
    for i, step in enumerate(updates):
      start = time.perf_counter()
      found, states[i] = jax.block_until_ready(step(grads, states[i]))
      del found
      times[i] = min(times[i], time.perf_counter() - start)
  return times


def main() -> None:
  """Prints the table."""
  rng = np.random.default_rng(0)
  exponents = rng.uniform(-2, 2, (64, 1)) + rng.uniform(-1, 1, 256)
  size = jnp.asarray(10.0**exponents, jnp.float32)
  print('| method | state | bytes per number | temporaries | error | time |')
  print('|---|---|---:|---:|---:|---:|')
  for name, method in _METHODS.items():
    transformations = [method(state_dtype=dtype) for dtype in _DTYPES]
    updates = [_compiled(tx) for tx in transformations]
    times = _seconds(transformations, updates)
    exact = _updates(transformations[0], size)
    for i, tx in enumerate(transformations):
      error = jnp.linalg.norm(_updates(tx, size) - exact)
      error = error / jnp.linalg.norm(exact)
      share = sage_optax.memory.state_bytes(tx, size) / size.size
      temporary = updates[i].memory_analysis().temp_size_in_bytes
      print(
        f'| {name} | {_DTYPES[i]} | {share:.2f} | '
        f'{temporary / math.prod(_TIMED):.2f} | {error:.3f} | '
        f'{times[i] / times[0]:.2f} |'
      )


if __name__ == '__main__':
  argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  ).parse_args()
  main()
