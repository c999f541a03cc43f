"""Declarations of fields; checks, help and identity are derived from them.

A section is a dataclass of fields. The declaration of a field in `schema.py`
contains everything about it: name, type, default, meaning, accepted values, and
whether a run with another value is a different run.
"""

import dataclasses
import math
import os
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

from train.errors import UserError

# What a change of a field affects.
# 'no': only speed or output.
# 'rounding': the order of sums; a resumed run prints a warning.
# 'value': the run; a working directory with another value is rejected.
# 'resolved': the run, but only if the value computed from the field, such as a
#   learning rate or the data, changes.
Identity = Literal['no', 'rounding', 'value', 'resolved']


class Accepts(Protocol):
  """Tests whether a value is accepted; str() describes the accepted ones."""

  def __call__(self, value: Any) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers between two limits.

  Attributes:
    minimum: The smallest.
    maximum: The largest.
    above: Exclusive lower limit, instead of `minimum`.
    below: Exclusive upper limit, instead of `maximum`.
  """

  minimum: float = -math.inf
  maximum: float = math.inf
  above: float = -math.inf
  below: float = math.inf

  def __call__(self, value: float) -> bool:
    within = self.minimum <= value <= self.maximum
    return within and self.above < value < self.below

  def __str__(self) -> str:
    limits = {
      'more than': self.above,
      'at least': self.minimum,
      'less than': self.below,
      'at most': self.maximum,
    }
    return ' and '.join(
      f'{words} {limit:.12g}'
      for words, limit in limits.items()
      if math.isfinite(limit)
    )


# JAX's counters and sizes are 32 bits wide.
INT32 = 2**31 - 1
COUNT = Range(1, INT32)
COUNT_OR_ZERO = Range(0, INT32)


class Choices:
  """One of a few words."""

  def __init__(self, *words: str):
    self.words = words

  def __call__(self, value: str) -> bool:
    return value in self.words

  def __str__(self) -> str:
    return f'one of {", ".join(repr(word) for word in self.words)}'


class Path:
  """A path of valid length; whether it exists is checked later."""

  def __call__(self, value: str) -> bool:
    try:
      encoded = os.fsencode(value)
    except UnicodeError:
      return False
    longest = max(len(part) for part in encoded.split(b'/'))
    return b'\0' not in encoded and len(encoded) < 4096 and longest < 256

  def __str__(self) -> str:
    return 'a path of at most 4095 bytes, each part at most 255'


class FileName(Path):
  """A path of one part."""

  def __call__(self, value: str) -> bool:
    single = value not in ('', '.', '..') and not {'/', '\\'} & set(value)
    return single and super().__call__(value)

  def __str__(self) -> str:
    return 'a name of at most 255 bytes, without slashes'


class Declaration(NamedTuple):
  """What a field declares in addition to its type and default.

  Attributes:
    meaning: A sentence or two, for the help.
    accepts: Which values of its type are accepted; None: all except NaN and the
      infinities.
    identity: See `Identity`.
    option: Whether it is a keyword argument of the recipes.
  """

  meaning: str
  accepts: Accepts | None
  identity: Identity
  option: bool


def field(
  default: Any,
  meaning: str,
  accepts: Accepts | None = None,
  identity: Identity = 'no',
  option: bool = False,
) -> Any:
  """Declares a field of a section, as `dataclasses.field`; see Declaration."""
  declaration = Declaration(meaning, accepts, identity, option)
  metadata = {'declaration': declaration}
  if isinstance(default, dict):
    return dataclasses.field(
      default_factory=lambda: dict(default), metadata=metadata
    )
  return dataclasses.field(default=default, metadata=metadata)


class Declared(NamedTuple):
  """A field of a configuration.

  Attributes:
    path: Its dotted path, such as 'train.steps'.
    value: Its value.
    kinds: Its types, including NoneType if it may be None; for a dictionary,
      the types of its values.
    declaration: Its declaration.
  """

  path: str
  value: Any
  kinds: tuple[type, ...]
  declaration: Declaration

  @property
  def items(self) -> dict[str, Any]:
    """Path -> value of the field, or of the items of a dictionary."""
    if not isinstance(self.value, dict):
      return {self.path: self.value}
    return {f'{self.path}.{k}': item for k, item in self.value.items()}

  @property
  def type_words(self) -> str:
    """Its types, such as 'int or none'."""
    return ' or '.join(
      'none' if kind is type(None) else kind.__name__ for kind in self.kinds
    )


def walk(section: Any, prefix: str = '') -> Iterator[Declared]:
  """Yields the fields of a section and its subsections, in order.

  Raises:
    UserError: If something is not a section or dictionary where it must be one.
  """
  hints = typing.get_type_hints(type(section))
  for entry in dataclasses.fields(section):
    hint, value = hints[entry.name], getattr(section, entry.name)
    path = f'{prefix}{entry.name}'
    if dataclasses.is_dataclass(hint):
      if not isinstance(value, typing.cast(type, hint)):
        raise UserError(f'config.{path} is {show(value)}, not a section')
      yield from walk(value, f'{path}.')
      continue
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is dict:
      if not isinstance(value, dict):
        raise UserError(f'config.{path} is {show(value)}: give a dictionary')
      kinds = kinds[1:]
    elif isinstance(value, dict):
      raise UserError(f'config.{path} is a dictionary: give one value')
    yield Declared(path, value, kinds, entry.metadata['declaration'])


def check(section: Any) -> None:
  """Raises UserError at the first field whose value is not accepted."""
  for declared in walk(section):
    kinds, declaration = declared.kinds, declared.declaration
    for path, item in declared.items.items():
      # An int is accepted as a float, but a bool is not an int.
      if type(item) not in {*kinds, *((int,) if float in kinds else ())}:
        wanted = declared.type_words
      elif isinstance(item, float) and not math.isfinite(item):
        wanted = 'a finite number'
      elif item is None or not declaration.accepts or declaration.accepts(item):
        continue
      else:
        wanted = str(declaration.accepts)
      raise UserError(f'config.{path} is {show(item)}: give {wanted}')


def settings(section: Any) -> dict[str, Any]:
  """Returns path -> value of everything that can be set."""
  return {
    path: value
    for declared in walk(section)
    for path, value in declared.items.items()
  }


def show(value: Any) -> str:
  """Formats a value in at most 100 characters; for an object, only its type."""
  if isinstance(value, bool | int | float | str | None):
    text = repr(value)
    return text if len(text) <= 100 else f'{text[:97]}...'
  return f'of type {type(value).__name__}'


def select(section: Any, *identities: Identity) -> dict[str, Any]:
  """Returns path -> value of the fields whose identity is one of these."""
  return {
    declared.path: declared.value
    for declared in walk(section)
    if declared.declaration.identity in identities
  }
