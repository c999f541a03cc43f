"""Times optimizers alternately, so that all see the same noise."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import optimizers_under_test as under_test
from sage_optax import memory

# Limits of one timing of an optimizer, which takes at least one step.
_SECONDS = 0.5
_STEPS = 10
_BETWEEN = 5  # Optimizers between two timings of the first, the baseline.


class Timeable(Protocol):
  """An optimizer that can be timed.

  Attributes:
    name: Its name in tables.
  """

  name: str

  def time_steps(self, steps: int, seconds: float) -> list[float]:
    """Times steps after a warm-up step.

    Args:
      steps: Largest number of steps.
      seconds: Time after which no further step starts; there is at least one.

    Returns:
      The seconds of each step.
    """


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled update and its application.

  Attributes:
    run: (params, state, grads) -> (params, state); the first two are donated.
    seconds: Compilation time.
    temp_bytes: Size of the temporaries.
  """

  run: Callable[..., Any]
  seconds: float
  temp_bytes: int


def lower(tx: optax.GradientTransformation, params: Any, state: Any) -> Any:
  """Lowers an update and its application for abstract arguments."""

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  jitted = jax.jit(step, donate_argnums=(0, 1))
  return jitted.lower(params, state, params)


def compile_update(tx: optax.GradientTransformation, params: Any) -> Compiled:
  """Compiles an update and its application for the CPU."""
  lowered = lower(tx, params, jax.eval_shape(tx.init, params))
  began = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - began
  temp_bytes = compiled.memory_analysis().temp_size_in_bytes
  return Compiled(compiled, seconds, temp_bytes)


class JaxOptimizer:
  """A JAX optimizer; parameters are shared, each timing has a new state.

  Attributes:
    name: Its name in tables.
    compiled: Its update.
    floor_bytes: Bytes that any update with this state must move.
    state_bytes: Size of its state.
  """

  def __init__(
    self, optimizer: under_test.OptimizerUnderTest, tensors: 'Tensors'
  ):
    self.name = optimizer.name
    self._tensors = tensors
    self._unstacked = optimizer.unstacked
    params = tensors.params
    if self._unstacked:
      params = jax.eval_shape(under_test.unstack, params)
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
    )
    self._init = jax.jit(optimizer.tx.init)
    self.compiled = compile_update(optimizer.tx, abstract)
    self.state_bytes = memory.state_bytes(optimizer.tx, abstract)
    self.floor_bytes = floor_bytes(
      memory.tree_bytes(abstract), self.state_bytes
    )

  def time_steps(self, steps: int, seconds: float) -> list[float]:
    """See `Timeable`."""
    return self._steps(steps, seconds, in_mid_run)[1:]

  def first_step(self) -> float:
    """Returns the seconds of a run's first step, which may initialize state."""
    return self._steps(0, 0.0, lambda state: state)[0]

  def _steps(self, steps, seconds, prepare) -> list[float]:
    """Takes a warm-up step and others; returns the seconds of all."""
    params, grads = self._tensors.params, self._tensors.grads
    if self._unstacked:
      params, grads = (
        under_test.unstack(params),
        under_test.unstack(grads),
      )
    state = jax.block_until_ready(prepare(self._init(params)))
    found: list[float] = []
    while len(found) < min(2, steps + 1) or (
      len(found) <= steps and sum(found[1:]) < seconds
    ):
      began = time.perf_counter()
      params, state = self.compiled.run(params, state, grads)
      jax.block_until_ready((params, state))
      found.append(time.perf_counter() - began)
    if not self._unstacked:
      self._tensors.params = params
    return found


class Tensors:
  """Parameters and gradients with values as in training.

  Attributes:
    params: The parameters; each timing donates and replaces them.
    grads: The gradients.
  """

  def __init__(self, to: under_test.Tree, seed: int = 0):
    rng = np.random.default_rng(seed)
    self.params = jax.tree.map(lambda x: _normal(rng, x.shape, 0.02), to.params)
    self.grads = jax.tree.map(
      lambda x, role: _gradient(rng, x.shape, role), to.params, to.roles
    )


