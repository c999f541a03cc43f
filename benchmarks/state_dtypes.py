"""Size, error and time of bfloat16 and int8 states.

python -m benchmarks.state_dtypes

Prints a Markdown table. The gradients are normal, with means and sizes that
differ by row and column, and become ten times smaller halfway. The error is the
norm of the difference of all updates from those with float32 state, divided by
the norm of the latter. Times are the minimum of several runs, which alternate
between the dtypes.
"""

import functools
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


def _seconds(transformations: list[Any], rounds: int = 7) -> list[float]:
  """Minimum time of a step, for each transformation."""
  grads = jax.random.normal(jax.random.key(0), _TIMED)
  update = [jax.jit(tx.update, donate_argnums=1) for tx in transformations]
  states = [tx.init(grads) for tx in transformations]
  times = [float('inf')] * len(transformations)
  for _ in range(rounds):
    for i, step in enumerate(update):
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
  print('| method | state | bytes per number | error | time |')
  print('|---|---|---:|---:|---:|')
  for name, method in _METHODS.items():
    transformations = [method(state_dtype=dtype) for dtype in _DTYPES]
    times = _seconds(transformations)
    exact = _updates(transformations[0], size)
    for dtype, tx, seconds in zip(_DTYPES, transformations, times, strict=True):
      error = jnp.linalg.norm(_updates(tx, size) - exact)
      error = error / jnp.linalg.norm(exact)
      share = sage_optax.memory.state_bytes(tx, size) / size.size
      print(
        f'| {name} | {dtype} | {share:.2f} | {error:.3f} | '
        f'{seconds / times[0]:.2f} |'
      )


if __name__ == '__main__':
  main()
