"""Kernels that are not [..., fan_in, fan_out], seen as if they were."""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax import roles
from sage_optax.core import boxes, linalg, placement

# (axes of fan_in, axes of fan_out) of a leaf; all others are a batch.
AxesPair = tuple[tuple[int, ...], tuple[int, ...]]

# (pattern, pair) rules, or a function of the path that returns a pair, or None
# for leaves that are [..., fan_in, fan_out] as they are.
MatrixAxes = Sequence[tuple[str, AxesPair]] | Callable[[str], AxesPair | None]

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
  inner = optax.with_extra_args_support(tx)
  axes_of = axes_function(matrix_axes)

  def views(tree):
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: _view(roles.leaf_path(path)[0], leaf, axes_of), tree
    )

  def init_fn(params):
    seen = views(params)
    state = inner.init(_apply(_View.to_matrix, seen, params))
    return _apply(_View.from_matrix, _state_views(inner, state, seen), state)

  def update_fn(updates, state, params=None, *, placements=None, **extra_args):
    seen = views(updates)
    places = placement.as_matrices(placements, seen)
    updates = _apply(_View.to_matrix, seen, updates)
    if params is not None:
      params = _apply(_View.to_matrix, views(params), params)
    # The shapes of the state say which of its arrays were changed by init.
    abstract = jax.eval_shape(inner.init, updates if params is None else params)
    state_seen = _state_views(inner, abstract, seen)
    state = _apply(_View.to_matrix, state_seen, state)
    updates, state = inner.update(
      updates, state, params, placements=places, **extra_args
    )
    return (
      _apply(_View.from_matrix, seen, updates),
      _apply(_View.from_matrix, state_seen, state),
    )

  return boxes.opened(optax.GradientTransformationExtraArgs(init_fn, update_fn))


def axes_function(
  matrix_axes: MatrixAxes, role: str | None = None
) -> Callable[[str], AxesPair | None]:
  """`matrix_axes` as a function of the path.

  Args:
    matrix_axes: as `with_matrix_axes` takes it.
    role: of the leaves; those with role 'vector' have no fan_in.

  Returns:
    Path -> pair or None, which raises ValueError where there is no one answer.
  """
  find = matrix_axes if callable(matrix_axes) else _search(matrix_axes)

  def axes_of(path):
    pair = find(path)
    if pair is None:
      return None
    try:
      fan_in, fan_out = (tuple(map(operator.index, axes)) for axes in pair)
    except (TypeError, ValueError):
      raise ValueError(
        f'matrix_axes of {path} must be None or a pair (fan_in, fan_out) of '
        f'tuples of axes, got {pair!r}.'
      ) from None
    if role == 'vector' and fan_in:
      raise ValueError(
        f'{path} has the role vector, so its matrix_axes must be ((), axes), '
        f'got {pair!r}: make the rule narrower, or give it another role.'
      )
    return fan_in, fan_out

  return axes_of


def matrix_shape(
  path: str, shape: tuple[int, ...], axes_of: Callable[[str], AxesPair | None]
) -> tuple[int, ...]:
  """The shape that a leaf of this path and shape is seen in."""
  pair = axes_of(path)
  if pair is None:
    return shape
  return _View(shape, *_check(path, shape, pair)).merged(shape)


def _search(
  rules: Sequence[tuple[str, AxesPair]],
) -> Callable[[str], AxesPair | None]:
  compiled = []
  for rule in rules:
    if not isinstance(rule, tuple | list) or len(rule) != 2:
      raise ValueError(
        'matrix_axes must be a function of the path or (pattern, (fan_in, '
        f'fan_out)) pairs in a list, got {rule!r}.'
      )
    compiled.append((roles.compile_pattern(rule[0]), rule[1]))

  def find(path):
    found = [(p.pattern, pair) for p, pair in compiled if p.search(path)]
    if any(pair != found[0][1] for _, pair in found):
      described = ' and '.join(f'{p!r} -> {pair}' for p, pair in found)
      raise ValueError(
        f'Rules of matrix_axes disagree about {path}: {described}. Make one of '
        'them narrower.'
      )
    return found[0][1] if found else None

  return find


def _check(path: str, shape: tuple[int, ...], pair: AxesPair) -> AxesPair:
  """The pair with axes counted from the start, if it fits the shape."""
  ndim = len(shape)
  named = [*pair[0], *pair[1]]
  inside = all(-ndim <= axis < ndim for axis in named)
  if not named or not inside or len({a % ndim for a in named}) < len(named):
    raise ValueError(
      f'matrix_axes of {path} {shape} must name different axes of its {ndim}, '
      f'at least one, got {pair!r}.'
    )
  return tuple(a % ndim for a in pair[0]), tuple(a % ndim for a in pair[1])


