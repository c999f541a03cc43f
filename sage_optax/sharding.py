"""PartitionSpecs for the state of any optimizer, from the parameters' specs."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec

from sage_optax.core import boxes, linalg
from sage_optax.core import placement as placement_lib


def unbox(tree: Any) -> Any:
  """Replaces the boxes of Flax in a tree by their contents.

  Args:
    tree: any tree. Boxes are `nn.Partitioned`, `nn.LogicallyPartitioned` and
      `nnx.Variable`, around arrays, shapes or `PartitionSpec`s.

  Returns:
    The tree without boxes.

  Example:
    >>> import jax.numpy as jnp
    >>> print(unbox({'kernel': jnp.ones(2)}))  # no boxes
    {'kernel': Array([1., 1.], dtype=float32)}
  """
  return boxes.unbox(tree)


def state_specs(
  tx: optax.GradientTransformation,
  params: Any,
  param_specs: Any,
  mesh_shape: Mapping[str, int] | None = None,
) -> Any:
  """Returns `PartitionSpec`s for `tx.init(params)`.

  Every array of the state that belongs to a parameter has the parameter's
  number of axes. Axes with the parameter's size are sharded as the parameter's;
  reduced axes are replicated, and so are counters and keys.

  Args:
    tx: any gradient transformation, including Optax's.
    params: tree of arrays or `ShapeDtypeStruct`s, boxed by Flax or not.
    param_specs: tree like `params`, of `PartitionSpec`s, boxed or not.
    mesh_shape: axis name -> size, such as `mesh.shape`. If given, an axis
      that was projected to a rank (GaLore, Fira, APOLLO) is sharded as the
      original axis, and axes that the mesh does not divide are replicated.

  Returns:
    A tree like `tx.init(params)`, of `PartitionSpec`s without boxes. For a
    boxed state it is a valid prefix, for example in `out_shardings`.

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
    if mesh_shape is None:
      return linalg.aligned_spec(spec, param.shape, leaf.shape)
    replicated = undivided_axes(leaf.shape, spec, mesh_shape)
    return PartitionSpec(
      *(
        None if i in replicated or leaf.shape[i] == 1 else entry
        for i, entry in enumerate(spec)
      )
    )

  params, param_specs = unbox(params), unbox(param_specs)
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
  """Distributes the matrix work of `tx` over the devices of a mesh.

  Newton-Schulz (Muon), whitening (SWAN) and the decompositions of projectors
  (GaLore, Fira, APOLLO) multiply matrices by themselves. If the matrices are
  sharded, each product would gather them again. With this wrapper, each device
  instead gets whole matrices of some layers of a stack
  `[layers, fan_in, fan_out]`: two all-to-alls per matrix. On a mesh of one CPU,
  SinkGD, SAGE, SCALE and Adam-mini process matrices block by block. SinkGD with
  `kernels='pallas'` runs a kernel on the local shards, on TPUs and NVIDIA GPUs.
  Other methods do not change. Results stay the same up to rounding. Axes that
  the mesh does not divide are assumed to be replicated.

  The transformations in `tx` get the extra argument `placements=` of `update`,
  which describes how each parameter is sharded.

  Args:
    tx: any gradient transformation; its update must be jitted.
    mesh: the mesh of the parameters, with automatic axes.
    param_specs: tree like the parameters, of `PartitionSpec`s; it may be boxed
      by Flax, as the parameters may.

  Returns:
    `tx` with the same state.

  Raises:
    ValueError: a mesh with explicit axes, or a leaf of `param_specs` that is
      not a `PartitionSpec`; from `update`, a leaf without an entry.

  Example:
    >>> import jax, sage_optax
    >>> from jax.sharding import PartitionSpec as P
    >>> auto = (jax.sharding.AxisType.Auto,)
    >>> mesh = jax.make_mesh((1,), ('fsdp',), axis_types=auto)
    >>> specs = {'kernel': P(None, 'fsdp', None)}
    >>> tx = with_mesh(sage_optax.muon(1e-3), mesh, specs)
  """
  if jax.sharding.AxisType.Explicit in mesh.axis_types:
    raise ValueError(
      'with_mesh needs a mesh with automatic axes, got explicit ones, which '
      'are the default of jax.make_mesh: pass axis_types=(jax.sharding.'
      'AxisType.Auto,) * number of axes to it, or use the transformation '
      'without with_mesh.'
    )
  inner = optax.with_extra_args_support(tx)
  specs = {}
  for path, spec in jax.tree.leaves_with_path(
    unbox(param_specs), is_leaf=lambda x: isinstance(x, PartitionSpec)
  ):
    key = jax.tree_util.keystr(path)
    if not isinstance(spec, PartitionSpec):
      raise ValueError(
        f'param_specs must be a tree of PartitionSpecs, got {spec!r} at {key}.'
      )
    specs[key] = spec

  def placement(key, shape):
    spec = specs[key]
    replicated = undivided_axes(shape, spec, mesh.shape)
    kept = (None if i in replicated else e for i, e in enumerate(spec))
    return placement_lib.Placement(mesh, PartitionSpec(*kept), shape)

  def update_fn(updates, state, params=None, **extra_args):
    shapes = {
      jax.tree_util.keystr(path): leaf.shape
      for path, leaf in jax.tree.leaves_with_path(unbox(updates))
    }
    if missing := shapes.keys() - specs.keys():
      raise ValueError(
        f'param_specs has no entry for {", ".join(sorted(missing))}: it must '
        'be a tree like the parameters.'
      )
    placements = {key: placement(key, shape) for key, shape in shapes.items()}
    return inner.update(
      updates, state, params, placements=placements, **extra_args
    )

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
    Indices of the axes that must be replicated.

  Raises:
    ValueError: `spec` has too many entries, or names an axis that the mesh
      does not have.

  Example:
    >>> undivided_axes((2048, 5461), PartitionSpec('fsdp', 'tp'),
    ...                {'fsdp': 8, 'tp': 2})
    (1,)
  """

  linalg.check_length(spec, shape)

  def parts(entry):
    names = linalg.mesh_axes(entry)
    if missing := [name for name in names if name not in mesh_shape]:
      raise ValueError(
        f'{spec} names the mesh axis {missing[0]!r}, but the mesh has '
        f'{", ".join(map(repr, mesh_shape))}.'
      )
    return math.prod(mesh_shape[name] for name in names)

  return tuple(
    i for i, entry in enumerate(spec) if entry and shape[i] % parts(entry)
  )
