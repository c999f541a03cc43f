"""Messages about leaves: errors if they are unclear, notes on what to check."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from sage_optax.leaves import names, presets
from sage_optax.leaves.records import Leaf, Routing

_SHOWN = 12
_POSITIONS = re.compile(names.START + names.POSITION_WORDS + '$')


class RoutingWarning(UserWarning):
  """Warns about a parameter whose role or axes should be checked."""


def notes(leaves: Sequence[Leaf], vocabularies: Mapping[int, str]) -> list[str]:
  """Returns a note for each leaf; '' if there is nothing to check.

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


def no_stack(role: str, core: int, evidence: str) -> str:
  """The doubt about a leaf with more axes than its role has."""
  stack = 'beside the stack' if evidence else 'and no proof of a stack'
  unit = 'a vector has one axis' if role == 'vector' else 'a matrix has two'
  return f'{core} axes {stack}, where {unit}'


def unmatched(paths: Sequence[str], given: Routing) -> tuple[str, ...]:
  """The user's patterns that match no path, each with its option's name."""
  options: dict[str, Sequence[Any]] = {
    'rules': [pattern for pattern, _ in given.rules or ()],
    'matrix_axes': (
      []
      if callable(given.matrix_axes)
      else [pattern for pattern, _ in given.matrix_axes]
    ),
    'stacked': (
      [given.stacked] if isinstance(given.stacked, str) else given.stacked
    ),
  }
  return tuple(
    f'{name} {getattr(pattern, "pattern", pattern)!r}'
    for name, patterns in options.items()
    for pattern in patterns
    # Names of axes are often those of more models than this one.
    if not isinstance(pattern, tuple | list)
    and not any(re.search(pattern, path) for path in paths)
  )


def refusal(
  leaves: Sequence[Leaf],
  refused: Sequence[Leaf],
  vocabularies: Mapping[int, str],
) -> str:
  """Returns the error message about unclear leaves.

  Args:
    leaves: the records of a tree.
    refused: the records of unclear leaves.
    vocabularies: length of a vocabulary -> path of its embedding.

  Returns:
    A list of the leaves with shapes and doubts, and `rules=` and `matrix_axes=`
    that can be passed unchanged.
  """
  parts = [
    f'  {leaf.path or "(no name)"} {jnp.shape(leaf.leaf)}: {leaf.doubt}'
    for leaf in refused[:_SHOWN]
  ]
  if len(refused) > _SHOWN:
    parts.append(f'  and {len(refused) - _SHOWN} more')
  many = len(refused) > 1
  what = f'{len(refused)} parameters are' if many else 'this parameter is'
  parts.insert(0, f'It is not clear what {what}:')
  rules, axes = [], []
  for pattern, leaf in _patterns(leaves, refused):
    role, pair = _suggestion(leaf, vocabularies)
    shape = jnp.shape(leaf.leaf)
    if leaf.role is None or leaf.by_name:
      rules.append(f"  (r'{pattern}', '{role}'),")
    plain = ((), (0,)) if role == 'vector' else ((0,), (1,))
    more = len(shape) > (1 if role == 'vector' else 2)
    if shape and (pair != plain or more or (leaf.rule and len(shape) == 2)):
      axes.append(f"  (r'{pattern}', {pair}),  # of {shape}")
  if any(leaf.doubt == presets.LAYOUT_DOUBT for leaf in refused):
    parts.append(
      'For weights that are [out, in] pass preset=sage_optax.layout.TORCH or '
      'EQUINOX.'
    )
  if rules or axes:
    parts.append(
      'Pass these arguments. They are a guess: correct the roles and the axes '
      '(fan_in, fan_out); all other axes are a batch.'
    )
  if rules:
    parts += ['rules=[', *rules, '],']
  if axes:
    parts += ['matrix_axes=[', *axes, '],']
  if any(leaf.role is None for leaf in refused) and rules:
    parts.append(
      "Instead of rules= you can pass default_role='auto' or another role."
    )
  return '\n'.join(parts)


def _patterns(
  leaves: Sequence[Leaf], refused: Sequence[Leaf]
) -> list[tuple[str, Leaf]]:
  """Returns patterns that match only the refused leaves, each with an example.

  Leaves whose paths differ only in numbers share a pattern if all of them are
  refused for the same reason.
  """
  groups: dict[str, list[Leaf]] = {}
  for leaf in refused:
    trained = jnp.issubdtype(jnp.result_type(leaf.leaf), jnp.floating)
    if trained and leaf.rule != names.STATISTICS:
      groups.setdefault(_escaped(leaf.path, True), []).append(leaf)
  found = []
  for pattern, group in groups.items():
    matched = [leaf for leaf in leaves if re.search(pattern, leaf.path)]
    kinds = {(jnp.shape(x.leaf), x.role, x.doubt, x.likely) for x in matched}
    if len(group) > 1 and len(kinds) == 1:
      found.append((pattern, group[0]))
    else:
      found += [(_escaped(leaf.path, False), leaf) for leaf in group]
  return found


def _escaped(path: str, numbers: bool) -> str:
  escaped = re.sub(r'([.^$*+?{}\[\]\\|()])', r'\\\1', path)
  if numbers:
    escaped = re.sub(r'\d+', r'\\d+', escaped)
  return f'^{escaped}$'.replace("'", r'\x27')


def _suggestion(leaf: Leaf, vocabularies: Mapping[int, str]) -> tuple[str, Any]:
  """The likely role and matrix_axes."""
  shape, (role, axes, _) = jnp.shape(leaf.leaf), leaf.likely
  assert axes is not None
  rows, columns = (
    math.prod(shape[a] for a in side) for side in (axes.fan_in, axes.fan_out)
  )
  if role is None and math.prod(shape) == max(shape, default=1):
    role = 'vector'
  elif role is None and _POSITIONS.search(leaf.path):
    return 'embedding', tuple(sorted((axes.fan_in, axes.fan_out)))
  elif role is None and columns in vocabularies:
    role = 'head'
  elif role is None:
    role = 'embedding' if rows in vocabularies else 'matrix'
  return role, (() if role == 'vector' else axes.fan_in, axes.fan_out)
