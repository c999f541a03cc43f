"""Compiles one step for a target and measures its memory and operations."""

import dataclasses
import importlib.metadata
import inspect
import math
import re
import time
from typing import Any

import jax

import sage_optax
from models import llama
from sage_optax import recipes
from train import optimizer as optimizer_lib
from train import program as program_lib
from train.config import Config
from train.errors import UserError
from train.plan import cost, hbm_bytes, hlo, hlo_walk, targets
from train.program import batch_bytes, sharded_bytes


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Requirements of one step of one recipe, per device.

  Attributes:
    recipe: The recipe.
    batch_size: Sequences per step, over all devices.
    microbatch: Sequences differentiated at a time.
    params: Bytes of parameters.
    grads: Bytes of gradients, float32.
    state: Bytes of the optimizer's state, from its shapes and shardings.
    state_all: Bytes of the state over all devices, by the recipe's formulas.
    batch: Bytes of a batch of tokens.
    arguments: Bytes of the step's arguments, as the compiler counts them.
    peak: Peak bytes in use, as the compiler counts them; if the program does
      not fit, the bytes that the compiler reports as needed.
    fits: Whether the program fits in the memory of the chip.
    model_flops: Operations of the model by `llama.flops_per_token`.
    flops: Operations of all compiled products, including recomputation, work
      duplicated across devices, and the optimizer. None on GPUs.
    bytes: Bytes read from and written to main memory; None if the program was
      compiled with less effort, which increases them.
    collectives: Bytes of a step's collectives by kind.
    sent: Bytes that a device sends for them, assuming rings.
    product_types: Types of the factors, such as 'bf16' or 'f32 x bf16' ->
      operations of such products.
    renewal: The last five, for a step in which conditionals take the branch
      with most instructions, such as one that renews projectors; empty if they
      are the same.
    notes: Differences from the request, one line each.
    seconds: Compilation time.
    versions: Versions of jax and the compiler.
  """

  recipe: str
  batch_size: int
  microbatch: int
  params: int
  grads: int
  state: int
  state_all: int
  batch: int
  arguments: int
  peak: int
  fits: bool
  model_flops: float
  flops: float | None
  bytes: int | None
  collectives: dict[str, int]
  sent: float
  product_types: dict[str, int]
  renewal: dict[str, Any]
  notes: list[str]
  seconds: float
  versions: dict[str, str]

  @property
  def temporaries(self) -> int:
    """The peak without parameters, gradients and state."""
    return self.peak - self.params - self.grads - self.state


# With this, compiling AdamW's step of 1.3 billion parameters takes 25 instead
# of 110 core-seconds. Collectives change by 0.02 %, bytes by a factor of 1.7.
# The peak was 0.2 % lower on 16 chips v5e, but 10 % lower with 6.7 billion
# parameters on 16 chips v5p.
_LITTLE_EFFORT = {'exec_time_optimization_effort': -1.0}


def measure(
  config: Config, target: targets.Target, *, quick: bool = False
) -> Measurement:
  """Compiles the trainer's own step and measures it.

  Args:
    config: The configuration; its platform is ignored.
    target: The hardware to plan for.
    quick: Whether to compile with less effort (TPUs only).

  Raises:
    UserError: if the mesh does not fit the target, or the target is unknown.
  """
  config, notes = plannable(config, target)
  program = program_lib.build(
    config, targets.devices(target), target.chip.platform
  )
  notes += replicated(program)
  began = time.monotonic()
  train = config.train
  lowered = program.lower_train_step(train.batch_size, train.seq_len)
  batch = batch_bytes(config, program)
  taken = sharded_bytes(program.abstract) + batch
  options = compiler_options(config, target, quick=quick)
  if options:
    notes.append(
      "compiled with less effort: the peak can be up to a tenth below a run's; "
      'bytes and time differ more and are left out'
    )
  compiled, peak = compile_or_need(lowered, taken, options)
  seconds = time.monotonic() - began
  room = target.device.memory or math.inf
  costs: dict[str, Any] = {'flops': None, 'bytes': 0, 'collectives': {}}
  costs |= {'sent': 0.0, 'product_types': {}, 'renewal': {}}
  arguments = 0
  if compiled is not None:
    memory = compiled.memory_analysis()
    peak, arguments = memory.peak_memory_in_bytes, memory.argument_size_in_bytes
    if target.kind == 'cpu':
      # On CPU, the compiler's peak does not include temporaries.
      peak = arguments + memory.temp_size_in_bytes
      peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    module = hlo.parse(str(compiled.as_text()))
    notes += uncounted(module)
    costs = _costs(module, target)
    if options:
      costs['bytes'] = None
  params = sharded_bytes(program.abstract.params)
  return Measurement(
    recipe=config.optimizer.recipe,
    batch_size=train.batch_size,
    microbatch=train.microbatch or train.batch_size,
    params=params,
    grads=params,
    state=sharded_bytes(program.abstract.opt_state),
    state_all=program.explanation.totals['all'].state_bytes,
    batch=batch,
    arguments=arguments,
    peak=peak,
    fits=compiled is not None and peak <= room,
    model_flops=llama.flops_per_token(program.model, train.seq_len)
    * (train.batch_size * train.seq_len / program.mesh.size),
    notes=notes,
    seconds=seconds,
    versions=versions(target),
    **costs,
  )


def plannable(
  config: Config, target: targets.Target
) -> tuple[Config, list[str]]:
  """Returns a configuration that compiles for the target, and the changes.

  Raises:
    UserError: if the recipe does not take one of the options.
  """
  if target.chip.platform != 'tpu' or _projectors(config) <= {'gaussian'}:
    return config, []
  optimizer = dataclasses.replace(config.optimizer, projector='subspace')
  return dataclasses.replace(config, optimizer=optimizer), [
    "planned with projector='subspace': an SVD does not compile for TPUs in "
    'reasonable time'
  ]


def compiler_options(
  config: Config, target: targets.Target, *, quick: bool = False
) -> dict[str, Any]:
  """Returns the compiler options for a plannable configuration.

  On TPUs, products in full precision are slow to compile, and methods with
  subspaces or SWAN's whitening have many of them per matrix.
  """
  if target.chip.platform != 'tpu':
    return {}
  methods = {part.method for part in _parts(config)}
  slow = 'swan' in methods or 'subspace' in _projectors(config)
  return _LITTLE_EFFORT if quick or slow else {}


def _projectors(config: Config) -> set[str]:
  """Returns the kinds of projectors that a recipe draws."""
  found = set()
  for part in _parts(config):
    method = inspect.signature(recipes.METHODS[part.method]).parameters
    if 'projector' in method:
      default = method['projector'].default
      found.add(part.kwargs.get('projector', default))
  return found


def _parts(config: Config) -> list[Any]:
  """Returns the parts of the recipe, one per role."""
  options = optimizer_lib.recipe_options(config)
  roles = {r: options.pop(r, None) for r in sage_optax.roles.ROLES}
  try:
    parts = recipes.resolve(config.optimizer.recipe, overrides=roles, **options)
  except ValueError as error:
    raise UserError(f'config.optimizer: {error}') from error
  return list(parts.values())


def compile_or_need(
  lowered: Any, arguments: int, options: dict[str, Any]
) -> tuple[Any, int]:
  """Compiles; if it does not fit, returns None and the bytes needed."""
  try:
    return lowered.compile(compiler_options=options or None), 0
  except jax.errors.JaxRuntimeError as error:
    need = needed_bytes(str(error), arguments)
    if need is None:
      raise
    return None, need


def needed_bytes(message: str, arguments: int) -> int | None:
  """Returns the needed bytes from a compiler error, or None.

  Args:
    message: Message of a compilation error.
    arguments: Bytes of the program's arguments. If temporaries alone do not
      fit, the compiler's figure does not include them.
  """
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  used = re.search(r'Used ([\d.]+[KMGT]?)i?B? of [\d.]+[KMGT]?\S* hbm', message)
  if used:
    return _bytes(used[1])
  alone = re.search(r'HLO temporaries \(([\d.]+[KMGT]?)', message)
  return _bytes(alone[1]) + arguments if alone else None


def _bytes(text: str) -> int:
  """Returns 1536 for '1.5K'."""
  power = 'KMGT'.find(text[-1]) + 1
  return round(float(text.rstrip('KMGT')) * 1024**power)


def replicated(program: program_lib.Program) -> list[str]:
  """Reports the parameters that the mesh does not divide."""
  rows = [row for row in program.explanation.rows if row.replicated]
  if not rows:
    return []
  paths = ', '.join(row.path for row in rows[:3])
  rest = f' and {len(rows) - 3} more' if len(rows) > 3 else ''
  return [f'replicated, since the mesh does not divide an axis: {paths}{rest}']


def versions(target: targets.Target) -> dict[str, str]:
  """Returns the versions of JAX and of the compiler."""
  compiler = {'tpu': 'libtpu', 'gpu': 'jax-cuda13-plugin', 'cpu': 'jaxlib'}
  names = ('jax', compiler[target.chip.platform])
  return {name: importlib.metadata.version(name) for name in names}


def uncounted(module: hlo.Module) -> list[str]:
  """Reports the loops that were counted as if they ran once."""
  loops = hlo_walk.unknown_loops(module)
  if not loops:
    return []
  where = loops[0].attribute('op_name', '"[^"]*"', loops[0].name)
  return [
    f'{len(loops)} loops have an unknown trip count ({where}, ...): FLOP, '
    'bytes and collectives count them once'
  ]


def _costs(module: hlo.Module, target: targets.Target) -> dict[str, Any]:
  def count(dearest: bool) -> dict[str, Any]:
    found = cost.find_collectives(module, dearest=dearest)
    flops = cost.product_flops(module, dearest=dearest)
    return {
      'flops': None if target.chip.platform == 'gpu' else sum(flops.values()),
      'product_types': flops,
      'bytes': hbm_bytes.accessed(module, dearest=dearest),
      'collectives': cost.bytes_by_kind(found),
      'sent': sum(c.sent for c in found),
    }

  usual, renewal = count(False), count(True)
  return {**usual, 'renewal': {} if renewal == usual else renewal}
