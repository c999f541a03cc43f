"""Stand-ins for arrays with named axes, with the attributes that are read."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Axis:
  """As `haliax.Axis`."""

  name: str
  size: int


@jax.tree_util.register_pytree_with_keys_class
class HaliaxArray:
  """As `haliax.NamedArray`."""

  def __init__(self, array: Any, axes: tuple[Axis, ...]):
    self.array, self.axes = array, axes

  def tree_flatten_with_keys(self):
    return [(jax.tree_util.GetAttrKey('array'), self.array)], self.axes

  @classmethod
  def tree_unflatten(cls, axes, children):
    return cls(children[0], axes)


@jax.tree_util.register_pytree_with_keys_class
class PenzaiArray:
  """As `penzai.core.named_axes.NamedArray`."""

  def __init__(self, data_array: Any, named_axes: dict[str, int]):
    self.data_array, self.named_axes = data_array, named_axes

  def tree_flatten_with_keys(self):
    key = jax.tree_util.GetAttrKey('data_array')
    return [(key, self.data_array)], tuple(self.named_axes.items())

  @classmethod
  def tree_unflatten(cls, items, children):
    return cls(children[0], dict(items))
