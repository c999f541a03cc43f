"""A role for every leaf: embedding, head, matrix or vector.

Roles decide which method a recipe gives to a leaf. They come from names or from
logical axes, never from the number of axes: stacked layers make matrices 3-D
and norm scales 2-D.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

ROLES = ('embedding', 'head', 'matrix', 'vector')

# A pattern is a regular expression, searched in the path, or a tuple of axis
# names that must equal the leaf's logical axes ('*' stands for any one name).
Rule = tuple[str | tuple[str, ...], str]

_HEAD = r'(?:lm_head|head|output_head|unembed(?:ding)?|embed_out|logits)'
_NORM = r'(?:[^/]*norm[^/]*|ln(?:_\w+)?)'
_PROJECTION = (
  r'(?:[^/]*(?:proj|dense|linear|qkv|attn|mlp|fc)[^/]*'
  r'|query|key|value|gate|up|down|w[1-3qkvo])'
)

# Flax (Linen and NNX), Haiku, and Hugging Face style trees. No leaf may match
# two rules of different roles, hence the look-aheads.
DEFAULT_RULES: dict[str, Rule] = {
  'head kernel': (rf'(?:^|/){_HEAD}/(?:kernel|weight|w)$', 'head'),
  'top-level output': (r'^(?:params/)?output/(?:kernel|weight)$', 'head'),
  'embedding': (r'(?:^|/)[^/]*embeddings?$', 'embedding'),
  'embedding weight': (
    rf'(?:^|/)(?!{_HEAD}/)(?:[^/]*embed[^/]*|wte|wpe)/weight$',
    'embedding',
  ),
  'kernel': (
    r'^(?!(?:params/)?output/kernel$)'
    rf'(?:(?:.*/)?(?!{_HEAD}/)[^/]+/)?(?:kernel|w)$',
    'matrix',
  ),
  'projection weight': (
    rf'(?:^|/)(?!{_HEAD}/)(?!{_NORM}/){_PROJECTION}/weight$',
    'matrix',
  ),
  'norm weight': (rf'(?:^|/){_NORM}/weight$', 'vector'),
  'bias or scale': (
    r'(?:^|/)(?:[^/]*bias|[^/]*scale|b|offset|gamma|beta)$',
    'vector',
  ),
}


class Match(NamedTuple):
  """A leaf, its role and why it has it.

  Attributes:
    path: names from the root to the leaf, joined by '/'.
    leaf: the array or `ShapeDtypeStruct`.
    role: one of `ROLES`.
    rule: the user's pattern or the name of the default rule that matched, or
      why it has this role where none did.
  """

  path: str
  leaf: Any
  role: str
  rule: str


def assign(
  params: Any,
  *,
  rules: Sequence[Rule] | None = None,
  logical_axes: Any = None,
  default_role: str | None = None,
) -> Any:
  """Gives every leaf of `params` a role.

  `rules` come first, then the default rules, which know the names of Flax
  (Linen and NNX), Haiku and Hugging Face style trees. A leaf whose path has no
  name (a bare array, lists, tuples) is 'vector' if it has fewer than 2 axes,
  else 'matrix'.

  Args:
    params: tree of arrays or `ShapeDtypeStruct`s.
    rules: (pattern, role) pairs. A regular expression is searched in the
      leaf's path, whose names are joined by '/' ('.' within a name counts as
      '/'; a last 'value', as in NNX states, is dropped). A tuple of axis names
      must equal the leaf's entry of `logical_axes`; '*' matches any one name.
    logical_axes: tree like `params` whose leaves are tuples of axis names.
    default_role: role of named leaves that no rule knows. None: an error.

  Returns:
    A tree like `params` whose leaves are 'embedding', 'head', 'matrix' or
    'vector'.

  Raises:
    ValueError: a named leaf that no rule knows, a leaf that two rules of one
      list give different roles, an unknown role, or a leaf of fewer than 2
      axes with a role other than 'vector'.

  Example:
    >>> import jax, jax.numpy as jnp, sage_optax
    >>> params = {'embed': {'embedding': jnp.zeros((9, 4))},
    ...           'router': jnp.zeros((4, 2))}
    >>> sage_optax.roles.assign(params, rules=[('router', 'matrix')])
    {'embed': {'embedding': 'embedding'}, 'router': 'matrix'}
  """
  matches = match(
    params, rules=rules, logical_axes=logical_axes, default_role=default_role
  )
  return jax.tree.unflatten(
    jax.tree.structure(params), [m.role for m in matches]
  )


def match(
  params: Any,
  *,
  rules: Sequence[Rule] | None = None,
  logical_axes: Any = None,
  default_role: str | None = None,
) -> list[Match]:
  """As `assign`, but returns a `Match` per leaf, in the order of the leaves."""
  rules = tuple(rules or ())
  for _, role in (*rules, *([('', default_role)] if default_role else [])):
    if role not in ROLES:
      raise ValueError(f'Unknown role {role!r}: use one of {", ".join(ROLES)}.')
  treedef: Any = jax.tree.structure(params)
  leaves = jax.tree.leaves_with_path(params)
  # Optax asks for the labels of an empty placeholder too.
  axes: list[Any] = [None] * len(leaves)
  if logical_axes is not None and leaves:
    axes = treedef.flatten_up_to(logical_axes)
  named_rules = [(str(rule[0]), rule) for rule in rules]
  matches, unknown = [], []
  for (key_path, leaf), leaf_axes in zip(leaves, axes, strict=True):
    path, named = _path(key_path)
    found = (
      _search(path, leaf_axes, named_rules)
      or _search(path, leaf_axes, DEFAULT_RULES.items())
      or _fallback(leaf, named, default_role)
    )
    if found is None:
      unknown.append(f'{path} {tuple(leaf.shape)}')
    else:
      matches.append(Match(path, leaf, *found))
  if unknown:
    raise ValueError(
      'No rule gives a role to: ' + ', '.join(unknown) + '. Pass '
      'rules=[(regex, role), ...] with a role of '
      f'{", ".join(ROLES)}, or default_role=, to sage_optax.roles.assign.'
    )
  _check_axes(matches)
  return matches


def _path(key_path: tuple[Any, ...]) -> tuple[str, bool]:
  """The path as a string, and whether a name occurs in it."""
  parts, named = [], False
  for key in key_path:
    part = getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key)))
    named |= isinstance(part, str)
    parts.append(str(part).replace('.', '/').strip('/'))
  if len(parts) > 1 and parts[-1] == 'value':
    parts.pop()
  return '/'.join(parts), named


def _search(
  path: str, axes: tuple[str, ...] | None, rules: Iterable[tuple[str, Rule]]
) -> tuple[str, str] | None:
  """(role, name of the rule) of the rule that matches, or None."""
  found = [
    (role, name)
    for name, (pattern, role) in rules
    if _matches(pattern, path, axes)
  ]
  if len({role for role, _ in found}) > 1:
    described = ' and '.join(f'{name!r} -> {role}' for role, name in found)
    raise ValueError(
      f'Rules disagree about {path}: {described}. Make one of them narrower.'
    )
  return found[0] if found else None


def _matches(
  pattern: str | tuple[str, ...], path: str, axes: tuple[str, ...] | None
) -> bool:
  if isinstance(pattern, str):
    return re.search(pattern, path) is not None
  if axes is None or len(pattern) != len(axes):
    return False
  return all(p in ('*', name) for p, name in zip(pattern, axes, strict=True))


def _fallback(
  leaf: Any, named: bool, default_role: str | None
) -> tuple[str, str] | None:
  if not named:
    role = 'vector' if leaf.ndim < 2 else 'matrix'
    return role, f'no name, {leaf.ndim} axes'
  if default_role is not None:
    return default_role, 'default_role'
  return None


def _check_axes(matches: Sequence[Match]) -> None:
  flat = [m for m in matches if m.role != 'vector' and m.leaf.ndim < 2]
  if flat:
    described = ', '.join(
      f'{m.path} {tuple(m.leaf.shape)} is {m.role} by {m.rule!r}' for m in flat
    )
    raise ValueError(
      'Roles other than vector need at least 2 axes: ' + described + '. Give '
      "these leaves the role 'vector' by a rule of their own."
    )
