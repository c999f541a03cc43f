"""Checks the arguments of recipes, and writes out their signatures."""

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any, TypedDict

import jax

from sage_optax.core import linalg
from sage_optax.leaves import pairs, presets


class Options(TypedDict, total=False):
  """Arguments of every recipe; `sage_optax.recipe` documents them."""

  roles: Any
  rules: Any
  logical_axes: Any
  matrix_axes: pairs.MatrixAxes
  stacked: Any
  scan_axis: int | None
  preset: presets.Preset | None
  default_role: str | None
  weight_decay: Any
  embedding: Any
  head: Any
  matrix: Any
  vector: Any


_DEFAULTS: Options = {
  'roles': None,
  'rules': None,
  'logical_axes': None,
  'matrix_axes': (),
  'stacked': (),
  'scan_axis': None,
  'preset': None,
  'default_role': None,
  'weight_decay': 0.0,
  'embedding': None,
  'head': None,
  'matrix': None,
  'vector': None,
}


class Own:
  """Default of an argument whose default differs between methods."""

  def __repr__(self):
    return "each method's own"


OWN: Any = Own()


class _Shown:
  """Hides from `optax.inject_hyperparams` that a default is a number."""

  def __init__(self, value):
    self._value = value

  def __repr__(self):
    return repr(self._value)


def recipe_function(function: Callable[..., Any]) -> Callable[..., Any]:
  """Writes out `**options` in the signature of a recipe's function.

  This way, `help()` shows the options, and `optax.inject_hyperparams`, which
  does not support `**options`, can pass them. Optax would trace default values
  that are numbers, or round them to bfloat16, so they are wrapped.
  """
  own = inspect.signature(function)
  parameters = [p for p in own.parameters.values() if p.kind != p.VAR_KEYWORD]
  parameters = [
    p if p.default is p.empty else p.replace(default=_Shown(p.default))
    for p in parameters
  ]
  parameters += [
    inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value)
    for key, value in _DEFAULTS.items()
  ]

  @functools.wraps(function)
  def call(*args, **kwargs):
    given = {k: v for k, v in kwargs.items() if not isinstance(v, _Shown)}
    return function(*args, **given)

  call.__signature__ = own.replace(  # type: ignore[attr-defined]
    parameters=parameters
  )
  return call


def given(arguments: dict[str, Any]) -> dict[str, Any]:
  """Converts the arguments of a recipe's function to those of `recipe`."""
  options = arguments.pop('options')
  own = {k: v for k, v in arguments.items() if v is not OWN}
  return {**own, **options}


def check_rate(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a number, a scalar or a schedule."""
  if not (_is_number(value) or callable(value) or value is None):
    raise ValueError(f'{name} must be a number or a schedule, got {value!r}.')
  if value is None and name == 'learning_rate':
    raise ValueError('learning_rate must be a number or a schedule, got None.')


def check_factor(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a number or a scalar."""
  if not _is_number(value):
    raise ValueError(
      f'{name} must be a number, got {value!r}: pass a schedule as the '
      'learning rate.'
    )


def _is_number(value: Any) -> bool:
  if isinstance(value, bool):
    return False
  return isinstance(value, numbers.Number) or hasattr(value, 'dtype')


def check(name: str, value: Any, parameter: inspect.Parameter) -> Any:
  """Checks and returns an argument of a method.

  Args:
    name: name of the argument, for messages.
    value: the value given by the user.
    parameter: the parameter in the method's signature.

  Returns:
    The value; a Python number if the method needs one.

  Raises:
    ValueError: a string instead of a number; or, under
      `optax.inject_hyperparams`, a dtype that it has called, a traced number
      that determines shapes, or one that was rounded too much.
  """
  numeric = isinstance(parameter.default, int | float)
  if isinstance(value, str) and numeric:
    raise ValueError(f'{name} must be a number, got the string {value!r}.')
  if not isinstance(value, jax.Array):
    return value
  if parameter.name.endswith('dtype'):
    raise ValueError(
      f'{name} must be a dtype, got an array. For optax.inject_hyperparams, '
      f'which calls jnp.{value.dtype}, pass the name {value.dtype.name!r}.'
    )
  if (
    parameter.annotation in (int, int | None, bool) and parameter.name != 'key'
  ):
    if isinstance(value, jax.core.Tracer):
      raise ValueError(
        f'{name} must be a Python number, got a traced one. For '
        f'optax.inject_hyperparams pass static_args=({parameter.name!r},).'
      )
    return int(value)
  linalg.check_precise(name, value)
  return value
