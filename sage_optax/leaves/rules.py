"""Users' rules: a pattern of the path, or axis names, and the role."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from sage_optax.leaves import metadata

ROLES = ('embedding', 'head', 'matrix', 'vector')

# A pattern is a regular expression, searched in the path, or a tuple of axis
# names that must equal the leaf's logical axes ('*' matches any one name).
Rule = tuple[str | re.Pattern[str] | tuple[str, ...], str]


def check(rules: Sequence[Rule] | None, default_role: str | None) -> list[Rule]:
  """Checks the rules, and returns them as a list."""
  if default_role not in (None, 'auto'):
    check_role(default_role)
  if isinstance(rules, str):
    raise ValueError(f'rules must be (pattern, role) pairs, got {rules!r}.')
  found: list[Rule] = []
  for rule in rules or ():
    if not isinstance(rule, tuple | list) or len(rule) != 2:
      raise ValueError(
        f'rules must be (pattern, role) pairs in a list, got {rule!r}.'
      )
    pattern, role = rule
    check_role(role)
    if isinstance(pattern, list):
      pattern = tuple(pattern)
    elif not isinstance(pattern, tuple):
      compile_pattern(pattern)
    found.append((pattern, role))
  return found


def compile_pattern(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
  """As `re.compile`, but raises a ValueError that shows the pattern."""
  try:
    return re.compile(pattern)
  except (re.error, TypeError) as error:
    raise ValueError(
      f'The pattern {pattern!r} is not a regular expression: {error}.'
    ) from error


def check_role(role: Any) -> None:
  """Raises ValueError if `role` is unknown."""
  if not isinstance(role, str) or role not in ROLES:
    raise ValueError(f'Unknown role {role!r}: use one of {", ".join(ROLES)}.')


def auto_role(shape: tuple[int, ...]) -> str:
  """The role from the number of axes alone."""
  return 'vector' if len(shape) < 2 else 'matrix'


def search(
  path: str, axes: tuple[Any, ...] | None, rules: Sequence[Rule]
) -> tuple[str, str] | None:
  """Returns (role, name of the rule) of the matching rule, or None."""
  found = [
    (role, str(getattr(pattern, 'pattern', pattern)))
    for pattern, role in rules
    if _matches(pattern, path, axes)
  ]
  if len({role for role, _ in found}) > 1:
    described = ' and '.join(f'{name!r} -> {role}' for role, name in found)
    raise ValueError(
      f'Rules disagree about {path}: {described}. Make one of your rules '
      'narrower.'
    )
  return found[0] if found else None


def axes_by_path(
  logical_axes: Any, paths: Sequence[str] = ()
) -> dict[str, tuple[Any, ...]]:
  """The tuples of a tree of axis names, by path; {} for None.

  Paths are used instead of the tree structure, because the parameters may be
  masked or Optax's empty placeholder.

  Args:
    logical_axes: the tree, or None.
    paths: paths that must have an entry.

  Raises:
    ValueError: A path has no entry.
  """
  leaves = jax.tree.leaves_with_path(
    logical_axes, is_leaf=lambda x: isinstance(x, tuple)
  )
  found = {metadata.leaf_path(key_path)[0]: axes for key_path, axes in leaves}
  for path in paths if logical_axes is not None else ():
    if path not in found:
      raise ValueError(f'logical_axes has no entry for {path}.')
  return found


def _matches(pattern: Any, path: str, axes: tuple[Any, ...] | None) -> bool:
  if not isinstance(pattern, tuple):
    return re.search(pattern, path) is not None
  if axes is None or len(pattern) != len(axes):
    return False
  return all(p in ('*', name) for p, name in zip(pattern, axes, strict=True))
