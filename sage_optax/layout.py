"""Views of kernels that are not [..., fan_in, fan_out] as if they were."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sage_optax.leaves import metadata, pairs
from sage_optax.leaves import views as views_lib
from sage_optax.leaves.pairs import AxesPair, MatrixAxes, axes_function
from sage_optax.leaves.presets import (
  EQUINOX,
  FLAX,
  HAIKU,
  HALIAX,
  MAXTEXT,
  TORCH,
  Preset,
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

# Attention of Flax (Linen and NNX): kernels [embed, heads, head_dim] and
# [heads, head_dim, embed], biases [heads, head_dim]; also stacked.
FLAX_ATTENTION: tuple[tuple[str, AxesPair], ...] = (
  (r'(?:^|/)(?:query|key|value)/kernel$', ((-3,), (-2, -1))),
  (r'(?:^|/)(?:query|key|value)/bias$', ((), (-2, -1))),
  (r'(?:^|/)out/kernel$', ((-3, -2), (-1,))),
)


def with_matrix_axes(
  tx: optax.GradientTransformation, matrix_axes: MatrixAxes
) -> optax.GradientTransformationExtraArgs:
  """Presents each leaf to `tx` as matrices [..., fan_in, fan_out].

  Gradients and parameters are transposed and reshaped for `tx`, and its updates
  are transformed back. Axes of a leaf that its pair does not name are batch
  axes; they come first, in their order.

  The state keeps the layout of the parameters: each of its arrays has the
  parameter's number of axes, each with the parameter's size or a smaller one.
  If the method stores k numbers (1, or a rank) for a side of several axes, the
  first of these axes has size k and the others have size 1. So
  `sage_optax.sharding.state_specs` can shard any state.

  Args:
    tx: any gradient transformation, including Optax's. Extra arguments of
      `update` are passed on unchanged.
    matrix_axes: a pair `(fan_in, fan_out)` of tuples of axes per leaf; negative
      axes count from the end. A side without axes has size 1, so `((), (0, 1))`
      views a bias [heads, head_dim] as one vector. Either a list of (pattern,
      pair) rules, whose regular expressions are searched in the leaf's path as
      in `sage_optax.roles.assign` (leaves without a match are unchanged), or a
      function from the path to a pair or None. `FLAX_ATTENTION` contains the
      rules for Flax's attention.

  Returns:
    A transformation for parameters in their own layout.

  Raises:
    ValueError: malformed rules; from `init` or `update`, two matching rules
      with different pairs, or a pair that does not fit a leaf.

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
  """Returns the shape of the matrix view of a leaf."""
  pair = axes_of(path)
  if pair is None:
    return shape
  fan_in, fan_out = pairs.check(path, shape, pair)
  return views_lib.View(shape, fan_in, fan_out).merged(shape)
