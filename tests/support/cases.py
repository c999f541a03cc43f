"""One row per method: how to build it, what it must equal, what it keeps."""

import dataclasses
import functools
from collections.abc import Callable

import optax

import sage_optax
from tests.support import oracles


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
    square: whether it may also have the size of the parameter's other axis.
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
  square: bool = False
  equivariant: bool = True


def _make(method, **kwargs):
  """core_ndim and further arguments -> transformation."""
  return lambda core_ndim, **more: method(core_ndim=core_ndim, **kwargs, **more)


def _free(method, **kwargs):
  """The same for a method that has no units, or knows them itself."""
  return lambda core_ndim, **more: method(**kwargs, **more)


_LOW_RANK = {
  'rank': 2,
  'update_proj_gap': 3,
  'projector': oracles.projection,
}

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
  Case(
    'scale',
    'scale',
    _make(sage_optax.scale_by_column_norm),
    oracles.scale,
    lambda m, n: 0,
    lambda d: 0,
    has_state_dtype=False,
  ),
  Case(
    'scale_rows',
    'scale',
    _make(sage_optax.scale_by_column_norm, momentum=0.9, axis=-1),
    functools.partial(oracles.scale, momentum=0.9, axis=-1),
    lambda m, n: m * n,
    lambda d: d,
  ),
  Case(
    'scale_momentum',
    'scale',
    _make(
      sage_optax.scale_by_column_norm, momentum=0.8, eps=0.5, unit_norm=True
    ),
    functools.partial(oracles.scale, momentum=0.8, eps=0.5, unit_norm=True),
    lambda m, n: m * n,
    lambda d: d,
  ),
  Case(
    'scale_symmetric_head',
    'scale',
    _make(
      sage_optax.scale_by_column_norm,
      momentum=0.95,
      unit_norm=True,
      center=True,
    ),
    functools.partial(
      oracles.scale, momentum=0.95, unit_norm=True, center=True
    ),
    lambda m, n: m * n,
    lambda d: d,
  ),
  Case(
    'scale_rmnp',
    'scale',
    _make(
      sage_optax.scale_by_column_norm,
      momentum=0.95,
      unit_norm=True,
      nesterov=True,
      shape_factor=True,
    ),
    functools.partial(
      oracles.scale,
      momentum=0.95,
      unit_norm=True,
      nesterov=True,
      shape_factor=True,
    ),
    lambda m, n: m * n,
    lambda d: d,
  ),
  Case(
    'swan',
    'swan',
    _make(sage_optax.scale_by_swan),
    oracles.swan,
    lambda m, n: 0,
    None,
    has_state_dtype=False,
  ),
  Case(
    'swan_plain',
    'swan',
    _make(sage_optax.scale_by_swan, ns_steps=3, center=False, rescale=False),
    functools.partial(oracles.swan, ns_steps=3, center=False, rescale=False),
    lambda m, n: 0,
    None,
    has_state_dtype=False,
  ),
  Case(
    'muon',
    'muon',
    _free(sage_optax.scale_by_muon),
    oracles.muon,
    lambda m, n: m * n,
    None,
  ),
  Case(
    'muon_plain',
    'muon',
    _free(sage_optax.scale_by_muon, momentum=0.8, ns_steps=3, nesterov=False),
    functools.partial(oracles.muon, momentum=0.8, ns_steps=3, nesterov=False),
    lambda m, n: m * n,
    None,
  ),
  Case(
    'muon_eq',
    'muon',
    _free(sage_optax.scale_by_muon, equilibrate='fan_out', consistent_rms=0.2),
    functools.partial(oracles.muon, equilibrate='fan_out', consistent_rms=0.2),
    lambda m, n: m * n,
    None,
  ),
  Case(
    'muon_eq_both',
    'muon',
    _free(sage_optax.scale_by_muon, equilibrate='both', consistent_rms=1.5),
    functools.partial(oracles.muon, equilibrate='both', consistent_rms=1.5),
    lambda m, n: m * n,
    None,
  ),
  Case(
    'muon_stateless',
    'muon',
    _free(
      sage_optax.scale_by_muon,
      momentum=None,
      ns_coeffs='polar_express',
      normalize_after='fan_in',
    ),
    functools.partial(
      oracles.muon,
      momentum=None,
      ns_coeffs='polar_express',
      normalize_after='fan_in',
    ),
    lambda m, n: 0,
    None,
    has_state_dtype=False,
  ),
  Case(
    'muon_nuclear',
    'muon',
    _free(
      sage_optax.scale_by_muon,
      ns_coeffs='dion',
      preconditioning='schatten',
      nuclear_power=1.0,
    ),
    functools.partial(
      oracles.muon, ns_coeffs='dion', order=4, nuclear_power=1.0
    ),
    lambda m, n: m * n,
    None,
  ),
  Case(
    'normuon',
    'muon',
    _free(
      sage_optax.scale_by_muon,
      nesterov=False,
      consistent_rms=0.2,
      unit_decay=0.8,
    ),
    functools.partial(
      oracles.muon, nesterov=False, consistent_rms=0.2, unit_decay=0.8
    ),
    lambda m, n: m * n + n,
    None,
  ),
  Case(
    'normuon_unscaled',
    'muon',
    _free(
      sage_optax.scale_by_muon, preconditioning='schatten8', unit_decay=0.95
    ),
    functools.partial(oracles.muon, order=8, unit_decay=0.95),
    lambda m, n: m * n + n,
    None,
  ),
  Case(
    'stable_spam',
    'stable_spam',
    _make(sage_optax.scale_by_stable_spam, gamma3=0.9, reset_interval=5),
    functools.partial(
      oracles.stable_spam, gammas=(0.7, 0.9, 0.9), reset_interval=5
    ),
    lambda m, n: 2 * m * n + 3,
    lambda d: 2 * d + 3,
    steps=12,
  ),
  Case(
    'stable_spam_scaled',
    'stable_spam',
    _make(
      sage_optax.scale_by_stable_spam,
      b2=0.95,
      reset_interval=None,
      total_steps=6,
      min_scale=0.2,
    ),
    functools.partial(
      oracles.stable_spam, b2=0.95, total_steps=6, min_scale=0.2
    ),
    lambda m, n: 2 * m * n + 3,
    lambda d: 2 * d + 3,
    steps=9,
  ),
  Case(
    'spam',
    'spam',
    _free(
      sage_optax.scale_by_spam,
      threshold=4.0,
      reset_interval=8,
      warmup_steps=3,
      grace_steps=2,
    ),
    functools.partial(
      oracles.spam,
      threshold=4.0,
      reset_interval=8,
      warmup_steps=3,
      grace_steps=2,
    ),
    lambda m, n: 2 * m * n,
    lambda d: 2 * d,
    steps=20,
  ),
  Case(
    'sgd_sai',
    'sgd_sai',
    _make(sage_optax.scale_by_sgd_sai, eps=1e-3),
    functools.partial(oracles.sgd_sai, eps=1e-3),
    lambda m, n: m * n + 1,
    lambda d: d + 1,
  ),
  Case(
    'apollo',
    'apollo',
    _free(sage_optax.scale_by_apollo, **_LOW_RANK, scale=4.0),
    functools.partial(oracles.apollo, update_proj_gap=3, scale=4.0),
    lambda m, n: 4 * max(m, n) + 2 * min(m, n) + 1,
    None,
    steps=8,
    rank=2,
  ),
  Case(
    'apollo_per_matrix',
    'apollo',
    _free(
      sage_optax.scale_by_apollo,
      **_LOW_RANK,
      scale=4.0,
      per_unit=False,
      scale_front=True,
      norm_growth_limit=1.5,
    ),
    functools.partial(
      oracles.apollo,
      update_proj_gap=3,
      scale=4.0,
      per_unit=False,
      scale_front=True,
      norm_growth_limit=1.5,
    ),
    lambda m, n: 4 * max(m, n) + 2 * min(m, n) + 1,
    None,
    steps=8,
    rank=2,
  ),
  Case(
    'apollo_unlimited',
    'apollo',
    _free(sage_optax.scale_by_apollo, **_LOW_RANK, norm_growth_limit=None),
    functools.partial(
      oracles.apollo, update_proj_gap=3, norm_growth_limit=None
    ),
    lambda m, n: 4 * max(m, n) + 2 * min(m, n) + 1,
    None,
    steps=8,
    rank=2,
  ),
  Case(
    'galore',
    'galore',
    _free(sage_optax.scale_by_galore, **_LOW_RANK, b1=0.8, eps=1e-3),
    functools.partial(oracles.galore, update_proj_gap=3, b1=0.8, eps=1e-3),
    lambda m, n: 4 * max(m, n) + 2 * min(m, n),
    None,
    steps=8,
    rank=2,
  ),
  Case(
    'fira',
    'fira',
    _free(sage_optax.scale_by_fira, **_LOW_RANK),
    functools.partial(oracles.fira, update_proj_gap=3),
    lambda m, n: 4 * max(m, n) + 2 * min(m, n) + 1,
    None,
    steps=8,
    rank=2,
  ),
  Case(
    'fira_exact',
    'fira',
    _free(
      sage_optax.scale_by_fira,
      **_LOW_RANK,
      alpha=0.5,
      exact_residual=True,
      norm_growth_limit=1.2,
    ),
    functools.partial(
      oracles.fira,
      update_proj_gap=3,
      alpha=0.5,
      exact_residual=True,
      norm_growth_limit=1.2,
    ),
    lambda m, n: 4 * max(m, n) + 2 * min(m, n) + 1,
    None,
    steps=8,
    rank=2,
  ),
  Case(
    'adam_mini',
    'adam_mini',
    _make(sage_optax.scale_by_adam_mini, b2=0.95),
    functools.partial(oracles.adam_mini, b2=0.95),
    lambda m, n: m * n + n,
    lambda d: 2 * d,
  ),
  Case(
    'adam_mini_without_momentum',
    'adam_mini',
    _make(sage_optax.scale_by_adam_mini, b1=None, b2=0.9, eps=0.1, axis=-1),
    functools.partial(oracles.adam_mini, b1=None, b2=0.9, eps=0.1, axis=-1),
    lambda m, n: m,
    lambda d: d,
  ),
  Case(
    'adafactor',
    'adafactor',
    _make(sage_optax.scale_by_adafactor),
    oracles.adafactor,
    lambda m, n: m + n,
    lambda d: d + 1,
  ),
  Case(
    'adafactor_momentum',
    'adafactor',
    _make(
      sage_optax.scale_by_adafactor,
      momentum=0.8,
      decay_rate=0.5,
      clipping_threshold=None,
    ),
    functools.partial(
      oracles.adafactor, momentum=0.8, decay_rate=0.5, clip=None
    ),
    lambda m, n: m * n + m + n,
    lambda d: 2 * d + 1,
  ),
  Case(
    'soap',
    'soap',
    # Of both sides, the basis of the larger one would be arbitrary in part.
    _free(sage_optax.scale_by_soap, update_proj_gap=3, one_sided=True),
    functools.partial(oracles.soap, gap=3, one_sided=True),
    lambda m, n: 2 * m * n + 2 * min(m, n) ** 2 + 2,
    None,
    steps=8,
    square=True,
  ),
)
