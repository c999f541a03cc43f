"""Counts how often each instruction of a compiled program runs.

XLA's own cost analysis counts the body of a loop once, and supports neither
collectives nor GPUs. Here, trip counts of loops are read from the program.
"""

import dataclasses
import re
from collections.abc import Iterator

from train.plan.hlo import Computation, Instruction, Module, root


@dataclasses.dataclass(frozen=True)
class Visit:
  """An instruction and how often a device runs it in one run of the program.

  Attributes:
    instruction: The instruction.
    computation: The computation that contains it.
    times: Number of executions.
    fused: Whether it is part of a fusion, which has a visit of its own.
    owner: The name of the computation.
    unknown: Whether it is a loop with an unknown trip count.
  """

  instruction: Instruction
  computation: Computation
  times: int
  fused: bool
  owner: str
  unknown: bool = False


def walk(module: Module, *, dearest: bool = False) -> Iterator[Visit]:
  """Yields every instruction with its number of executions.

  Args:
    module: The program.
    dearest: Whether conditionals take the branch with most instructions instead
      of the one with fewest. In a training step, the longer branch is work that
      is not done in every step, such as renewing a projector.

  Yields:
    The instructions; a loop with an unknown trip count is assumed to run once.
  """
  yield from _walk(module, module.entry, 1, False, dearest, None)


def unknown_loops(module: Module) -> list[Instruction]:
  """Returns the loops with an unknown trip count."""
  return [
    visit.instruction for visit in walk(module, dearest=True) if visit.unknown
  ]


def _walk(module, name, times, fused, dearest, frame) -> Iterator[Visit]:
  computation = module.computations[name]
  for instruction in computation.values():
    called = instruction.called
    args = (fused or instruction.opcode == 'fusion', dearest)
    visit = Visit(instruction, computation, times, fused, name)
    if instruction.opcode == 'while':
      inner = _Frame(module, computation, instruction, frame)
      trips = inner.trip_count()
      yield dataclasses.replace(visit, unknown=trips is None)
      many = times * (1 if trips is None else trips)
      yield from _walk(module, called['body'][0], many, *args, inner)
      continue
    yield visit
    if instruction.opcode == 'conditional':
      keys = ('branch_computations', 'true_computation', 'false_computation')
      names = [n for key in keys for n in called.get(key, ())]
      choose = max if dearest else min
      chosen = choose(names, key=lambda n: len(module.computations[n]))
      yield from _walk(module, chosen, times, *args, None)
    elif instruction.opcode in ('fusion', 'call', 'async-start'):
      for callee in called.get('calls', called.get('to_apply', ())):
        yield from _walk(module, callee, times, *args, None)


@dataclasses.dataclass(frozen=True)
class _Frame:
  """A loop and the initial values of its variables.

  Attributes:
    module: The program.
    outside: The computation of the loop's instruction.
    loop: That instruction.
    parent: The frame of `outside`, if that is itself the body of a loop.
  """

  module: Module
  outside: Computation
  loop: Instruction
  parent: '_Frame | None'

  def trip_count(self) -> int | None:
    """The trip count of the loop, or None if unknown."""
    known = re.search(
      r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', self.loop.attributes
    )
    if known:
      return int(known[1])
    body, condition = (
      self.module.computations[self.loop.called[key][0]]
      for key in ('body', 'condition')
    )
    test = root(condition)
    direction = test.attribute('direction', r'\w+', '')
    steps = {'LT': 0, 'LE': 1}
    if test.opcode == 'compare' and direction in steps:
      counter, limit = (_source(condition, name) for name in test.operands)
      if counter.opcode == 'get-tuple-element':
        index = counter.index
        first = self.initial(index)
        step = self._step(body, index)
        last = _value(condition, limit.name, self)
        if first is not None and last is not None and step:
          return max(-(-(last + steps[direction] - first) // step), 0)
    return None

  def initial(self, index: int) -> int | None:
    """The initial value of a variable of the loop, or None if unknown."""
    start = self.outside[self.loop.operands[0]]
    if start.opcode != 'tuple':
      return None
    return _value(self.outside, start.operands[index], self.parent)

  def invariant(self, index: int) -> int | None:
    """Like `initial`, for a variable that does not change."""
    body = self.module.computations[self.loop.called['body'][0]]
    after = _source(body, root(body).operands[index])
    same = after.opcode == 'get-tuple-element' and after.index == index
    return self.initial(index) if same else None

  def _step(self, body: Computation, index: int) -> int | None:
    """The increment of a variable per iteration, or None if unknown."""
    after = _source(body, root(body).operands[index])
    if after.opcode != 'add':
      return None
    counter, step = (_source(body, name) for name in after.operands)
    if counter.opcode == 'constant':
      counter, step = step, counter
    if counter.opcode != 'get-tuple-element' or counter.index != index:
      return None
    return _value(body, step.name, self)


def _source(computation: Computation, name: str) -> Instruction:
  """Returns the original of a copied value."""
  instruction = computation[name]
  while instruction.opcode in ('copy', 'bitcast', 'convert'):
    instruction = computation[instruction.operands[0]]
  return instruction


def _value(computation, name: str, frame: _Frame | None) -> int | None:
  """Returns the value of a scalar integer, or None if unknown."""
  instruction = _source(computation, name)
  if instruction.opcode == 'constant':
    text = instruction.arguments
    return int(text) if re.fullmatch(r'-?\d+', text) else None
  if instruction.opcode == 'get-tuple-element' and frame is not None:
    source = computation[instruction.operands[0]]
    if source.opcode == 'parameter':
      return frame.invariant(instruction.index)
  return None
