"""Stochastic rounding, so that bfloat16 state and parameters keep learning.

Rounding to nearest loses every change below half a unit in the last place:
0.4 % in bfloat16. Rounding up with a probability equal to the truncated
fraction is exact on average, so small steps add up.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import eight_bits, linalg, noise

_IMPL = 'threefry2x32'  # its bits do not depend on the mesh


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 to bfloat16, up or down with the right probabilities.

  Args:
    x: array of any shape; wider types are rounded to float32 first.
    key: a key of `jax.random`.

  Returns:
    A bfloat16 array whose expectation is `x`. Values that bfloat16 can
    represent, infinities and NaN are unchanged. Values above the largest
    bfloat16 number (3.3895e38) become that number or infinity.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> x = jnp.full(10_000, 1.001)  # bfloat16 has 1 and 1.0078
    >>> rounded = stochastic_round(x, jax.random.key(0)).astype(jnp.float32)
    >>> print(rounded.mean().round(3))
    1.001
  """
  x = x.astype(jnp.float32)
  # Added to the 16 bits that are truncated: a carry rounds the magnitude up.
  added = noise.bits(key, x) >> 16
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + added
  cut = jax.lax.bitcast_convert_type(
    (bits >> 16).astype(jnp.uint16), jnp.bfloat16
  )
  return jnp.where(jnp.isfinite(x), cut, x.astype(jnp.bfloat16))


def raw_key(key: int | jax.Array) -> jax.Array:
  """Returns the state that a random method keeps of its key: uint32[2].

  Args:
    key: a seed (possibly traced, as under `optax.inject_hyperparams`), a typed
      key of any implementation, or the two threefry numbers themselves.

  Raises:
    ValueError: `key` is none of these.
  """
  if not isinstance(key, int):
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
      return jax.random.bits(key, (2,), jnp.uint32)
    if not jnp.issubdtype(key.dtype, jnp.integer) or key.shape not in (
      (),
      (2,),
    ):
      raise ValueError(
        'key must be an integer, a key of jax.random, or its two integers, got '
        f'{key.dtype.name}{list(key.shape)}.'
      )
    if key.shape == (2,):
      return jnp.array(key, jnp.uint32)  # A copy: states are donated.
  return jax.random.key_data(jax.random.key(key, impl=_IMPL))


def typed_key(raw: jax.Array) -> jax.Array:
  """The inverse of `raw_key`: a typed threefry key."""
  return jax.random.wrap_key_data(raw, impl=_IMPL)


def leaf_numbers(tree: Any) -> Any:
  """Returns a tree like `tree`, of each leaf's index among the leaves.

  Random methods distinguish leaves by this number, never by name. Leaves masked
  by `optax.masked` or `optax.partition` are counted, so a leaf has the same
  number as in the whole tree. Renaming, or wrapping the tree, changes no number
  as long as JAX's order of the leaves stays the same; for dicts, that is the
  order of the sorted keys.
  """

  def is_masked(x):
    return isinstance(x, optax.MaskedNode)

  leaves, structure = jax.tree.flatten(tree, is_leaf=is_masked)
  numbers = [x if is_masked(x) else i for i, x in enumerate(leaves)]
  return jax.tree.unflatten(structure, numbers)


def leaf_key(key: jax.Array, number: jax.typing.ArrayLike) -> jax.Array:
  """Returns a distinct key for the leaf with this number of `leaf_numbers`."""
  return jax.random.fold_in(key, number)


def check_dtype(dtype: Any) -> None:
  """Raises ValueError unless `dtype` is None or supported for states."""
  if dtype is not None:
    try:
      name = jnp.dtype(dtype).name
    except TypeError:  # not the name of a dtype
      name = dtype
    allowed = ('float32', 'bfloat16', 'int8')
    linalg.check_choice('The dtype of the state', name, allowed)


def refuse_int8(dtype: Any, method: str, reason: str) -> None:
  """Raises ValueError if `dtype` is int8, for methods that gain nothing."""
  check_dtype(dtype)
  if dtype is not None and jnp.dtype(dtype) == jnp.int8:
    use = "use 'bfloat16' or None"
    raise ValueError(f'{method} has no state in int8: {reason}; {use}.')


def one_dtype(state_dtype: Any, mu_dtype: Any) -> Any:
  """Returns the one that is not None; raises ValueError if both are given."""
  if None not in (state_dtype, mu_dtype):
    raise ValueError(
      f'Give state_dtype or mu_dtype, not both, got {state_dtype!r} and '
      f'{mu_dtype!r}.'
    )
  return mu_dtype if state_dtype is None else state_dtype


