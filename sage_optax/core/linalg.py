"""Pure functions on units: the trailing axes `[..., fan_in, fan_out]`.

A unit is one matrix (`core_ndim` 2: axes -2 and -1) or one vector (`core_ndim`
1: axis -1). All axes before it are a batch of independent units, so layers
stacked on a leading axis are treated separately.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

FAN_IN, FAN_OUT = -2, -1


def unit_axes(ndim: int, core_ndim: int | None) -> tuple[int, ...]:
  """The axes of one unit, counted from the end.

  Args:
    ndim: number of axes of the array.
    core_ndim: 2 for matrices, 1 for vectors, None for min(ndim, 2). A scalar
      is always a vector of one element.

  Returns:
    (), (-1,) or (-2, -1).

  Raises:
    ValueError: `core_ndim` is 2 for an array of one axis.
  """
  if ndim == 1 and core_ndim == 2:
    raise ValueError(
      'core_ndim=2 needs arrays of at least 2 axes, got one of 1 axis: give '
      "this leaf the role 'vector', or use core_ndim=1."
    )
  return (FAN_IN, FAN_OUT)[2 - min(ndim, core_ndim or 2) :]


def check_static(
  name: str, value: Any, allowed: tuple[int | None, ...]
) -> None:
  """Raises ValueError unless `value` is one of the integers `allowed`."""
  if value is not None:
    value = _static_int(name, value)
  check_choice(name, value, allowed)


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
  """Raises ValueError unless `value` is one of `allowed`."""
  if value not in allowed:
    known = ', '.join(map(repr, allowed))
    raise ValueError(f'{name} must be one of {known}, got {value!r}.')


def check_positive(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a Python integer of at least 1."""
  if _static_int(name, value) < 1:
    raise ValueError(f'{name} must be at least 1, got {value}.')


def check_precise(name: str, value: Any) -> None:
  """Raises ValueError if `value` is an array that rounds 0.999 to 1."""
  if not isinstance(value, jax.Array):
    return
  if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4:
    raise ValueError(
      f'{name} has the type {value.dtype}, in which 0.999 is 1. For '
      'optax.inject_hyperparams pass hyperparam_dtype=jnp.float32.'
    )


def _static_int(name: str, value: Any) -> int:
  """Returns `value` if it is a Python integer, else raises ValueError.

  A traced value, such as `optax.inject_hyperparams` passes, cannot determine
  the structure of the state.
  """
  if isinstance(value, jax.core.Tracer):
    raise ValueError(
      f'{name} must be a Python integer, got a traced value: with '
      f"optax.inject_hyperparams, name it in static_args=('{name}', ...)."
    )
  try:
    return operator.index(value)
  except TypeError:
    raise ValueError(
      f'{name} must be a Python integer, got {value!r}.'
    ) from None


def check_matrices(params: Any, method: str) -> None:
  """Raises ValueError unless each leaf has the two axes of a matrix."""
  for leaf in jax.tree.leaves(params):
    if jnp.ndim(leaf) < 2:
      raise ValueError(
        f'{method} needs matrices [..., fan_in, fan_out], got an array of '
        f'{jnp.ndim(leaf)} axes: use another method for this leaf, as recipes '
        "do for the role 'vector'."
      )


def as_stat(x: jax.typing.ArrayLike) -> jax.Array:
  """`x` in float32, or in its own dtype if that is wider."""
  return jnp.asarray(x).astype(stat_dtype(x))


def stat_dtype(x: Any) -> jnp.dtype:
  """The dtype of the statistics of `x`: float32 or wider, and real."""
  dtype = jnp.promote_types(jnp.result_type(x), jnp.float32)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    raise ValueError(
      f'Parameters and gradients must be real, got {dtype}: wrap the '
      'optimizer in optax.contrib.split_real_and_imaginary.'
    )
  return dtype


def rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Root of the mean square over `axes`, which are kept with size 1."""
  return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))


def norm(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
  """Euclidean norm over `axes`, which are kept with size 1."""
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def safe_norm(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
  """As `norm`, but correct for entries whose squares are below 1e-38."""
  peak = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
  return peak * norm(x / jnp.where(peak > 0, peak, 1.0), axes)


def safe_rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """As `rms`, but correct for entries whose squares are below 1e-38."""
  size = math.prod(x.shape[axis] for axis in axes)
  return safe_norm(x, axes) / max(size, 1) ** 0.5


def over_peak(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """`x` divided by its largest entry over `axes`; zeros stay zero.

  Then squares of small numbers do not underflow, and those of large ones stay
  finite.
  """
  peak = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
  return x / jnp.where(peak > 0, peak, 1.0)


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
  """Product over the last two axes, in full precision on accelerators too."""
  return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def aligned_zeros(param: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Zeros of `shape`, sharded like `param` on axes of equal size.

  Args:
    param: array or `ShapeDtypeStruct`.
    shape: as many axes as `param`, each of the same or another size.
    dtype: dtype of the zeros.

  Returns:
    An array. Only explicit sharding is visible here; under automatic sharding,
    the caller's `out_shardings` decide (`sage_optax.sharding.state_specs`).
  """

  def make(p):
    sharding = jax.typeof(p).sharding
    if not _explicit(sharding.mesh):
      return jax.lax.full_like(p, 0, dtype, shape)
    spec = aligned_spec(sharding.spec, p.shape, shape)
    sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
    return jnp.zeros(shape, dtype, out_sharding=sharding)

  return jnp.zeros_like(jax.eval_shape(make, param))


