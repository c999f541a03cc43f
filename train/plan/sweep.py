"""Plans several recipes, and searches for batches and changes that fit.

Every configuration that is reported to fit has been compiled.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from train import config as config_lib
from train.config import Config
from train.errors import UserError
from train.plan import targets
from train.plan.measure import Measurement

# The search ends when the bounds are this close.
_PRECISION = 16
_MOST_TRIALS = 8


class Failure(Exception):
  """A compiler failed; the message is the compiler's."""


@dataclasses.dataclass(frozen=True)
class RecipePlan:
  """One recipe of a plan.

  Attributes:
    measurement: Requirements of its step.
    largest: The step with the largest batch that fits, if requested and found.
    advice: Changes that would fit if this step does not, one line each.
    memory: Largest memory of the subprocesses that compiled it, in bytes.
  """

  measurement: Measurement
  largest: Measurement | None
  advice: list[str]
  memory: int


class Sweep:
  """Compiles steps of one configuration for one target.

  Attributes:
    config: The configuration, with the first recipe.
    target: The hardware to plan for.
    mesh: Sizes of the mesh.
    memory: Largest memory of the subprocesses so far, in bytes.
  """

  def __init__(
    self,
    path: str,
    overrides: list[str],
    topology: str,
    recipes: list[str],
    say: Callable[[str], None] = lambda line: None,
    *,
    quick: bool = False,
  ):
    """Checks the arguments as far as possible before compiling.

    Args:
      path: The configuration file; '.recipe' may be any of `recipes`.
      overrides: Overrides such as 'train.steps=10'.
      topology: Name of the target.
      recipes: The recipes that will be planned.
      say: Receives progress messages.
      quick: Whether to compile with less effort (TPUs only).

    Raises:
      UserError: if an argument is wrong.
    """
    self._path = path
    # The learning rate does not change the program; some recipes have none yet.
    self._overrides = ['optimizer.learning_rate=0.001', 'eval.batch_size=0']
    self._overrides += overrides
    self._say = say
    self._quick = quick
    self.target = targets.parse(topology)
    targets.check_installed(self.target)
    loaded = [self._load(self._recipe(name)) for name in recipes]
    self.config = loaded[0]
    self.mesh = config_lib.mesh_shape(self.config, self.target.num_devices)
    config_lib.check_mesh(self.config, self.mesh)
    self.memory = 0

  @property
  def _unit(self) -> int:
    """The unit of the batch size."""
    return self.mesh[0] * self.mesh[1]

  def row(self, recipe: str, *, find_batch: bool, advise: bool) -> RecipePlan:
    """Measures one recipe."""
    self.memory = 0
    first = self._measure(recipe)
    largest = self._largest_batch(first) if find_batch else None
    advice = [] if first.fits or not advise else list(self._advice(first))
    return RecipePlan(first, largest, advice, self.memory)

  def collectives(self, recipe: str) -> list[dict[str, Any]]:
    """Returns the rows of `optimizer_collectives`, as dictionaries."""
    self._say(f'{recipe}: collectives of the optimizer')
    return self._run('collectives', self.target, self._recipe(recipe))

  def _measure(
    self, recipe: str, *changes: str, target: targets.Target | None = None
  ) -> Measurement:
    what = ' '.join([recipe, *(f'--config.{c}' for c in changes)])
    self._say(f'{what} on {(target or self.target).name}')
    found = self._run(
      'step', target or self.target, [*self._recipe(recipe), *changes]
    )
    return Measurement(**found)

  def _recipe(self, name: str) -> list[str]:
    return [f'optimizer.recipe={name}']

  def _load(self, changes: list[str]) -> Config:
    return config_lib.load(self._path, *self._overrides, *changes)

  def _run(self, what: str, target: targets.Target, changes: list[str]) -> Any:
    job = {
      'config': self._path,
      'overrides': [*self._overrides, *changes],
      'topology': target.name,
      'what': what,
      'quick': self._quick,
    }
    with tempfile.TemporaryDirectory() as folder:
      question, answer = (
        pathlib.Path(folder, 'job'),
        pathlib.Path(folder, 'out'),
      )
      question.write_text(json.dumps(job))
      done = subprocess.run(
        [sys.executable, '-m', 'train.plan.worker', question, answer],
        env={**os.environ, **targets.environment(target)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
      )
      if not answer.exists():
        tail = '\n'.join(done.stderr.splitlines()[-5:])
        raise Failure(
          f'compiling for {target.name} ended with status {done.returncode}'
          f'{" (out of memory?)" if done.returncode < 0 else ""}\n{tail}'
        )
      found = json.loads(answer.read_text())
    self.memory = max(self.memory, found['memory'])
    if 'error' in found:
      raise UserError(found['error'])
    if 'failure' in found:
      raise Failure(found['failure'])
    return found['result']

  def _largest_batch(self, first: Measurement) -> Measurement | None:
    """Finds the largest batch that fits without microbatches.

    Interpolates linearly between measurements, to 1/16 of the batch.
    """
    room = self.target.device.memory
    if room is None:
      return None
    tried: dict[int, Measurement] = {}
    batch: int | None = first.batch_size
    if first.microbatch == batch:
      tried[batch] = first
    for _ in range(_MOST_TRIALS):
      if tried:
        needs = {b: (m.peak, m.fits) for b, m in tried.items()}
        batch = next_batch(needs, room, self._unit)
      if batch is None:
        break
      tried[batch] = self._measure(
        first.recipe, f'train.batch_size={batch}', 'train.microbatch=none'
      )
    return max(
      (m for m in tried.values() if m.fits),
      key=lambda m: m.batch_size,
      default=None,
    )

  def _advice(self, first: Measurement) -> Iterator[str]:
    """Yields the smallest change that fits: to the step, or else more chips."""
    room = self.target.device.memory
    if room is None:
      return
    # No change of the batch or of rematerialization reduces this.
    if first.params + first.grads + first.state < room:
      for changes in self._changes(first):
        found = self._measure(first.recipe, *changes)
        if found.fits:
          flags = ' '.join(f'--config.{c}' for c in changes)
          yield f'{flags} ({found.peak / targets.GIB:.2f} GiB)'
          return
    target = self.target
    for _ in range(3):
      try:
        target = target.twice()
        found = self._measure(first.recipe, *self._spread(), target=target)
      except UserError:
        return  # No such topology, or it does not divide the batch.
      if found.fits:
        yield f'--topology {target.name} ({found.peak / targets.GIB:.2f} GiB)'
        return

  def _spread(self) -> list[str]:
    """Gives additional devices to the largest axis."""
    data, fsdp, tensor = self.mesh
    names = ['data', 'fsdp', 'tensor']
    grown = names[self.mesh.index(max(data, fsdp, tensor))]
    sizes = {**dict(zip(names, self.mesh, strict=True)), grown: -1}
    return [f'mesh.{name}={size}' for name, size in sizes.items()]

  def _changes(self, first: Measurement) -> list[list[str]]:
    """Changes that do not affect the result, cheapest first."""
    static = first.params + first.grads + first.state
    room = self.target.device.memory or 0
    remat = (
      [[]] if self.config.model.remat == 'full' else [[], ['model.remat=full']]
    )
    result = []
    for more in remat:
      rows = first.microbatch
      if more:
        result.append(more)
      while rows % (2 * self._unit) == 0:
        rows //= 2
        # Temporaries shrink at best in proportion to the rows, and a sum of
        # gradients is added. The effect of rematerialization is not known.
        least = static + (first.peak - static) * rows / first.microbatch
        if more or least <= room:
          result.append([*more, f'train.microbatch={rows}'])
    return result[:_MOST_TRIALS]


def next_batch(
  tried: dict[int, tuple[int, bool]], room: float, unit: int
) -> int | None:
  """Returns the batch to try next, or None if the search is over.

  Args:
    tried: Batch -> (bytes needed, whether it fits).
    room: Available bytes.
    unit: The unit of the batch size.
  """
  fitting = [b for b, (_, fits) in tried.items() if fits]
  failing = [b for b, (_, fits) in tried.items() if not fits]
  low, high = max(fitting, default=0), min(failing, default=None)
  step = max(unit, low // _PRECISION // unit * unit)
  if high is not None and high - low <= step:
    return None
  if len(tried) == 1:
    guess = 2.0 * low if fitting else min(failing) / 2
  else:
    # Not the two closest to the room: compilers round, so the slope between
    # neighbors can be anything.
    bracketed = fitting and failing
    b1, b2 = (low, min(failing)) if bracketed else (min(tried), max(tried))
    n1, n2 = tried[b1][0], tried[b2][0]
    slope = (n2 - n1) / (b2 - b1)
    guess = b1 + (room - n1) / slope if slope > 0 else 2.0 * max(b1, b2)
  batch = int(min(guess, 4 * max(tried))) // unit * unit
  if batch <= low:
    batch = low + step
  if high is not None and batch >= high:
    batch = high - step
  batch = max(batch, unit)
  return None if batch in tried else batch
