"""Notes on leaves whose role or axes deserve a second look."""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from sage_optax.leaves.records import Leaf


class RoutingWarning(UserWarning):
  """A parameter whose role or axes deserve a second look."""


def notes(leaves: Sequence[Leaf], vocabularies: Mapping[int, str]) -> list[str]:
  """A note for each leaf, '' where nothing stands out.

  Args:
    leaves: records without doubts.
    vocabularies: length of a vocabulary -> path of its embedding.

  Returns:
    The notes, in the order of the leaves.
  """
  stacks = _stacks(leaves)
  return [
    ', '.join(
      note
      for note in (
        _units(leaf),
        _thin(leaf),
        _vocabulary(leaf, vocabularies),
        _recurring(leaf, stacks),
      )
      if note
    )
    for leaf in leaves
  ]


def _sizes(leaf: Leaf) -> tuple[int, int, int]:
  """Units, fan_in and fan_out."""
  shape = jnp.shape(leaf.leaf)
  batch, fan_in, fan_out = (
    math.prod(shape[a] for a in axes) for axes in leaf.axes or ((), (), ())
  )
  return batch, fan_in, fan_out


def _units(leaf: Leaf) -> str:
  units, fan_in, fan_out = _sizes(leaf)
  if leaf.role == 'vector' or units <= max(fan_in, fan_out):
    return ''
  return f'{units} units of {fan_in}x{fan_out}'


def _thin(leaf: Leaf) -> str:
  _, fan_in, fan_out = _sizes(leaf)
  thin = leaf.role != 'vector' and 1 in (fan_in, fan_out)
  return f'a side of 1 in {fan_in}x{fan_out}' if thin else ''


def _vocabulary(leaf: Leaf, vocabularies: Mapping[int, str]) -> str:
  if leaf.role != 'matrix':
    return ''
  _, *sides = _sizes(leaf)
  found = [vocabularies[side] for side in sides if side in vocabularies]
  return f'as long as the vocabulary of {found[0]}' if found else ''


def _stacks(leaves: Sequence[Leaf]) -> set[tuple[str, int, int]]:
  """(top of the tree, place, size) of the axes that are batches."""
  return {
    (leaf.path.rpartition('/')[0].partition('/')[0], a, jnp.shape(leaf.leaf)[a])
    for leaf in leaves
    if leaf.axes is not None and leaf.evidence != 'matrix_axes='
    for a in leaf.axes.batch
    if jnp.shape(leaf.leaf)[a] > 1
  }


def _recurring(leaf: Leaf, stacks: set[tuple[str, int, int]]) -> str:
  shape = jnp.shape(leaf.leaf)
  normal = 1 if leaf.role == 'vector' else 2
  if leaf.axes is None or len(shape) <= normal or leaf.axes.batch:
    return ''
  top = leaf.path.rpartition('/')[0].partition('/')[0]
  for axis, size in enumerate(shape[:2]):
    if (top, axis, size) in stacks:
      return f'axis {axis} is a batch elsewhere'
  return ''
