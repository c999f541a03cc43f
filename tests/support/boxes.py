"""Stand-ins for what Haliax and Penzai have, with the attributes read."""

import dataclasses
import functools
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


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['value'], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class PenzaiParameter:
  """As `penzai.core.variables.ParameterValue`."""

  value: PenzaiArray


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['weight', 'bias'],
  meta_fields=['In', 'Out'],
)
@dataclasses.dataclass(frozen=True)
class HaliaxLinear:
  """As `haliax.nn.Linear`, whose weight has either order."""

  weight: HaliaxArray
  bias: HaliaxArray | None
  In: Axis | tuple[Axis, ...]
  Out: Axis | tuple[Axis, ...]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['weight'],
  meta_fields=['Vocab', 'Embed'],
)
@dataclasses.dataclass(frozen=True)
class HaliaxEmbedding:
  """As `haliax.nn.Embedding`."""

  weight: HaliaxArray
  Vocab: Axis
  Embed: Axis | tuple[Axis, ...]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['weight', 'bias'],
  meta_fields=['Spatial', 'In', 'Out'],
)
@dataclasses.dataclass(frozen=True)
class HaliaxConv:
  """As `haliax.nn.Conv`, whose weight is [Out, In, *Spatial]."""

  weight: HaliaxArray
  bias: HaliaxArray | None
  Spatial: tuple[str | Axis, ...]
  In: Axis
  Out: Axis
