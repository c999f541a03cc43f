"""Sinkhorn normalization of matrices, in a form for each backend.

`num_iters` times, fan_in slices first, fan_out slices last:

    X = X / (norm2(X over fan_in) + eps) * sqrt(fan_in)
    X = X / (norm2(X over fan_out) + eps) * sqrt(fan_out)

X is always x times one scale per fan_in index and one per fan_out index. All
forms compute these two vectors; none writes a matrix to main memory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax.core import linalg, placement, sinkhorn_blocks
from sage_optax.core import sinkhorn_scales as scales_lib
from sage_optax.core.sinkhorn_scales import Options, Scales

# Platforms that have kernels, and their names in `platform_dependent`.
_PLATFORMS = {'tpu': 'tpu', 'gpu': 'cuda'}


def normalize(
  x: jax.Array, options: Options, place: placement.Placement | None = None
) -> jax.Array:
  """Normalizes `x[..., fan_in, fan_out]` along both axes in turn.

  Args:
    x: array with at least 2 axes, of any dtype.
    options: arguments of `scale_by_sinkgd`.
    place: how the parameter is sharded, if known.

  Returns:
    The normalized array in float32 or wider.
  """
  if x.size == 0:
    return linalg.as_stat(x)
  in_scale, out_scale = _scales(x, options, place)
  return linalg.as_stat(x) * in_scale * out_scale


def _scales(x, options, place) -> Scales:
  """The two scales, computed in the form for the devices of `place`."""

  def usual(x):
    return plain(x, options)

  forms = {}
  if placement.on_one_device(place, x):
    forms['cpu'] = lambda x: sinkhorn_blocks.scales(x, options)
  if options.kernels and place is not None and not placement.in_shard_map():
    platform = _platform(place.mesh)
    if kernel := _kernels(platform, x, options, place):
      forms[_PLATFORMS[platform]] = kernel
  if not forms:
    return usual(x)
  return jax.lax.platform_dependent(x, default=usual, **forms)


def _platform(mesh) -> str:
  """'cpu', 'gpu' or 'tpu'; '' if the mesh has no devices yet."""
  if isinstance(mesh, jax.sharding.AbstractMesh):
    return ''
  return mesh.devices.flat[0].platform


def _kernels(
  platform, x, options, place
) -> Callable[[jax.Array], Scales] | None:
  """The form that reads a matrix once, or once per iteration.

  The compiler cannot partition a kernel, so each device runs it on its shard,
  and vectors are reduced between devices. None if there is no kernel for this
  platform or shape.
  """
  if platform not in _PLATFORMS:
    return None
  mesh, spec, _ = place
  spec = jax.P(*spec, *(None,) * (x.ndim - len(spec)))
  shape = jax.sharding.NamedSharding(mesh, spec).shard_shape(x.shape)
  in_names, out_names = (
    tuple(name for name in side if mesh.shape[name] > 1)
    for side in placement.matrix_names(spec, x.ndim)
  )
  names = in_names, out_names
  scales: Callable[..., Scales]
  if platform == 'tpu':  # Both are slow to import, and rarely needed.
    from sage_optax.kernels import sinkhorn_tpu

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      chip = sinkhorn_tpu.chip_of(x)
    forms = sinkhorn_tpu.forms(*names)
    how: Any = sinkhorn_tpu.plan(shape, x.dtype, chip, forms)
    scales = sinkhorn_tpu.scales
  else:
    from sage_optax.kernels import sinkhorn_gpu

    if not sinkhorn_gpu.supports(mesh.devices.flat[0]):
      return None
    how = sinkhorn_gpu.plan(shape, x.dtype, sinkhorn_gpu.forms(*names))
    scales = sinkhorn_gpu.scales
  if how is None:
    return None

  def function(x):
    return scales(x, options, names, how)

  if mesh.size == 1:
    return function
  *batch, fan_in, fan_out = spec
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=spec,
    out_specs=(jax.P(*batch, fan_in, None), jax.P(*batch, None, fan_out)),
    check_vma=False,
  )


def plain(x: jax.Array, options: Options) -> Scales:
  """The form that shards well: only vectors are reduced between devices.

  Args:
    x: [..., m, n].
    options: as in `normalize`.

  Returns:
    The scales of fan_in [..., m, 1] and of fan_out [..., 1, n].
  """
  in_norm, out_norm = scales_lib.targets(x.shape, options.unit_norm)
  norm, fan_in, fan_out = linalg.norm, linalg.FAN_IN, linalg.FAN_OUT
  wide = linalg.as_stat(x)
  p = jnp.sum(jnp.abs(wide), fan_out, keepdims=True)
  q = jnp.sum(jnp.abs(wide) * scales_lib.over(p), fan_in, keepdims=True)
  peak = jnp.max(p, fan_in, keepdims=True)

  def z(over_p, over_q):
    return linalg.as_stat(_kept_narrow(x)) * over_p * over_q

  norms = norm(
    z(scales_lib.over(p), scales_lib.over(q)) * (p * scales_lib.over(peak)),
    fan_in,
  )
  start = scales_lib.start(p, q, peak, norms, options, x.shape)

  def of_rows(a, b):
    size = start.whole * a * norm(z(start.over_p, start.over_q) * b, fan_out)
    return scales_lib.rescale(a, size, out_norm, options.eps)

  def iterate(_, scales):
    a, b = scales
    size = start.whole * b * norm(z(start.over_p, start.over_q) * a, fan_in)
    b = scales_lib.rescale(b, size, in_norm, options.eps)
    return of_rows(a, b), b

  # The first iteration is outside the loop, so that the carry has the dtype
  # (and, under explicit sharding, the sharding) that the body returns.
  first = of_rows(start.a, start.b), start.b
  a, b = jax.lax.fori_loop(1, options.num_iters, iterate, first)
  return scales_lib.finish(start, a, b)


def _kept_narrow(x):
  """Prevents XLA for GPUs from carrying a float32 copy of `x` into a loop."""
  if x.dtype == linalg.stat_dtype(x):
    return x
  barrier = jax.lax.optimization_barrier
  return jax.lax.platform_dependent(x, cuda=barrier, default=lambda x: x)
