"""Parses the text of a compiled program."""

import dataclasses
import functools
import math
import re

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's2': 2, 'u2': 2, 'token': 0, 'opaque': 0}
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,<= ]*)\](\{[^{}]*\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'(\w+)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)\}?')


@dataclasses.dataclass(frozen=True)
class Array:
  """The shard of an array on one device.

  Attributes:
    dtype: Its type, such as 'bf16'.
    shape: Its shape.
    space: Its memory space; on TPUs, 0 is HBM and 1 the on-chip memory.
  """

  dtype: str
  shape: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    digits = re.search(r'\d+', self.dtype)
    bits = _BITS.get(self.dtype, int(digits[0]) if digits else 8)
    return -(-self.size * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of the program.

  Attributes:
    name: Its name, unique in the program.
    opcode: Its operation, such as 'fusion'.
    type_text: The type of its result.
    operands: Names of the operands.
    arguments: The text between the parentheses.
    attributes: The text after them.
    root: Whether it is the result of its computation.
  """

  name: str
  opcode: str
  type_text: str
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The arrays of the result; more than one if it is a tuple."""
    return _arrays(self.type_text)

  @functools.cached_property
  def called(self) -> dict[str, tuple[str, ...]]:
    """Attribute -> names of the computations that it calls."""
    return {
      key: tuple(_NAME.findall(names))
      for key, names in _CALLED.findall(self.attributes)
    }

  @property
  def index(self) -> int:
    """The index of a get-tuple-element."""
    return int(self.attribute('index', r'\d+', '0'))

  def attribute(self, name: str, pattern: str, default: str) -> str:
    match = re.search(rf'\b{name}=({pattern})', self.attributes)
    return match[1] if match else default


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: Name -> its instructions, by name.
    entry: The name of the computation that runs.
  """

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Returns the program of `compiled.as_text()`."""
  computations: dict[str, Computation] = {}
  current: Computation = {}
  entry = ''
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
      continue
    match = _INSTRUCTION.match(line)
    if match:
      instruction = _instruction(bool(match[1]), match[2], match[3])
      current[instruction.name] = instruction
  if not entry:
    raise ValueError('No ENTRY in the text: pass compiled.as_text().')
  return Module(computations, entry)


def root(computation: Computation) -> Instruction:
  """Returns the instruction that is the result."""
  return next(i for i in computation.values() if i.root)


def _instruction(is_root: bool, name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ') - 1
  type_text, rest = rest[: end + 1], rest[end + 1 :].lstrip()
  start = rest.index('(')
  stop = _closing(rest, start)
  arguments = rest[start + 1 : stop]
  return Instruction(
    name=name,
    opcode=rest[:start],
    type_text=type_text,
    operands=tuple(_NAME.findall(arguments)),
    arguments=arguments,
    attributes=rest[stop + 1 :],
    root=is_root,
  )


def _closing(text: str, start: int) -> int:
  """Returns the position of the parenthesis that closes that at `start`."""
  depth = 0
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if depth == 0:
      return match.start()
  raise ValueError(f'No closing parenthesis in {text[:80]!r}.')


def _arrays(type_text: str) -> tuple[Array, ...]:
  result = []
  for dtype, dims, layout in _ARRAY.findall(type_text):
    shape = tuple(int(re.sub(r'\D', '', d)) for d in dims.split(',') if d)
    space = re.search(r'S\((\d+)\)', layout)
    result.append(Array(dtype, shape, int(space[1]) if space else 0))
  return tuple(result)