def aligned_spec(
  spec: jax.P, shape: tuple[int, ...], other: tuple[int, ...]
) -> jax.P:
  """The spec of an array that belongs to a parameter.

  Args:
    spec: the parameter's spec; it may have fewer entries than axes.
    shape: the parameter's shape.
    other: the array's shape, with as many axes.

  Returns:
    The parameter's entry for axes of equal size, else None.

  Raises:
    ValueError: the spec has more entries than the parameter has axes.
  """
  check_length(spec, shape)
  entries = tuple(spec) + (None,) * (len(shape) - len(spec))
  return jax.P(
    *(
      entry if size == other_size else None
      for entry, size, other_size in zip(entries, shape, other, strict=True)
    )
  )


def check_length(spec: jax.P, shape: tuple[int, ...]) -> None:
  """Raises ValueError if a spec is none, or has more entries than axes."""
  if not isinstance(spec, jax.P | tuple):
    raise ValueError(
      f'param_specs must be a tree of PartitionSpecs, got {spec!r}.'
    )
  if len(spec) > len(shape):
    raise ValueError(
      f'{spec} has {len(spec)} entries, but the array {shape} has only '
      f'{len(shape)} axes.'
    )


def mesh_axes(entry: Any) -> tuple[str, ...]:
  """The mesh axes that an entry of a spec names."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def in_auto_axes(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
  """Wraps `function` so that its products need no explicit shardings.

  Under explicit sharding, a contraction over sharded axes is an error unless
  the sharding of its result is given. Here the compiler chooses, and only the
  results of `function` have given shardings.

  Args:
    function: maps trees of arrays to trees of arrays. It may also take numbers;
      numbers that may be traced must be arguments, not closed over.
    like: tree like the result, whose leaves have the shardings of the results.
  """
  leaves = jax.tree.leaves(like)
  if not any(_explicit(jax.typeof(x).sharding.mesh) for x in leaves):
    return function
  shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, like)

  def call(*args):
    values, structure = jax.tree.flatten(args)

    def on_arrays(*arrays):
      # Python numbers stay Python numbers, as without a mesh: 1 - 0.999 differs
      # in float32.
      rest = iter(arrays)
      inside = [next(rest) if isinstance(x, jax.Array) else x for x in values]
      return function(*jax.tree.unflatten(structure, inside))

    arrays = [x for x in values if isinstance(x, jax.Array)]
    return jax.sharding.auto_axes(on_arrays, out_sharding=shardings)(*arrays)

  return call


def explicit_sharding(x: Any) -> jax.sharding.NamedSharding | None:
  """The explicit sharding in the type of `x`, if any."""
  sharding = jax.typeof(x).sharding
  return sharding if _explicit(sharding.mesh) else None


def _explicit(mesh: Any) -> bool:
  return jax.sharding.AxisType.Explicit in (mesh.axis_types or ())


def limit_growth(
  x: jax.Array,
  old_norm: jax.Array,
  limit: jax.typing.ArrayLike | None,
) -> tuple[jax.Array, jax.Array]:
  """Scales down matrices whose norm has grown too fast (Fira, APOLLO).

  Args:
    x: matrices [..., fan_in, fan_out].
    old_norm: [..., 1, 1], the norms that this function returned in the previous
      step; 0: no previous norm, so the matrix is not limited.
    limit: largest ratio of the two norms; None: no limit.

  Returns:
    The matrices and the norms for the next step. If a norm is zero or below a
    thousandth of the old one, the old one is kept: the released code stores
    such norms, and the matrix then hardly moves for hundreds of steps, or never
    again.
  """
  if limit is None:
    return x, old_norm
  now = norm(x, (FAN_IN, FAN_OUT))
  excess = jnp.maximum(now / (old_norm + 1e-8) / limit, 1.0)
  excess = jnp.where(old_norm > 0, excess, 1.0)
  kept = jnp.where(now > 1e-3 * old_norm, now / excess, old_norm)
  return x / excess, kept.astype(old_norm.dtype)
