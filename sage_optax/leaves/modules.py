"""Roles and axes of weights from the modules of Equinox and Haliax.

Modules are read by their attributes, so that no library has to be imported:
Haliax's Linear (In, Out) and Embedding (Vocab, Embed), Equinox's Embedding,
LayerNorm and RMSNorm. The shape of a weight does not distinguish them.
"""

import dataclasses
from typing import Any

import jax

from sage_optax.leaves import metadata
from sage_optax.leaves.axis_names import Axes, Reading


def readings(tree: Any) -> dict[str, Reading]:
  """The roles and axes of the weights of known modules, by path."""
  found = {}
  nodes = jax.tree.leaves_with_path(
    tree, is_leaf=lambda node: _read(node) is not None
  )
  for key_path, node in nodes:
    reading = _read(node)
    if reading is not None:
      key = (*key_path, jax.tree_util.GetAttrKey('weight'))
      found[metadata.leaf_path(key)[0]] = reading
  return found


def _read(node: Any) -> Reading | None:
  """Role and axes of the weight of a module; None if it is not known."""
  if not dataclasses.is_dataclass(node) or not hasattr(node, 'weight'):
    return None
  module: Any = node
  axes = getattr(module.weight, 'axes', None)
  if isinstance(axes, tuple) and hasattr(module, 'In'):
    return _named(axes, module.In, module.Out)
  if isinstance(axes, tuple) and hasattr(module, 'Vocab'):
    return _named(axes, module.Vocab, module.Embed, 'embedding')
  ndim = getattr(module.weight, 'ndim', 0)
  if hasattr(module, 'num_embeddings') and ndim > 1:
    return _plain('embedding', ndim, (ndim - 2,), (ndim - 1,))
  if hasattr(module, 'use_weight') and isinstance(module.shape, tuple) and ndim:
    start = ndim - len(module.shape)
    return _plain('vector', ndim, (), tuple(range(start, ndim)))
  return None


def _named(axes: Any, fan_in: Any, fan_out: Any, role: str = '') -> Reading:
  """By the names of the axes."""
  names = [axis.name for axis in axes]
  sides = []
  for side in (fan_in, fan_out):
    given = [axis.name for axis in side] if isinstance(side, tuple) else None
    wanted = given or [side.name]
    sides.append(tuple(i for i, name in enumerate(names) if name in wanted))
  kinds = [
    [metadata.KINDS.get(names[i]) == metadata.VOCAB for i in side]
    for side in sides
  ]
  if not role:
    role = 'head' if any(kinds[1]) else 'embedding' if any(kinds[0]) else ''
  return _plain(role or 'matrix', len(names), *sides)


def _plain(
  role: str, ndim: int, fan_in: tuple[int, ...], fan_out: tuple[int, ...]
) -> Reading:
  batch = tuple(a for a in range(ndim) if a not in (*fan_in, *fan_out))
  return Reading(role, Axes(batch, fan_in, fan_out), batch)
