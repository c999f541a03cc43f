"""Axes given by users: pairs (fan_in, fan_out) by path."""

import operator
from collections.abc import Callable, Sequence

from sage_optax.leaves import rules as rules_lib
from sage_optax.leaves.axis_names import Axes

# (axes of fan_in, axes of fan_out) of a leaf; all other axes are batch axes.
AxesPair = tuple[tuple[int, ...], tuple[int, ...]]

# (pattern, pair) rules, or a function from the path to a pair, or to None for
# leaves that it does not cover.
MatrixAxes = Sequence[tuple[str, AxesPair]] | Callable[[str], AxesPair | None]


def axes_function(
  matrix_axes: MatrixAxes, role: str | None = None
) -> Callable[[str], AxesPair | None]:
  """Returns `matrix_axes` as a function of the path.

  Args:
    matrix_axes: as in `with_matrix_axes`.
    role: the role of the leaves; leaves with role 'vector' have no fan_in.

  Returns:
    Path -> pair or None; it raises ValueError if rules disagree.
  """
  if matrix_axes is None:
    raise ValueError(
      'matrix_axes must be a function of the path or pairs in a list, got '
      'None. optax.inject_hyperparams calls a function with its step count: '
      "pass static_args=('matrix_axes',), or a list. Otherwise, omit it."
    )
  find = matrix_axes if callable(matrix_axes) else _search(matrix_axes)

  def axes_of(path):
    pair = find(path)
    if pair is None:
      return None
    try:
      fan_in, fan_out = (tuple(map(operator.index, axes)) for axes in pair)
    except (TypeError, ValueError):
      raise ValueError(
        f'matrix_axes of {path} must be None or a pair (fan_in, fan_out) of '
        f'tuples of axes, got {pair!r}.'
      ) from None
    if role is not None:
      check_role(path, (fan_in, fan_out), role)
    return fan_in, fan_out

  return axes_of


def check_role(path: str, pair: AxesPair, role: str) -> None:
  """Raises ValueError if a vector would have fan_in."""
  if role == 'vector' and pair[0]:
    raise ValueError(
      f'{path} has the role vector, so its matrix_axes must be ((), axes), '
      f'got {pair!r}: make the rule narrower, or give it another role.'
    )


def axes_of_pair(path: str, shape: tuple[int, ...], pair: AxesPair) -> Axes:
  """The axes that a pair names, counted from the start.

  Args:
    path: path of the leaf, for the message.
    shape: shape of the leaf.
    pair: the pair given by the user.

  Returns:
    The `Axes`.

  Raises:
    ValueError: the pair does not fit the shape.
  """
  fan_in, fan_out = check(path, shape, pair)
  named = {*fan_in, *fan_out}
  batch = tuple(a for a in range(len(shape)) if a not in named)
  return Axes(batch, fan_in, fan_out)


def _search(
  rules: Sequence[tuple[str, AxesPair]],
) -> Callable[[str], AxesPair | None]:
  compiled = []
  for rule in rules:
    if not isinstance(rule, tuple | list) or len(rule) != 2:
      raise ValueError(
        'matrix_axes must be a function of the path or (pattern, (fan_in, '
        f'fan_out)) pairs in a list, got {rule!r}.'
      )
    compiled.append((rules_lib.compile_pattern(rule[0]), rule[1]))

  def find(path):
    found = [(p.pattern, pair) for p, pair in compiled if p.search(path)]
    if any(pair != found[0][1] for _, pair in found):
      described = ' and '.join(f'{p!r} -> {pair}' for p, pair in found)
      raise ValueError(
        f'Rules of matrix_axes disagree about {path}: {described}. Make one of '
        'them narrower.'
      )
    return found[0][1] if found else None

  return find


def check(path: str, shape: tuple[int, ...], pair: AxesPair) -> AxesPair:
  """The pair with axes counted from the start, if it fits the shape."""
  ndim = len(shape)
  named = [*pair[0], *pair[1]]
  inside = all(-ndim <= axis < ndim for axis in named)
  if not named or not inside or len({a % ndim for a in named}) < len(named):
    raise ValueError(
      f'matrix_axes of {path} {shape} must name different axes of its {ndim}, '
      f'at least one, got {pair!r}.'
    )
  return tuple(a % ndim for a in pair[0]), tuple(a % ndim for a in pair[1])
