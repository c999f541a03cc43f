"""PyTorch's optimizers, in a subprocess that steps on request.

The subprocess imports only torch, so its Python does not need JAX.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

NAMES = ('torch.AdamW', 'torch.Muon')
_RATE, _DECAY = 1e-4, 0.1


class TorchOptimizer:
  """One of NAMES, in the process that `start` started.

  Attributes:
    name: Its name in tables.
  """

  def __init__(self, name: str, process: subprocess.Popen[str]):
    self.name = name
    self._process = process

  def time_steps(self, steps: int, seconds: float) -> list[float]:
    """See `rounds.Timeable`."""
    request = {'name': self.name, 'steps': steps, 'seconds': seconds}
    return ask(self._process, request)


def ask(process: subprocess.Popen[str], request: dict[str, Any]) -> Any:
  """Sends a line of JSON and returns the answer."""
  assert process.stdin is not None
  assert process.stdout is not None
  process.stdin.write(json.dumps(request) + '\n')
  process.stdin.flush()
  line = process.stdout.readline()
  if not line:
    raise RuntimeError(f'PyTorch ended with status {process.wait()}.')
  return json.loads(line)


@contextlib.contextmanager
def start(
  python: str, shapes: Sequence[tuple[tuple[int, ...], bool]]
) -> Iterator[tuple[list[TorchOptimizer], dict[str, str]]]:
  """Starts the process; it ends with the context.

  Args:
    python: A Python interpreter, with or without torch.
    shapes: The shape of every parameter, and whether it is a matrix for Muon.

  Yields:
    The available optimizers (none without torch), and the version of torch.
  """
  process = subprocess.Popen(
    [python, '-m', 'benchmarks.torch_optimizers'],
    cwd=pathlib.Path(__file__).parent.parent,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    found = ask(process, {'shapes': shapes})
    yield (
      [TorchOptimizer(name, process) for name in found['names']],
      found['versions'],
    )
  finally:
    process.kill()
    process.wait()


def _serve() -> None:
  """Answers on standard output, line by line."""
  shapes = json.loads(sys.stdin.readline())['shapes']
  try:
    import torch
  except ModuleNotFoundError:
    print(json.dumps({'names': [], 'versions': {}}), flush=True)
    return
  names = [n for n in NAMES if hasattr(torch.optim, n.removeprefix('torch.'))]
  found = {'names': names, 'versions': {'torch': torch.__version__}}
  print(json.dumps(found), flush=True)
  params = []
  for shape, is_matrix in shapes:
    param = torch.nn.Parameter(0.02 * torch.randn(shape))
    param.grad = 1e-3 * torch.randn(shape)
    params.append((param, is_matrix))
  for line in sys.stdin:
    print(
      json.dumps(_time_steps(torch, params, **json.loads(line))), flush=True
    )


def _time_steps(
  torch: Any, params: Any, *, name: str, steps: int, seconds: float
) -> list[float]:
  matrices = [p for p, is_matrix in params if is_matrix]
  others = [p for p, is_matrix in params if not is_matrix]
  options = {'lr': _RATE, 'weight_decay': _DECAY}
  if name == 'torch.Muon':
    parts = [
      torch.optim.Muon(matrices, **options),
      torch.optim.AdamW(others, fused=True, **options),
    ]
  else:
    parts = [torch.optim.AdamW(matrices + others, fused=True, **options)]
  found: list[float] = []
  while len(found) < 2 or (len(found) <= steps and sum(found[1:]) < seconds):
    began = time.perf_counter()
    for part in parts:
      part.step()
    found.append(time.perf_counter() - began)
  return found[1:]


if __name__ == '__main__':
  _serve()