@dataclasses.dataclass(frozen=True)
class _View:
  """How one parameter, and what belongs to it, is seen as matrices.

  Attributes:
    shape: of the parameter.
    fan_in: its axes that make fan_in.
    fan_out: its axes that make fan_out.
    sharding: its explicit sharding, if it has one.
  """

  shape: tuple[int, ...]
  fan_in: tuple[int, ...]
  fan_out: tuple[int, ...]
  sharding: jax.sharding.NamedSharding | None = None

  @property
  def batch(self) -> tuple[int, ...]:
    named = {*self.fan_in, *self.fan_out}
    return tuple(a for a in range(len(self.shape)) if a not in named)

  @property
  def order(self) -> tuple[int, ...]:
    return (*self.batch, *self.fan_in, *self.fan_out)

  def merged(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as matrices of an array in the parameter's layout."""
    return (
      *(shape[a] for a in self.batch),
      math.prod(shape[a] for a in self.fan_in),
      math.prod(shape[a] for a in self.fan_out),
    )

  def split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse of `merged`, still in the order of the matrices."""
    sizes = list(shape[:-2])
    for size, axes in zip(shape[-2:], (self.fan_in, self.fan_out), strict=True):
      own = [self.shape[a] for a in axes]
      rest = [1] * (len(axes) - 1)
      sizes += own if size == math.prod(own) else [size, *rest]
    return tuple(sizes)

  def takes(self, shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape has a place in the parameter's layout."""
    if len(shape) != len(self.batch) + 2:
      return False
    return len(self.split(shape)) == len(self.shape)

  def merged_spec(self, spec: jax.P) -> jax.P:
    """The spec as matrices of an array that has this spec."""
    names = _names(spec, len(self.shape))
    merged = (
      tuple(name for a in axes for name in names[a]) or None
      for axes in (*((a,) for a in self.batch), self.fan_in, self.fan_out)
    )
    return jax.P(*merged)

  def to_matrix(self, x: Any) -> jax.Array:
    """From the parameter's layout to matrices; axes may be reduced."""
    x = jnp.asarray(x)
    sharding = linalg.explicit_sharding(x)
    if sharding is not None:
      sharding = jax.sharding.NamedSharding(
        sharding.mesh, self.merged_spec(sharding.spec)
      )
    shape = self.merged(x.shape)
    x = jnp.transpose(x, self.order)
    return jnp.reshape(x, shape, out_sharding=sharding)

  def from_matrix(self, x: jax.Array) -> jax.Array:
    """The inverse; axes of the parameter's size are sharded as it is."""
    shape, sharding = self.split(x.shape), None
    if self.sharding is not None:
      names = _names(self.sharding.spec, len(self.shape))
      aligned = (
        names[a] if size == self.shape[a] else ()
        for a, size in zip(self.order, shape, strict=True)
      )
      sharding = jax.sharding.NamedSharding(
        self.sharding.mesh, jax.P(*(name or None for name in aligned))
      )
    x = jnp.reshape(x, shape, out_sharding=sharding)
    inverse = [self.order.index(a) for a in range(len(self.order))]
    return jnp.transpose(x, inverse)


def _names(spec: jax.P, ndim: int) -> list[tuple[str, ...]]:
  """The mesh axes that shard each axis."""
  names = [linalg.mesh_axes(entry) for entry in spec]
  return names + [()] * (ndim - len(names))


def _view(
  path: str, leaf: Any, axes_of: Callable[[str], AxesPair | None]
) -> _View | None:
  pair = axes_of(path)
  if pair is None:
    return None
  shape = jnp.shape(leaf)
  sharding = linalg.explicit_sharding(leaf)
  return _View(shape, *_check(path, shape, pair), sharding)


def _apply(change: Callable[[_View, Any], Any], views: Any, tree: Any) -> Any:
  """`change` of the leaves that have a view; the others stay as they are."""
  return jax.tree.map(
    lambda view, x: x if view is None else change(view, x),
    views,
    tree,
    is_leaf=lambda view: view is None,
  )


def _state_views(tx: Any, state: Any, views: Any) -> Any:
  """A tree like `state` (of matrices) of the views of its arrays, or None."""

  def pick(leaf, view):
    if isinstance(leaf, optax.MaskedNode) or view is None:
      return leaf if isinstance(leaf, optax.MaskedNode) else None
    return view if view.takes(leaf.shape) else None

  return optax.tree.map_params(
    tx,
    pick,
    state,
    views,
    transform_non_params=lambda _: None,
    is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
  )
