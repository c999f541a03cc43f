"""One row per method: how to build it, what it must equal, what it keeps."""

import dataclasses
import functools
from collections.abc import Callable

import optax

import sage_optax
from tests import oracles


@dataclasses.dataclass(frozen=True)
class Case:
  """A method with one set of arguments.

  Attributes:
    name: of the test case.
    method: key of `recipes.METHODS`.
    make: core_ndim and further arguments -> transformation.
    oracle: gradients of all steps -> updates of all steps, for one unit.
    matrix_state: elements of state for a matrix [m, n], counters left out.
    vector_state: the same for a vector [d]; None: the method is for matrices
      only.
    has_state_dtype: whether the method takes `state_dtype`.
    rank: size that an axis of the state may have beside the parameter's and 1.
    equivariant: whether permuting an axis of the gradients permutes the
      updates; not so where something is drawn.
    steps: gradients to compare over: enough to pass a refresh or a reset.
  """

  name: str
  method: str
  make: Callable[..., optax.GradientTransformation]
  oracle: Callable
  matrix_state: Callable[[int, int], int]
  vector_state: Callable[[int], int] | None
  has_state_dtype: bool = True
  steps: int = 4
  rank: int = 1
  equivariant: bool = True


def _make(method, **kwargs):
  """core_ndim and further arguments -> transformation."""
  return lambda core_ndim, **more: method(core_ndim=core_ndim, **kwargs, **more)


def _free(method, **kwargs):
  """The same for a method that has no units, or knows them itself."""
  return lambda core_ndim, **more: method(**kwargs, **more)


CASES = (
  Case(
    'adamw',
    'adamw',
    _free(sage_optax.scale_by_adam, b2=0.95),
    functools.partial(oracles.adamw, b2=0.95),
    lambda m, n: 2 * m * n,
    lambda d: 2 * d,
  ),
  Case(
    'lion',
    'lion',
    _free(sage_optax.scale_by_lion, b1=0.8, b2=0.95),
    functools.partial(oracles.lion, b1=0.8, b2=0.95),
    lambda m, n: m * n,
    lambda d: d,
  ),
  Case(
    'sage_embedding',
    'sage',
    _make(sage_optax.scale_by_sage, axis=-2),
    functools.partial(oracles.sage, axis=-2),
    lambda m, n: m * n + n,
    lambda d: 2 * d,
  ),
  Case(
    'sage_dense',
    'sage',
    _make(sage_optax.scale_by_sage, axis=-1, b1=0.8, b2=0.9, eps=1e-3),
    functools.partial(oracles.sage, axis=-1, b1=0.8, b2=0.9, eps=1e-3),
    lambda m, n: m * n + m,
    lambda d: 2 * d,
  ),
  Case(
    'sinkgd',
    'sinkgd',
    _make(sage_optax.scale_by_sinkgd),
    oracles.sinkgd,
    lambda m, n: 0,
    lambda d: 0,
    has_state_dtype=False,
  ),
  Case(
    'sinkgd_unit_norm',
    'sinkgd',
    _make(sage_optax.scale_by_sinkgd, num_iters=2, eps=1e-3, unit_norm=True),
    functools.partial(oracles.sinkgd, num_iters=2, eps=1e-3, unit_norm=True),
    lambda m, n: 0,
    lambda d: 0,
    has_state_dtype=False,
  ),
)
