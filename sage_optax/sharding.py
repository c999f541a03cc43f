"""PartitionSpecs for the state of any optimizer, by alignment of axes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec

from sage_optax import _mesh


def state_specs(
  tx: optax.GradientTransformation, params: Any, param_specs: Any
) -> Any:
  """PartitionSpecs for `tx.init(params)`.

  Every array of the state that belongs to a parameter has the parameter's
  number of axes; an axis of the parameter's size takes its spec, one that was
  reduced is replicated. Counters and keys are replicated.

  Args:
    tx: any gradient transformation, of Optax's too.
    params: tree of arrays or `ShapeDtypeStruct`s.
    param_specs: tree like `params` of `PartitionSpec`s.

  Returns:
    A tree like `tx.init(params)` of `PartitionSpec`s.

  Example:
    >>> import jax, jax.numpy as jnp, sage_optax
    >>> from jax.sharding import PartitionSpec as P
    >>> params = jax.ShapeDtypeStruct((128, 64), jnp.float32)
    >>> specs = state_specs(sage_optax.scale_by_sage(), params, P('fsdp', 'tp'))
    >>> tuple(specs.mu), tuple(specs.abs_mean)
    (('fsdp', 'tp'), (None, 'tp'))
  """

  def align(leaf, param, spec):
    if isinstance(leaf, optax.MaskedNode):
      return leaf
    if leaf.ndim != param.ndim:
      return PartitionSpec()
    names = tuple(spec) + (None,) * (param.ndim - len(spec))
    return PartitionSpec(
      *(
        name if size == param_size else None
        for name, size, param_size in zip(
          names, leaf.shape, param.shape, strict=True
        )
      )
    )

  return optax.tree.map_params(
    tx,
    align,
    jax.eval_shape(tx.init, params),
    params,
    param_specs,
    transform_non_params=lambda _: PartitionSpec(),
    is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
  )


def with_mesh(
  tx: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  param_specs: Any,
) -> optax.GradientTransformationExtraArgs:
  """Lets the matrix methods in `tx` use the devices of a mesh well.

  Newton-Schulz (Muon), whitening (SWAN) and the decompositions of projectors
  (GaLore, Fira, APOLLO) multiply matrices with themselves. On matrices that are
  sharded, each product would gather them anew. Here stacked matrices
  `[layers, fan_in, fan_out]` go to devices layer by layer for this work, and
  back: two all-to-alls in all. Other methods need none, and nothing changes for
  them. Numbers stay the same, up to rounding.

  Args:
    tx: any gradient transformation; the update has to be jitted.
    mesh: the mesh of the parameters, with automatic axes.
    param_specs: tree like the parameters of `PartitionSpec`s.

  Returns:
    `tx`, with the same state.

  Example:
    >>> import jax, sage_optax
    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((1,), ('fsdp',))
    >>> specs = {'kernel': P(None, 'fsdp', None)}
    >>> tx = with_mesh(sage_optax.muon(1e-3), mesh, specs)
  """
  inner = optax.with_extra_args_support(tx)
  specs = {
    jax.tree_util.keystr(path): spec
    for path, spec in jax.tree.leaves_with_path(
      param_specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
  }

  def update_fn(updates, state, params=None, **extra_args):
    placements = {
      key: _mesh.Placement(mesh, specs[key], leaf.shape)
      for path, leaf in jax.tree.leaves_with_path(updates)
      if (key := jax.tree_util.keystr(path)) in specs
    }
    with _mesh.scope(placements):
      return inner.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def undivided_axes(
  shape: tuple[int, ...], spec: PartitionSpec, mesh_shape: Mapping[str, int]
) -> tuple[int, ...]:
  """The axes that `spec` shards but the mesh does not divide evenly.

  Args:
    shape: the array's shape.
    spec: its `PartitionSpec`.
    mesh_shape: axis name -> size, such as `mesh.shape`.

  Returns:
    Indices of the axes that have to be replicated.

  Example:
    >>> undivided_axes((2048, 5461), PartitionSpec('fsdp', 'tp'),
    ...                {'fsdp': 8, 'tp': 2})
    (1,)
  """

  def parts(names):
    names = (names,) if isinstance(names, str) else (names or ())
    return math.prod(mesh_shape[name] for name in names)

  return tuple(
    i for i, names in enumerate(spec) if names and shape[i] % parts(names)
  )
