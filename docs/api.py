"""The public names of `sage_optax` with their signatures, one per line."""

import importlib
import inspect
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import sage_optax


def listing() -> str:
  """Text of tests/public_api.txt.

  It covers `sage_optax` and the modules directly in it; a name is listed once,
  under `sage_optax` if exported there. The packages `methods`, `core` and
  `kernels` are internal.
  """
  lines = ['# Written by python -m docs.generate api']
  lines += [
    line
    for name in sorted(sage_optax.__all__)
    for line in _describe(f'sage_optax.{name}', getattr(sage_optax, name))
  ]
  for path in sorted(
    pathlib.Path(sage_optax.__file__).parent.glob('[a-z]*.py')
  ):
    module = importlib.import_module(f'sage_optax.{path.stem}')
    lines += [
      line
      for name, thing in sorted(vars(module).items())
      if _is_own(module, name, thing)
      for line in _describe(f'{module.__name__}.{name}', thing)
    ]
  return '\n'.join(lines) + '\n'


def _is_own(module: types.ModuleType, name: str, thing: Any) -> bool:
  """Whether the module defines a public name itself."""
  if name.startswith('_') or inspect.ismodule(thing):
    return False
  if name in sage_optax.__all__:
    return False  # listed under `sage_optax`
  if inspect.isclass(thing) or inspect.isfunction(thing):
    return thing.__module__ == module.__name__
  return name.isupper()  # a constant


def _describe(path: str, thing: Any) -> Iterator[str]:
  """A line for a function or constant; for a class, its members as well."""
  if inspect.isfunction(thing):
    yield path + _signature(thing)
  elif inspect.isclass(thing):
    yield f'class {path}{_signature(thing)}'
    for name, member in sorted(vars(thing).items()):
      if name.startswith('_') or name in getattr(thing, '_fields', ()):
        continue
      if inspect.isfunction(member):
        yield f'{path}.{name}{_signature(member)}'
      elif isinstance(member, property):
        yield f'{path}.{name}'
  else:
    yield f'{"module " if inspect.ismodule(thing) else ""}{path}'


def _signature(thing: Any) -> str:
  """Arguments and defaults; annotations look different on each Python."""
  parameters = [
    p.replace(annotation=p.empty, default=_Name.of(p.default))
    for p in inspect.signature(thing).parameters.values()
  ]
  return str(inspect.Signature(parameters))


class _Name:
  """Prints a function or class by its name, without its address."""

  def __init__(self, name: str):
    self._name = name

  def __repr__(self) -> str:
    return self._name

  @classmethod
  def of(cls, default: Any) -> Any:
    if default is inspect.Parameter.empty or not callable(default):
      return default
    return cls(getattr(default, '__name__', type(default).__name__))
