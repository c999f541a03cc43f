"""Kernels that are not [..., fan_in, fan_out], seen as if they were."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sage_optax.leaves import metadata, pairs
from sage_optax.leaves import views as views_lib
from sage_optax.leaves.names import Preset
from sage_optax.leaves.pairs import AxesPair, MatrixAxes, axes_function
from sage_optax.leaves.presets import (
  EQUINOX,
  FLAX,
  HAIKU,
  HALIAX,
  MAXTEXT,
  TORCH,
)

__all__ = [
  'EQUINOX',
  'FLAX',
  'FLAX_ATTENTION',
  'HAIKU',
  'HALIAX',
  'MAXTEXT',
  'TORCH',
  'AxesPair',
  'MatrixAxes',
  'Preset',
  'axes_function',
  'matrix_shape',
  'with_matrix_axes',
]

# The attention of Flax, Linen and NNX: kernels [embed, heads, head_dim] and
# [heads, head_dim, embed], biases [heads, head_dim]; stacked ones too.
FLAX_ATTENTION: tuple[tuple[str, AxesPair], ...] = (
  (r'(?:^|/)(?:query|key|value)/kernel$', ((-3,), (-2, -1))),
  (r'(?:^|/)(?:query|key|value)/bias$', ((), (-2, -1))),
  (r'(?:^|/)out/kernel$', ((-3, -2), (-1,))),
)


def with_matrix_axes(
  tx: optax.GradientTransformation, matrix_axes: MatrixAxes
) -> optax.GradientTransformationExtraArgs:
  """Shows `tx` each leaf as matrices [..., fan_in, fan_out].

  Gradients and parameters are transposed and reshaped before `tx` sees them,
  and its updates back, so the results are those on matrices. The axes of a
  leaf that its pair does not name are a batch, in their order, in front.

  The state is kept in the layout of the parameters: an array of it has the
  parameter's number of axes, each of the parameter's size or reduced. Where
  the method has k numbers (1, or a rank) for a side that is made of several
  axes, the first named one has size k and the others 1. So one rule shards any
  state, and `sage_optax.sharding.state_specs` knows it.

  Args:
    tx: any gradient transformation, of Optax's too. Extra arguments of its
      `update` are passed on as they are.
    matrix_axes: what the axes of a leaf are: a pair `(fan_in, fan_out)` of
      tuples of axes, negative ones counted from the end. A side without an
      axis has size 1, so `((), (0, 1))` makes one vector of a bias
      [heads, head_dim]. Given as a list of (pattern, pair) rules, whose
      regular expressions are searched in the leaf's path as in
      `sage_optax.roles.assign` (leaves that none matches stay as they are), or
      as a function from the path to a pair or None. `FLAX_ATTENTION` are the
      rules for Flax's attention.

  Returns:
    A transformation for parameters in their own layout.

  Raises:
    ValueError: malformed rules; when it meets the leaf, two rules with
      different pairs, or a pair that does not fit it.

  Example:
    >>> import jax, jax.numpy as jnp, sage_optax
    >>> params = {'query': {'kernel': jnp.ones((6, 4, 2))},  # for 4 heads
    ...           'out': {'weight': jnp.ones((6, 8))}}       # [out, in]
    >>> tx = sage_optax.with_matrix_axes(
    ...   sage_optax.scale_by_sage(),
    ...   [('query/kernel', ((0,), (1, 2))), ('/weight$', ((1,), (0,)))])
    >>> print(jax.tree.map(jnp.shape, tx.init(params).abs_mean))  # per fan_out
    {'out': {'weight': (6, 1)}, 'query': {'kernel': (1, 4, 2)}}
  """
  axes_of = axes_function(matrix_axes)

  def one(key_path, leaf):
    path, _ = metadata.leaf_path(key_path)
    pair = axes_of(path)
    if pair is None:
      return None
    axes = pairs.axes_of_pair(path, jnp.shape(leaf), pair)
    return views_lib.view(axes, leaf)

  def views(tree):
    return jax.tree_util.tree_map_with_path(one, tree)

  return views_lib.with_views(tx, views)


def matrix_shape(
  path: str, shape: tuple[int, ...], axes_of: Callable[[str], AxesPair | None]
) -> tuple[int, ...]:
  """The shape that a leaf of this path and shape is seen in."""
  pair = axes_of(path)
  if pair is None:
    return shape
  fan_in, fan_out = pairs.check(path, shape, pair)
  return views_lib.View(shape, fan_in, fan_out).merged(shape)
