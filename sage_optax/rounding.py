"""Stochastic rounding: state and parameters in bfloat16 that still learn.

Rounding to nearest loses every change below half a unit in the last place:
0.4 % in bfloat16. Rounding up with the probability of the part cut off is right
on average, so small steps add up.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax import _matrix

_IMPL = 'threefry2x32'  # its bits do not depend on the mesh


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 to bfloat16, up or down with the right probabilities.

  Args:
    x: array of any shape; wider types are rounded to float32 first.
    key: a key of `jax.random`.

  Returns:
    A bfloat16 array whose expectation is `x`. Values that bfloat16 has, zeros,
    infinities and NaN stay as they are; beyond its largest number (3.3895e38)
    it is that or infinity.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> x = jnp.full(10_000, 1.001)  # bfloat16 has 1 and 1.0078
    >>> rounded = stochastic_round(x, jax.random.key(0)).astype(jnp.float32)
    >>> print(rounded.mean().round(3))
    1.001
  """
  x = x.astype(jnp.float32)
  noise = jax.random.bits(
    key, x.shape, jnp.uint16, out_sharding=_matrix.explicit_sharding(x)
  )
  # Into the 16 bits that are cut off: a carry rounds the magnitude up.
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
  cut = jax.lax.bitcast_convert_type(
    (bits >> 16).astype(jnp.uint16), jnp.bfloat16
  )
  return jnp.where(jnp.isfinite(x), cut, x.astype(jnp.bfloat16))


def leaf_key(key: jax.Array, path: tuple[Any, ...]) -> jax.Array:
  """A key of its own for the leaf at `path` of a tree."""
  name = jax.tree_util.keystr(path)
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def low_precision_state(
  tx: optax.GradientTransformation, dtype: Any, *, slot: str | None = None
) -> optax.GradientTransformation:
  """Keeps what `tx` remembers in float32 or bfloat16.

  `tx` itself sees and makes float32; its state has a field `count`, from which
  (with the leaf's path) the noise of the rounding is drawn, so the state gains
  no slot and the mesh changes nothing.

  Args:
    tx: a transformation whose state is a NamedTuple with a field `count`.
    dtype: float32 or bfloat16; None: the state as `tx` has it.
    slot: name of the only field to change. None: all.

  Returns:
    A transformation with a state of the same structure, whose floating arrays
    have this dtype.

  Raises:
    ValueError: another dtype.
  """
  if dtype is None:
    return tx
  dtype = jnp.dtype(dtype)
  if dtype not in (jnp.float32, jnp.bfloat16):
    raise ValueError(
      f'The dtype of the state must be float32 or bfloat16, got {dtype.name}.'
    )

  def on_slots(function, state):
    def change(path, leaf):
      kept = slot is not None and getattr(path[0], 'name', None) != slot
      if kept or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
      return function(path, leaf)

    return jax.tree_util.tree_map_with_path(change, state)

  def init_fn(params):
    return on_slots(lambda _, leaf: leaf.astype(dtype), tx.init(params))

  def update_fn(updates, state, params=None):
    wide = on_slots(lambda _, leaf: leaf.astype(jnp.float32), state)
    updates, wide = tx.update(updates, wide, params)
    key = jax.random.fold_in(jax.random.key(0, impl=_IMPL), wide.count)

    def store(path, leaf):
      if dtype == jnp.float32:
        return leaf.astype(dtype)
      return stochastic_round(leaf, leaf_key(key, path))

    return updates, on_slots(store, wide)

  return optax.GradientTransformation(init_fn, update_fn)


class StochasticRoundUpdatesState(NamedTuple):
  """State of `stochastic_round_updates`.

  Attributes:
    count: int32 scalar, number of updates so far.
    inner_state: state of the transformation, for float32 parameters.
  """

  count: jax.Array  # type: ignore[assignment]
  inner_state: optax.OptState


def stochastic_round_updates(
  tx: optax.GradientTransformation, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
  """Lets parameters kept in bfloat16 learn from steps below their resolution.

  `tx` runs on float32 gradients and parameters. Its step is added in float32
  and the sum rounded stochastically; the update is the difference to the old
  parameter, in float32, so that `optax.apply_updates` arrives at the rounded
  value exactly (a weight that falls below 2^-16 of itself in one step: within
  2^-24 of what it was). Weight decay and small learning rates, which rounding
  to nearest loses in bfloat16 altogether, act on average as they would in
  float32.

  It has to be the last transformation: a chain around it would change steps
  that are already whole units of bfloat16, and wrappers that choose between
  its updates and zeros of the gradients' type (`optax.apply_if_finite`) belong
  inside. `optax.MultiSteps` may be around it. Parameters of other types are
  left to `tx` as they are.

  Args:
    tx: the whole optimizer.
    seed: of the noise, which depends on the count and the leaf's path too and
      not on the mesh.

  Returns:
    A transformation whose `update` needs `params`. Updates of bfloat16
    parameters are float32.

  Raises:
    ValueError: `update` is called without `params`.

  Example:
    >>> import jax.numpy as jnp, optax, sage_optax
    >>> params = jnp.ones(4096, jnp.bfloat16)
    >>> tx = sage_optax.stochastic_round_updates(optax.sgd(1e-4))
    >>> updates, _ = tx.update(jnp.ones(4096), tx.init(params), params)
    >>> moved = optax.apply_updates(params, updates) < 1
    >>> print(bool(moved.any()), bool(moved.all()))  # by 1/256 each
    True False
  """
  inner = optax.with_extra_args_support(tx)

  def widen(tree):
    return jax.tree.map(
      lambda x: (
        x.astype(jnp.float32) if jnp.result_type(x) == jnp.bfloat16 else x
      ),
      tree,
    )

  def init_fn(params):
    return StochasticRoundUpdatesState(
      jnp.zeros([], jnp.int32), inner.init(widen(params))
    )

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError('stochastic_round_updates needs update(..., params).')
    wide = widen(params)
    updates, inner_state = inner.update(
      widen(updates), state.inner_state, wide, **extra_args
    )
    count = optax.safe_increment(state.count)
    key = jax.random.fold_in(jax.random.key(seed, impl=_IMPL), count)

    def step(path, update, param, wide_param):
      if jnp.result_type(param) != jnp.bfloat16:
        return update
      new = stochastic_round(wide_param + update, leaf_key(key, path))
      return new.astype(jnp.float32) - wide_param

    updates = jax.tree_util.tree_map_with_path(step, updates, params, wide)
    return updates, StochasticRoundUpdatesState(count, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
