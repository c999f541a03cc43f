"""Sinkhorn normalisation of matrices, in the forms that backends like.

`num_iters` times, fan_in slices first, fan_out slices last:

    X = X / (norm2(X over fan_in) + eps) * sqrt(fan_in)
    X = X / (norm2(X over fan_out) + eps) * sqrt(fan_out)

X is always x times one scale per fan_in and one per fan_out index, so all forms
look for these two vectors; none writes a matrix but to a cache.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax.core import blocks, linalg, placement

# A matrix of squares up to this size stays in a CPU's cache for all iterations.
_RESIDENT_BYTES = 2**24

# Platforms that have kernels, and what `platform_dependent` calls them.
_PLATFORMS = {'tpu': 'tpu', 'gpu': 'cuda'}

Scales = tuple[jax.Array, jax.Array]


def normalize(
  x: jax.Array,
  num_iters: int,
  eps: jax.typing.ArrayLike,
  unit_norm: bool,
) -> jax.Array:
  """Normalises `x[..., fan_in, fan_out]` along both axes in turn.

  Args:
    x: array of at least 2 axes, of any type.
    num_iters: number of iterations, at least 1.
    eps: added to every norm; zero slices stay zero.
    unit_norm: leave both sqrt factors out.

  Returns:
    The normalised array in float32 or wider.
  """
  if x.size == 0:
    return linalg.as_stat(x)
  in_scale, out_scale = _scales(x, num_iters, eps, unit_norm)
  return linalg.as_stat(x) * in_scale * out_scale


def _scales(x, *options) -> Scales:
  """The two scales, in the form for the devices that this is for."""

  def usual(x):
    return plain(x, *options)

  forms = {}
  one = placement.one_device(x)
  if one:
    forms['cpu'] = lambda x: _in_cache(x, *options)
  if one or (
    placement.placement(x) is not None and not placement.in_shard_map()
  ):
    platform = placement.platform()
    if platform in _PLATFORMS:
      forms[_PLATFORMS[platform]] = _kernels(platform, x, options) or usual
  if not forms:
    return usual(x)
  return jax.lax.platform_dependent(x, default=usual, **forms)


def _kernels(platform, x, options) -> Callable[[jax.Array], Scales] | None:
  """The form that reads a matrix once, or once per iteration.

  Alone, the compiler could not divide a kernel: each device takes its shard,
  and vectors are reduced between them. None if there is none for this shape.
  """
  shape: tuple[int, ...] = x.shape
  names: tuple[tuple[str, ...], ...] = ((), ())
  known = placement.placement(x)
  if known is not None:
    mesh, spec, _ = known
    spec = jax.P(*spec, *(None,) * (x.ndim - len(spec)))
    shape = jax.sharding.NamedSharding(mesh, spec).shard_shape(shape)
    names = tuple(
      tuple(name for name in side if mesh.shape[name] > 1)
      for side in placement.matrix_names(spec, x.ndim)
    )
  scales: Callable[..., Scales]
  if platform == 'tpu':  # Both are slow to import, and rarely needed.
    from sage_optax.kernels import sinkhorn_tpu

    abstract = mesh.abstract_mesh if known else jax.typeof(x).sharding.mesh
    with jax.sharding.use_abstract_mesh(abstract):
      chip = sinkhorn_tpu.chip_of(x)
    forms = sinkhorn_tpu.forms(*names)
    how: Any = sinkhorn_tpu.plan(shape, x.dtype, chip, forms)
    scales = sinkhorn_tpu.scales
  else:
    from sage_optax.kernels import sinkhorn_gpu

    device = (mesh.devices.flat if known else jax.devices())[0]
    if not sinkhorn_gpu.supports(device):
      return None
    how = sinkhorn_gpu.plan(shape, x.dtype, sinkhorn_gpu.forms(*names))
    scales = sinkhorn_gpu.scales
  if how is None:
    return None

  def function(x):
    in_names, out_names = names
    return scales(x, *options, in_names=in_names, out_names=out_names, how=how)

  if known is None or mesh.size == 1:
    return function
  *batch, fan_in, fan_out = spec
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=spec,
    out_specs=(jax.P(*batch, fan_in, None), jax.P(*batch, None, fan_out)),
    check_vma=False,
  )


def plain(
  x: jax.Array, num_iters: Any, eps: jax.typing.ArrayLike, unit_norm: bool
) -> Scales:
  """The form that shards well: only vectors are reduced between devices.

  Args:
    x: [..., m, n].
    num_iters, eps, unit_norm: as for `normalize`.

  Returns:
    The scales of fan_in [..., m, 1] and of fan_out [..., 1, n].
  """
  in_norm, out_norm = _targets(x.shape, unit_norm)
  norm, fan_in, fan_out = linalg.norm, linalg.FAN_IN, linalg.FAN_OUT

  # The first iteration stands outside the loop, for then the carry has the
  # type (under explicit sharding: the sharding too) that the body gives it.
  wide = linalg.as_stat(x)
  out_scale = in_norm / (norm(wide, fan_in) + eps)
  in_scale = out_norm / (norm(wide * out_scale, fan_out) + eps)

  def iterate(_, scales):
    in_scale, out_scale = scales
    wide = linalg.as_stat(_kept_narrow(x))
    size = norm(wide * in_scale * out_scale, fan_in)
    out_scale = _rescale(out_scale, size, in_norm, eps)
    size = norm(wide * in_scale * out_scale, fan_out)
    return _rescale(in_scale, size, out_norm, eps), out_scale

  return jax.lax.fori_loop(1, num_iters, iterate, (in_scale, out_scale))


def _in_cache(x, num_iters, eps, unit_norm) -> Scales:
  """As `plain`, unit by unit in a CPU's cache, with products for sums.

  Of squares of x itself: slices below 1e-18 are zero here. `plain` squares
  x times its scales, so that from the second iteration on it sees them.
  """
  *batch, m, n = x.shape
  stacked = blocks.units(x)
  targets = _targets(x.shape, unit_norm)
  fits = 4 * m * n <= _RESIDENT_BYTES
  find = _of_squares if fits else _of_blocks

  def unit(i):
    return find(stacked, i, num_iters, eps, targets)

  in_scale, out_scale = jax.lax.map(unit, jnp.arange(stacked.shape[0]))
  return in_scale.reshape(*batch, m, 1), out_scale.reshape(*batch, 1, n)


def _of_squares(x, unit, num_iters, eps, targets):
  """The matrix is read once; its squares stay in the cache."""
  in_norm, out_norm = targets
  _, m, n = x.shape
  squares = jnp.square(blocks.rows_of(x, unit, 0, m))

  def iterate(_, scales):
    row, col = scales
    size = col * jnp.sqrt(jnp.square(row) @ squares)
    col = _rescale(col, size, in_norm, eps)
    size = row * jnp.sqrt(squares @ jnp.square(col))
    return _rescale(row, size, out_norm, eps), col

  start = jnp.ones(m, squares.dtype), jnp.ones(n, squares.dtype)
  return jax.lax.fori_loop(0, num_iters, iterate, start)


def _of_blocks(x, unit, num_iters, eps, targets):
  """The matrix is read once per iteration, and once before.

  A block of rows gets its scales, and at once adds to the columns' sums of
  squares of the next iteration.
  """
  in_norm, out_norm = targets
  _, m, n = x.shape
  dtype = linalg.stat_dtype(x)

  def visit(col):
    def step(start, block, carry):
      row, sums = carry
      squares = jnp.square(block)
      scale = jax.lax.dynamic_slice_in_dim(row, start, block.shape[0])
      if col is not None:
        size = scale * jnp.sqrt(squares @ jnp.square(col))
        scale = _rescale(scale, size, out_norm, eps)
        row = jax.lax.dynamic_update_slice_in_dim(row, scale, start, 0)
      return row, sums + jnp.square(scale) @ squares

    return step

  def iterate(_, carry):
    row, col, sums = carry
    col = _rescale(col, col * jnp.sqrt(sums), in_norm, eps)
    row, sums = blocks.fold(visit(col), (row, jnp.zeros_like(sums)), x, unit)
    return row, col, sums

  row, col, zeros = jnp.ones(m, dtype), jnp.ones(n, dtype), jnp.zeros(n, dtype)
  row, sums = blocks.fold(visit(None), (row, zeros), x, unit)
  row, col, _ = jax.lax.fori_loop(0, num_iters, iterate, (row, col, sums))
  return row, col


def _targets(shape, unit_norm: bool) -> tuple[float, float]:
  """The norms that slices over fan_in and over fan_out are given."""
  fan_in, fan_out = shape[-2:]
  return (1.0, 1.0) if unit_norm else (fan_in**0.5, fan_out**0.5)


def _kept_narrow(x):
  """`x`, of which XLA for GPUs would else carry a float32 copy into a loop."""
  if x.dtype == linalg.stat_dtype(x):
    return x
  barrier = jax.lax.optimization_barrier
  return jax.lax.platform_dependent(x, cuda=barrier, default=lambda x: x)


def _rescale(scale, size, target, eps):
  # A zero slice keeps its scale: growing by 1/eps in each iteration it would
  # overflow, and 0 * inf is not 0.
  return jnp.where(size == 0, scale, scale * (target / (size + eps)))
