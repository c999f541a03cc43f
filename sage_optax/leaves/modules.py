"""Infers roles and axes of weights and biases from Equinox and Haliax modules.

Modules are recognized by their attributes, so that no library must be imported:
Haliax's Linear, Conv (In, Out, Spatial) and Embedding (Vocab, Embed), Equinox's
Embedding, LayerNorm and RMSNorm. Equinox's Linear and Conv are also recognized
by their class, since a square weight does not show its order. A module is
ignored if its weight does not have the axes that its attributes name.
"""

import dataclasses
from typing import Any

import jax

from sage_optax.leaves import metadata, names
from sage_optax.leaves.axis_names import Axes, Reading

# Attributes of Haliax modules with the axes of each side, and the role.
_SIDES = (('In', 'Out', 'matrix'), ('Vocab', 'Embed', 'embedding'))


def readings(tree: Any) -> dict[str, Reading]:
  """The roles and axes of the parameters of known modules, by path."""
  found = {}
  nodes = jax.tree.leaves_with_path(
    tree, is_leaf=lambda node: bool(_read(node))
  )
  for key_path, node in nodes:
    for name, reading in _read(node).items():
      key = (*key_path, jax.tree_util.GetAttrKey(name))
      path, _ = metadata.leaf_path(key)
      if reading.role == 'matrix' and names.HEAD.search(path):
        reading = reading._replace(role='head')
      found[path] = reading
  return found


def _read(node: Any) -> dict[str, Reading]:
  """Readings of a module's weight and bias; empty for unknown modules."""
  if not dataclasses.is_dataclass(node) or isinstance(node, type):
    return {}
  found = {}
  for name in ('weight', 'bias'):
    leaf = getattr(node, name, None)
    if (given := _axis_names(getattr(leaf, 'axes', None))) is not None:
      reading = _haliax(node, name, given)
    else:
      reading = _equinox(node, name, getattr(leaf, 'shape', ()))
    if reading is not None:
      found[name] = reading
  return found


def _haliax(node: Any, name: str, given: list[str]) -> Reading | None:
  """Compares the names of the leaf's axes with those of the module."""
  own = {
    field.name: _axis_names(getattr(node, field.name, None))
    for field in dataclasses.fields(node)
    if field.name not in ('weight', 'bias')
  }
  for inputs, outputs, role in _SIDES:
    fan_in, fan_out = own.pop(inputs, None), own.pop(outputs, None)
    if fan_in is None or fan_out is None:
      continue
    fan_in = [*fan_in, *(own.pop('Spatial', None) or ())]
    if name == 'bias':
      fan_in = []
    sides = [*fan_in, *fan_out]
    # An axis of the module that belongs to neither side must be of experts;
    # axes that the module does not have are of stacks.
    others = [
      axis
      for field, axes in own.items()
      for axis in axes or ()
      if not _counts(field) and not _counts(axis)
    ]
    unknown = {*others} & {*given} - {*sides}
    if not {*sides} <= {*given} or len({*sides}) < len(sides) or unknown:
      return None
    if role == 'matrix' or name == 'bias':
      role = _role(fan_in, fan_out)
    places = (tuple(map(given.index, side)) for side in (fan_in, fan_out))
    return _reading(role, len(given), *places)
  return None


def _axis_names(axes: Any) -> list[str] | None:
  """The names of an axis or of several axes; None for anything else."""
  found = []
  for axis in axes if isinstance(axes, tuple) else (axes,):
    name = axis if isinstance(axis, str) else getattr(axis, 'name', None)
    if not isinstance(name, str):
      return None
    found.append(name)
  return found


def _counts(axis: str) -> bool:
  """Whether an axis of this name counts layers or experts."""
  kinds = (metadata.BATCH, metadata.EXPERTS)
  return metadata.KINDS.get(axis.lower()) in kinds


def _role(fan_in: list[str], fan_out: list[str]) -> str:
  if not fan_in or not fan_out:
    return 'vector'
  for role, side in (('head', fan_out), ('embedding', fan_in)):
    if any(metadata.KINDS.get(axis) == metadata.VOCAB for axis in side):
      return role
  return 'matrix'


def _equinox(node: Any, name: str, shape: tuple[int, ...]) -> Reading | None:
  """Uses the sizes in the module, or its class."""
  ndim, own = len(shape), getattr(node, 'shape', None)
  if not isinstance(own, tuple):
    own = ()
  if hasattr(node, 'use_weight') and own and shape[-len(own) :] == own:
    return _reading('vector', ndim, (), tuple(range(ndim - len(own), ndim)))
  rows = getattr(node, 'num_embeddings', None)
  if name == 'weight' and ndim > 1 and shape[-2] == rows:
    return _reading('embedding', ndim, (ndim - 2,), (ndim - 1,))
  classes = {
    kind.__name__
    for kind in type(node).__mro__
    if kind.__module__.startswith('equinox.')
  }
  if not classes & {'Linear', 'Conv', 'ConvTranspose'}:
    return None
  spatial = getattr(node, 'num_spatial_dims', 0)
  first = ndim - spatial - (2 if name == 'weight' else 1)
  if first < 0:
    return None
  if name == 'bias':  # [out], and an axis of size 1 for each spatial one.
    return _reading('vector', ndim, (), (first,))
  return _reading('matrix', ndim, tuple(range(first + 1, ndim)), (first,))


def _reading(
  role: str, ndim: int, fan_in: tuple[int, ...], fan_out: tuple[int, ...]
) -> Reading:
  batch = tuple(a for a in range(ndim) if a not in (*fan_in, *fan_out))
  if role == 'vector':
    fan_in, fan_out = (), (*fan_in, *fan_out)
  return Reading(role, Axes(batch, fan_in, fan_out), batch)
