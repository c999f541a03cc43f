"""The message about leaves in doubt, with the lines to paste."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

_NOT_TRAINED = ('integers', 'statistics')
_SHOWN = 12


def message(leaves: Sequence[Any], vocabularies: Mapping[int, str]) -> str:
  """Returns the message about doubtful leaves.

  Args:
    leaves: records of `routing` that have a doubt.
    vocabularies: length of a vocabulary -> path of its embedding.

  Returns:
    The leaves with shapes and doubts, and `rules=` and `matrix_axes=` that
    are accepted as they are.
  """
  groups: dict[tuple[Any, ...], list[Any]] = {}
  for leaf in leaves:
    digits = re.sub(r'\d+', '0', leaf.path)
    key = (digits, jnp.shape(leaf.leaf), leaf.role, leaf.doubt)
    groups.setdefault(key, []).append(leaf)
  lines = [
    f'  {leaf.path or "(no name)"} {jnp.shape(leaf.leaf)}: {leaf.doubt}'
    for leaf in leaves[:_SHOWN]
  ]
  if len(leaves) > _SHOWN:
    lines.append(f'  and {len(leaves) - _SHOWN} more')
  many = len(leaves) > 1
  what = f'{len(leaves)} parameters are' if many else 'this parameter is'
  parts = [f'It is not clear what {what}:', *lines]
  firsts = [(group[0], len(group)) for group in groups.values()]
  rules, axes = [], []
  for leaf, repeated in firsts:
    if leaf.doubt.startswith(_NOT_TRAINED):
      continue
    pattern = _pattern(leaf.path, repeated)
    role = leaf.role or _guess_role(leaf, vocabularies)
    if leaf.role is None:
      rules.append(f"  (r'{pattern}', '{role}'),")
    shape = jnp.shape(leaf.leaf)
    if len(shape) > (1 if role == 'vector' else 2) or _is_weight(leaf, role):
      pair = _guess_axes(leaf, role)
      axes.append(f"  (r'{pattern}', {pair}),  # of {shape}")
  if any(_is_weight(leaf, leaf.role) for leaf in leaves):
    parts.append(
      'For weights that are [out, in] pass preset=sage_optax.layout.TORCH '
      '(or EQUINOX), or describe each leaf:'
    )
  elif rules or axes:
    parts.append(
      'Pass these arguments. They are a guess: correct the roles and the axes '
      '(fan_in, fan_out); all other axes are a batch.'
    )
  if rules:
    parts += ['rules=[', *rules, '],']
  if axes:
    parts += ['matrix_axes=[', *axes, '],']
  if rules:
    parts.append("Or pass default_role='auto' or another role.")
  return '\n'.join(parts)


def _pattern(path: str, repeated: int) -> str:
  escaped = re.sub(r'([.^$*+?{}\[\]\\|()])', r'\\\1', path)
  if repeated > 1:
    escaped = re.sub(r'\d+', r'\\d+', escaped)
  return f'^{escaped}$'.replace("'", r'\x27')


def _is_weight(leaf: Any, role: str | None) -> bool:
  return (
    len(jnp.shape(leaf.leaf)) > 1
    and role != 'embedding'
    and re.search(r'(?:^|/)weights?$', leaf.path) is not None
  )


def _guess_role(leaf: Any, vocabularies: Mapping[int, str]) -> str:
  shape = jnp.shape(leaf.leaf)
  if math.prod(shape) == max(shape, default=1):
    return 'vector'
  if _is_weight(leaf, None):
    embeds = re.search(r'embed|wte|wpe|shared', leaf.path)
    if embeds:
      return 'embedding'
    first = shape[0] in vocabularies or re.search(r'head', leaf.path)
    return 'head' if first else 'matrix'
  if shape[-1] in vocabularies:
    return 'head'
  if shape[-2] in vocabularies:
    return 'embedding'
  return 'matrix'


def _guess_axes(leaf: Any, role: str) -> str:
  ndim = len(jnp.shape(leaf.leaf))
  if role == 'vector':
    return f'((), ({ndim - 1},))'
  if _is_weight(leaf, role):
    inputs = ', '.join(map(str, range(1, ndim)))
    return f'(({inputs}{"," if ndim == 2 else ""}), (0,))'
  return f'(({ndim - 2},), ({ndim - 1},))'
