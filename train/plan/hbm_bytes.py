"""Bytes that a compiled program reads and writes in a device's main memory.

A fusion reads its operands and writes its result. If it only takes slices of an
operand, or updates its result in place, only the slices count. Arrays in a
TPU's on-chip memory do not count.
"""

from train.plan import hlo, hlo_walk

# These only name or view data.
_FREE = {
  *('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast'),
  *('while', 'conditional', 'call', 'after-all', 'partition-id'),
  *('replica-id', 'opt-barrier', 'add-dependency', 'async-start'),
}
_SLICES = ('dynamic-slice', 'slice', 'gather')
_VIEWS = ('bitcast', 'reshape')


def accessed(module: hlo.Module, *, dearest: bool = False) -> int:
  """Returns the bytes that one device accesses in one run.

  Args:
    module: The program.
    dearest: See `hlo_walk.walk`.
  """
  total = 0
  for visit in hlo_walk.walk(module, dearest=dearest):
    if not visit.fused:
      total += visit.times * _bytes(module, visit)
  return total


def _bytes(module: hlo.Module, visit: hlo_walk.Visit) -> int:
  instruction, computation = visit.instruction, visit.computation
  opcode = instruction.opcode
  operands = [computation[name] for name in instruction.operands]
  if opcode in _FREE or opcode.endswith(('-done', '-update')):
    return 0
  if opcode == 'fusion':
    body = module.computations[instruction.called['calls'][0]]
    return _fusion(instruction, operands, body)
  if opcode.removesuffix('-start') in _SLICES:
    taken = min(instruction.arrays, key=_elements_or_more)
    source = operands[0].arrays[0]
    return _main(taken) + (taken.bytes if source.space == 0 else 0)
  if opcode == 'dynamic-update-slice':
    update = operands[1].arrays[0]
    target = instruction.arrays[0]
    return _main(update) + (update.bytes if target.space == 0 else 0)
  written = instruction.arrays
  if opcode.endswith('-start'):
    # The result is (operands, results, contexts); a copy swaps the first two.
    written = written[: 2 * len(operands)]
    return sum(map(_main, written))
  if opcode == 'custom-call' and not operands:
    return 0
  read = [array for operand in operands for array in operand.arrays]
  return sum(map(_main, read)) + sum(map(_main, written))


def _main(array: hlo.Array) -> int:
  return 0 if array.space else array.bytes


def _elements_or_more(array: hlo.Array) -> tuple[bool, int]:
  """Order in which a slice comes before what it is taken from."""
  return (not array.shape, array.size)


def _fusion(
  instruction: hlo.Instruction,
  operands: list[hlo.Instruction],
  body: hlo.Computation,
) -> int:
  users: dict[str, list[hlo.Instruction]] = {}
  for inner in body.values():
    for name in inner.operands:
      users.setdefault(name, []).append(inner)
  total = 0
  for inner in body.values():
    if inner.opcode == 'parameter':
      operand = operands[int(inner.arguments)]
      arrays = operand.arrays
      if len(arrays) == 1 and not arrays[0].space:
        total += _read(inner, users, arrays[0].bytes)
  result = hlo.root(body)
  roots = (
    [body[name] for name in result.operands]
    if result.opcode == 'tuple'
    else [result]
  )
  if len(roots) != len(instruction.arrays):
    return total + sum(map(_main, instruction.arrays))
  for inner, array in zip(roots, instruction.arrays, strict=True):
    if not array.space:
      total += _written(inner, body, array.bytes)
  return total


def _read(value: hlo.Instruction, users, whole: int) -> int:
  """Returns the bytes that a fusion reads from one of its parameters."""
  total = 0
  for user in users.get(value.name, ()):
    if user.opcode in _VIEWS:
      part = _read(user, users, whole)
    elif user.opcode in _SLICES and user.operands[0] == value.name:
      part = user.arrays[0].bytes
    elif user.opcode == 'tuple' or (
      user.opcode == 'dynamic-update-slice' and user.operands[0] == value.name
    ):
      part = 0  # Passed on, or updated in place.
    else:
      return whole
    total += part
  return min(total, whole)


def _written(value: hlo.Instruction, body: hlo.Computation, whole: int) -> int:
  """Returns the bytes that a fusion writes to one of its results."""
  while value.opcode in _VIEWS:
    value = body[value.operands[0]]
  if value.opcode == 'parameter':
    return 0
  if value.opcode == 'dynamic-update-slice':
    return body[value.operands[1]].arrays[0].bytes
  return whole
