"""A role for every leaf: embedding, head, matrix or vector.

Roles decide which method a recipe gives to a leaf. They come from names or from
logical axes, never from the number of axes: stacked layers make matrices 3-D
and norm scales 2-D.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ROLES = ('embedding', 'head', 'matrix', 'vector')

# A pattern is a regular expression, searched in the path, or a tuple of axis
# names that must equal the leaf's logical axes ('*' stands for any one name).
Rule = tuple[str | tuple[str, ...], str]

_HEAD = (
  r'(?:(?:\w+_)?(?:lm|mlp|output)_head|heads?|unembed(?:ding)?|embed_out'
  r'|logits(?:_\w+)?|output_projection|vocab_proj(?:ector)?)'
)
_NORM = r'(?:[^/]*[nN]orm[^/]*|ln_?\w*)'
_PROJECTION = (
  r'(?:[^/]*(?:proj|dense|linear|qkv|attn|mlp|fc|mapping)[^/]*'
  r'|query|key|value|query_key_value|gate|up|down|[qkvo]|w[qkvo123i](?:_\d)?)'
)
_NOT_OTHERS = rf'(?!{_HEAD}/)(?!{_NORM}/)'

# Flax (Linen and NNX), Haiku, and the names (not the layout) of Hugging Face
# and PyTorch. No leaf may match two rules of different roles, hence the
# look-aheads.
DEFAULT_RULES: dict[str, Rule] = {
  'head kernel': (rf'(?:^|/){_HEAD}/(?:kernel|weight|w)$', 'head'),
  'top-level output': (r'^(?:params/)?output/(?:kernel|weight)$', 'head'),
  'embedding': (r'(?:^|/)[^/]*embeddings?$', 'embedding'),
  'embedding weight': (
    rf'(?:^|/){_NOT_OTHERS}(?!{_PROJECTION}/)'
    r'(?:[^/]*embed[^/]*|wte|wpe|shared)/weight$',
    'embedding',
  ),
  'kernel': (
    r'^(?!(?:params/)?output/kernel$)'
    rf'(?:(?:.*/)?{_NOT_OTHERS}[^/]+/)?(?:kernel|w)$',
    'matrix',
  ),
  'projection weight': (
    rf'(?:^|/){_NOT_OTHERS}{_PROJECTION}/weight$',
    'matrix',
  ),
  'norm weight': (rf'(?:^|/){_NORM}/(?:weight|kernel|w)$', 'vector'),
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
  (Linen and NNX), Haiku, Hugging Face and PyTorch. A leaf whose path has no
  name (a bare array, lists, tuples) is 'vector' if it has fewer than 2 axes,
  else 'matrix'.

  Names say nothing of the layout: matrices are [..., fan_in, fan_out], heads
  [feature, vocab]. Where they are not, as PyTorch's and Equinox's [out, in]
  weights and Flax's 3-D attention kernels, give recipes `matrix_axes=`.

  Args:
    params: tree of arrays or `ShapeDtypeStruct`s.
    rules: (pattern, role) pairs. A regular expression is searched in the
      leaf's path, whose names are joined by '/' ('.' within a name counts as
      '/'; a last 'value', as in NNX states, is dropped). A tuple of axis names
      must equal the leaf's entry of `logical_axes`; '*' matches any one name.
    logical_axes: tree like `params` (it may have more leaves) whose leaves are
      tuples of axis names.
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
  named_rules = _check(rules, default_role, logical_axes)
  axes = _axes_by_path(logical_axes)
  matches, unknown = [], []
  for key_path, leaf in jax.tree.leaves_with_path(params):
    path, named = leaf_path(key_path)
    leaf_axes = axes.get(path)
    if logical_axes is not None and leaf_axes is None:
      raise ValueError(f'logical_axes has no entry for {path}.')
    found = (
      _search(path, leaf_axes, named_rules)
      or _search(path, leaf_axes, DEFAULT_RULES.items())
      or _fallback(leaf, named, default_role)
    )
    if found is None:
      unknown.append(f'{path} {jnp.shape(leaf)}')
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


def labels(params: Any, roles: Any = None) -> Any:
  """The roles that a recipe uses: `roles` in one of the forms it may have.

  Args:
    params: tree of arrays or `ShapeDtypeStruct`s.
    roles: None for the default rules, a callable params -> tree of roles, or a
      tree of roles, which may be a prefix of `params`.

  Returns:
    A tree like `params` of roles.

  Raises:
    ValueError: as `assign`, or `roles` does not fit `params`.
  """
  if roles is None:
    return assign(params)
  given = roles(params) if callable(roles) else roles
  if not jax.tree.leaves(params):  # Optax's empty placeholder
    return params
  try:
    full = jax.tree.broadcast(given, params)
  except ValueError as error:
    raise ValueError(
      'roles must be a callable or a tree like params (or a prefix of it) of '
      f'role names; for rules pass functools.partial(roles.assign, rules=...). '
      f'{error}'
    ) from None
  for role in jax.tree.leaves(full):
    _check_role(role)
  return full


def _check(
  rules: Sequence[Rule] | None, default_role: str | None, logical_axes: Any
) -> list[tuple[str, Rule]]:
  """The rules with their names, if they are what they should be."""
  if default_role is not None:
    _check_role(default_role)
  named = []
  for rule in rules or ():
    if not isinstance(rule, tuple | list) or len(rule) != 2:
      raise ValueError(
        f'rules must be (pattern, role) pairs in a list, got {rule!r}.'
      )
    pattern, role = rule
    _check_role(role)
    if isinstance(pattern, str):
      compile_pattern(pattern)
    elif logical_axes is None:
      raise ValueError(f'The rule for axes {pattern!r} needs logical_axes=.')
    named.append((str(pattern), rule))
  return named


def compile_pattern(pattern: str) -> re.Pattern[str]:
  """`re.compile`, whose error is a ValueError that shows the pattern."""
  try:
    return re.compile(pattern)
  except (re.error, TypeError) as error:
    raise ValueError(
      f'The pattern {pattern!r} is not a regular expression: {error}.'
    ) from error


def _check_role(role: Any) -> None:
  if role not in ROLES:
    raise ValueError(f'Unknown role {role!r}: use one of {", ".join(ROLES)}.')


def _axes_by_path(logical_axes: Any) -> dict[str, tuple[str, ...]]:
  # By path, not by structure: params may be masked, or Optax's placeholder.
  leaves = jax.tree.leaves_with_path(
    logical_axes, is_leaf=lambda x: isinstance(x, tuple)
  )
  return {leaf_path(key_path)[0]: axes for key_path, axes in leaves}


def leaf_path(key_path: tuple[Any, ...]) -> tuple[str, bool]:
  """A leaf's path as rules see it, and whether a name occurs in it."""
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
      f'Rules disagree about {path}: {described}. Make one of your rules '
      'narrower, or give this path a rule of its own if none is yours.'
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
    role = 'vector' if jnp.ndim(leaf) < 2 else 'matrix'
    return role, f'no name, {jnp.ndim(leaf)} axes'
  if default_role is not None:
    return default_role, 'default_role'
  return None


def _check_axes(matches: Sequence[Match]) -> None:
  flat = [m for m in matches if m.role != 'vector' and jnp.ndim(m.leaf) < 2]
  if flat:
    described = ', '.join(
      f'{m.path} {jnp.shape(m.leaf)} is {m.role} by {m.rule!r}' for m in flat
    )
    raise ValueError(
      'Roles other than vector need at least 2 axes: ' + described + '. Give '
      "these leaves the role 'vector' by a rule of their own."
    )