def floor_bytes(param_bytes: int, state_bytes: int) -> int:
  """Returns the bytes that an update must move.

  It reads the gradient, which is as large as the parameters, and reads and
  writes parameters and state.
  """
  return param_bytes + 2 * (param_bytes + state_bytes)


def in_mid_run(state: Any) -> Any:
  """Sets counters to 1, so that the next step is an ordinary one.

  At 0, methods compute projectors and initialize state.
  """

  def later(path, leaf):
    is_count = path and getattr(path[-1], 'name', '') == 'count'
    return jnp.ones_like(leaf) if is_count else leaf

  return jax.tree_util.tree_map_with_path(later, state)


def time_rounds(
  optimizers: Sequence[Timeable],
  rounds: int,
  say: Callable[[str], None] = lambda _: None,
) -> dict[str, list[list[float]]]:
  """Times optimizers in rounds: A B C, A B C, ...

  The first is the baseline, and is timed more than once per round, because the
  location of its state in memory changes its time by a third.

  Args:
    optimizers: The optimizers.
    rounds: Number of rounds. An optimizer whose steps have taken twice the
      planned time is left out of further rounds.
    say: Receives progress messages.

  Returns:
    Name -> seconds of its steps, round by round.
  """
  found: dict[str, list[list[float]]] = {x.name: [] for x in optimizers}
  first, *others = optimizers
  for i in range(rounds):
    say(f'round {i + 1} of {rounds}')
    base = found[first.name]
    base.append(first.time_steps(_STEPS, _SECONDS))
    for k, optimizer in enumerate(others, 1):
      timings = found[optimizer.name]
      if sum(map(sum, timings)) < 2 * rounds * _SECONDS:
        timings.append(optimizer.time_steps(_STEPS, _SECONDS))
      if k % _BETWEEN == 0:
        base[-1] += first.time_steps(_STEPS, _SECONDS)
  return found


@dataclasses.dataclass(frozen=True)
class Timing:
  """Times of steps.

  Attributes:
    ms: Median.
    low: First quartile.
    high: Third quartile.
    ratio: Ratio to the baseline's median of the same round, median over rounds.
    steps: Number of steps.
  """

  ms: float
  low: float
  high: float
  ratio: float
  steps: int


def summary(
  found: Mapping[str, list[list[float]]], baseline: str
) -> dict[str, Timing]:
  """Returns medians and spreads of the result of `time_rounds`."""
  result = {}
  base = [statistics.median(steps) for steps in found[baseline]]
  for name, timings in found.items():
    ms = [1e3 * seconds for steps in timings for seconds in steps]
    ratios = [
      statistics.median(steps) / other
      for steps, other in zip(timings, base, strict=False)
    ]
    spread = ms if len(ms) > 1 else 2 * ms
    low, _, high = statistics.quantiles(spread, n=4, method='inclusive')
    median = statistics.median(ms)
    ratio = statistics.median(ratios)
    result[name] = Timing(median, low, high, ratio, len(ms))
  return result


def _normal(rng: np.random.Generator, shape: Any, std: float) -> jax.Array:
  return jnp.asarray(std * rng.standard_normal(shape, np.float32))


def _gradient(rng: np.random.Generator, shape: Any, role: str) -> jax.Array:
  """Random; rows of embeddings are scaled by the frequency of their token."""
  grad = 1e-3 * rng.standard_normal(shape, np.float32)
  if role == 'embedding':
    rows = rng.zipf(1.2, size=2 * shape[0])
    seen = np.bincount(rows[rows <= shape[0]] - 1, minlength=shape[0])
    grad *= np.sqrt(seen, dtype=np.float32)[:, None]
  return jnp.asarray(grad)