def low_precision_state(
  tx: optax.GradientTransformation,
  dtype: Any,
  *,
  slot: str | None = None,
  constant: tuple[str, ...] = (),
) -> optax.GradientTransformation:
  """Stores the state of `tx` in float32, bfloat16 or int8.

  `tx` itself computes in float32. The noise of the rounding is derived from the
  state's field `count` and the leaf's index, so the state needs no additional
  field, and the result does not depend on the mesh.

  Args:
    tx: a transformation whose state is a NamedTuple with a field `count`.
    dtype: float32, bfloat16 or int8; None: leave the state unchanged. With
      int8 (`core.eight_bits`), only `mu` and `nu` are int8; other fields stay
      float32.
    slot: name of the only field to change. None: all.
    constant: fields that stay the same for many steps; they are rounded to
      nearest.

  Returns:
    A transformation with a state of the same structure, whose floating-point
    arrays have this dtype; in int8, `mu` and `nu` are `eight_bits.EightBits`.

  Raises:
    ValueError: an unsupported dtype.
  """
  check_dtype(dtype)
  if dtype is None:
    return tx
  dtype = jnp.dtype(dtype)
  if dtype == jnp.int8:
    moments = ('mu', 'nu') if slot is None else (slot,)
    return eight_bits.kept_in(tx, moments, _noise)
  inner = optax.with_extra_args_support(tx)

  def on_slots(function, state):
    def change(path, leaf, number):
      name = getattr(path[0], 'name', None)
      kept = slot is not None and name != slot
      if kept or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
      return function(name, number, leaf)

    numbers = leaf_numbers(state)
    return jax.tree_util.tree_map_with_path(change, state, numbers)

  def cast(to):
    return lambda name, number, leaf: leaf.astype(to)

  def init_fn(params):
    return on_slots(cast(dtype), inner.init(params))

  def update_fn(updates, state, params=None, **extra_args):
    wide = on_slots(cast(jnp.float32), state)
    updates, wide = inner.update(updates, wide, params, **extra_args)
    key = jax.random.fold_in(jax.random.key(0, impl=_IMPL), wide.count)

    def store(name, number, leaf):
      if dtype == jnp.float32 or name in constant:
        return leaf.astype(dtype)
      return stochastic_round(leaf, leaf_key(key, number))

    return updates, on_slots(store, wide)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _noise(count, slot):
  """Returns a function from a tree to uniform noise in [0, 1) of its shapes."""
  key = jax.random.fold_in(jax.random.key(0, impl=_IMPL), count)
  key = jax.random.fold_in(key, slot == 'nu')

  def draw(number, x):
    return noise.uniform(leaf_key(key, number), x)

  return lambda tree: jax.tree.map(draw, leaf_numbers(tree), tree)


class StochasticRoundUpdatesState(NamedTuple):
  """State of `stochastic_round_updates`.

  Attributes:
    count: int32 scalar, number of updates so far.
    inner_state: state of the wrapped transformation, for float32 parameters.
  """

  count: jax.Array  # type: ignore[assignment]
  inner_state: optax.OptState


def stochastic_round_updates(
  tx: optax.GradientTransformation, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
  """Trains bfloat16 parameters with updates below their resolution.

  `tx` runs on float32 gradients and parameters. Its update is added in float32
  and the sum is rounded stochastically. The returned update is the difference
  to the old parameter, in float32, so that `optax.apply_updates` (Equinox's
  does not round) gives exactly the rounded value (a weight that shrinks below
  2^-16 of itself in one step: within 2^-24 of its old value). Weight decay and
  small learning rates, which rounding to nearest would lose entirely in
  bfloat16, act on average as in float32.

  This must be the last transformation: later ones in a chain would change
  updates that are already whole units of bfloat16, and wrappers that choose
  between the updates and zeros of the gradients' dtype
  (`optax.apply_if_finite`) belong inside it. `optax.MultiSteps` may be around
  it. Parameters of other dtypes are passed to `tx` unchanged.

  Args:
    tx: the whole optimizer.
    seed: seed of the noise. The noise also depends on the count and on the
      leaf's index in the tree of parameters, including masked leaves; it does
      not depend on names or the mesh.

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

    def step(number, update, param, wide_param):
      if jnp.result_type(param) != jnp.bfloat16:
        return update
      new = stochastic_round(wide_param + update, leaf_key(key, number))
      return new.astype(jnp.float32) - wide_param

    updates = jax.tree.map(step, leaf_numbers(updates), updates, params, wide)
    return updates, StochasticRoundUpdatesState(count, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
