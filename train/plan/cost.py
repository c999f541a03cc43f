"""Costs of a compiled program on a device: collectives, products, bytes."""

import collections
import dataclasses
import json
import math
import re

from train.plan import hlo, hlo_walk

KINDS = (
  *('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all'),
  *('collective-permute', 'ragged-all-to-all', 'collective-broadcast'),
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  Attributes:
    name: Name of its instruction.
    kind: One of KINDS.
    bytes: Bytes of the larger of operands and results, on one device.
    largest: Number of elements in its largest array.
    group: Number of devices per group; 0 if unknown.
    times: Number of executions per step.
  """

  name: str
  kind: str
  bytes: int
  largest: int
  group: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends per step, assuming a ring."""
    n = self.group
    share = (n - 1) / n if n else 1.0
    if self.kind == 'all-reduce':
      share *= 2
    elif self.kind == 'collective-permute':
      share = 1.0
    return self.bytes * share * self.times


def find_collectives(
  module: hlo.Module, *, dearest: bool = False
) -> list[Collective]:
  """Returns the collectives of a program, each once.

  An asynchronous collective counts at its start. On TPUs, a collective may be
  spread over several fusions with the same channel (outside of fusions, the
  channel identifies nothing: all collectives of `shard_map` have channel 1),
  and a reduce-scatter is a fusion named all-reduce-scatter.
  """
  found: dict[str, Collective] = {}
  for visit in hlo_walk.walk(module, dearest=dearest):
    instruction = visit.instruction
    kind = instruction.opcode.removesuffix('-start')
    if kind not in KINDS:
      continue
    inputs = [
      array
      for name in instruction.operands
      for array in visit.computation[name].arrays
    ]
    outputs = instruction.arrays
    if instruction.opcode.endswith('-start'):
      # The result is (operands, results, contexts).
      outputs = outputs[len(inputs) : 2 * len(inputs)] or outputs
    if kind == 'all-reduce' and visit.owner.startswith('all-reduce-scatter'):
      kind = 'reduce-scatter'
    key = f'{visit.owner}/{instruction.name}'
    if visit.fused:
      key = instruction.attribute('channel_id', r'\d+', key)
    old = found.get(key)
    found[key] = Collective(
      name=old.name if old else instruction.name,
      kind=kind,
      bytes=max(sum(a.bytes for a in inputs), sum(a.bytes for a in outputs)),
      largest=max((a.size for a in (*inputs, *outputs)), default=0),
      group=_group_size(instruction),
      times=max(visit.times, old.times if old else 0),
    )
  return list(found.values())


def bytes_by_kind(collectives: list[Collective]) -> dict[str, int]:
  """Returns the bytes of a step per kind that occurs."""
  totals: dict[str, int] = collections.Counter()
  for c in collectives:
    totals[c.kind] += c.bytes * c.times
  return {kind: totals[kind] for kind in KINDS if totals[kind]}


def _group_size(instruction: hlo.Instruction) -> int:
  """Returns the number of devices in a group, in any notation."""
  text = instruction.attributes
  match = re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', text)
  if match:
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
    return math.prod(sizes[k] for k in re.findall(r"'(\w+)'", match[2]))
  match = re.search(r'replica_groups=\[(\d+),(\d+)\]', text)
  if match:
    return int(match[2])
  match = re.search(r'replica_groups=\{\{([\d,]*)\}', text)
  return len(match[1].split(',')) if match else 0


def product_flops(
  module: hlo.Module, *, dearest: bool = False
) -> dict[str, int]:
  """Returns the operations of matrix products, two per multiply-add.

  Args:
    module: The program.
    dearest: See `hlo_walk.walk`.

  Returns:
    Types of the factors, such as 'bf16' or 'f32 x bf16' -> operations. For a
    kernel, these are the types of its operands.
  """
  totals: dict[str, int] = collections.Counter()
  for visit in hlo_walk.walk(module, dearest=dearest):
    instruction = visit.instruction
    count = _COUNTS.get(instruction.opcode)
    if instruction.opcode == 'custom-call' and re.search(
      r'custom_call_target="[^"]*(gemm|matmul)', instruction.attributes
    ):
      count = _gemm
    elif instruction.name.startswith('splash_mha'):
      count = _splash
    if count is not None:
      factors = [visit.computation[n].arrays[0] for n in instruction.operands]
      if count is _splash:
        factors = factors[2:]  # Behind two lists of blocks.
      types = sorted({factor.dtype for factor in factors[:2]}, reverse=True)
      flops = count(instruction, visit.computation)
      totals[' x '.join(types)] += visit.times * flops
  return dict(totals)


def _dot(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
  left = computation[instruction.operands[0]].arrays[0]
  dims = instruction.attribute('lhs_contracting_dims', r'\{[\d,]*\}', '{}')
  contracted = [left.shape[int(d)] for d in re.findall(r'\d+', dims)]
  return 2 * instruction.arrays[0].size * math.prod(contracted)


def _gemm(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
  """Returns the operations of a library call, which is described in JSON."""
  config = instruction.attributes.partition('backend_config=')[2]
  if not config:
    return 0
  parsed = json.JSONDecoder().raw_decode(config)[0]
  numbers = parsed.get('gemm_backend_config', parsed).get(
    'dot_dimension_numbers', {}
  )
  left = computation[instruction.operands[0]].arrays[0]
  contracted = [
    left.shape[int(d)] for d in numbers.get('lhs_contracting_dimensions', ())
  ]
  return 2 * instruction.arrays[0].size * math.prod(contracted)


def _splash(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
  """Returns the operations of causal attention, without the skipped blocks."""
  blocks = computation[instruction.operands[0]].arrays[0].shape[-1]
  queries = computation[instruction.operands[2]].arrays[0]
  keys = computation[instruction.operands[3]].arrays[0]
  # Backward: scores, their gradient, and three results. With two kernels, the
  # one for queries recomputes the first two.
  products = 5 if '_dkv' in instruction.name else 2
  product = 2 * queries.size * keys.shape[-2]
  return products * product * (blocks + 1) // (2 * blocks)


def _convolution(
  instruction: hlo.Instruction, computation: hlo.Computation
) -> int:
  """Returns the operations of a convolution (a TPU's product), sans padding."""
  left, right = (computation[n].arrays[0] for n in instruction.operands[:2])
  labels = instruction.attribute('dim_labels', r'[\w?]+->\w+', '')
  lhs, rhs, out = re.split(r'_|->', labels)
  window = instruction.attribute('window', r'\{[^}]*\}', '{}')
  spatial = sorted(set(lhs) - set('bf'))
  fields = {k: v.split('x') for k, v in re.findall(r'(\w+)=([\w\-]+)', window)}
  result = instruction.arrays[0]
  total = 2 * right.shape[rhs.index('i')]
  total *= result.shape[out.index('b')] * result.shape[out.index('f')]
  for i, label in enumerate(spatial):

    def field(name, default, i=i):
      return fields[name][i] if name in fields else default

    axis = _WindowAxis(
      size=int(field('size', '1')),
      stride=int(field('stride', '1')),
      low=int(field('pad', '0_0').split('_')[0]),
      lhs_dilate=int(field('lhs_dilate', '1')),
      rhs_dilate=int(field('rhs_dilate', '1')),
    )
    total *= axis.positions(
      left.shape[lhs.index(label)], result.shape[out.index(label)]
    )
  return total


@dataclasses.dataclass(frozen=True)
class _WindowAxis:
  """One axis of a convolution's window; names as in HLO.

  Attributes:
    size: Size of the kernel.
    stride: Distance of two output positions in the input.
    low: Padding before the input.
    lhs_dilate: Distance of two elements of the input, with zeros between.
    rhs_dilate: The same of the kernel.
  """

  size: int
  stride: int
  low: int
  lhs_dilate: int
  rhs_dilate: int

  def positions(self, size_in: int, size_out: int) -> int:
    """Returns the pairs of output and kernel positions that meet an input."""
    end = (size_in - 1) * self.lhs_dilate
    count = 0
    for k in range(self.size):
      # Input position o * stride + offset: inside, and not a hole.
      offset = k * self.rhs_dilate - self.low
      if self.lhs_dilate == 1:
        first = max(-(offset // self.stride), 0)
        last = min((end - offset) // self.stride, size_out - 1)
        count += max(last - first + 1, 0)
      else:
        places = (o * self.stride + offset for o in range(size_out))
        count += sum(0 <= p <= end and p % self.lhs_dilate == 0 for p in places)
    return count


_COUNTS = {'dot': _dot, 'convolution': _convolution}
