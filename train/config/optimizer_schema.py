"""The fields of `config.optimizer`, and a peak learning rate per recipe."""

# `Optional`, because the flag library looks the type up in a table.
# ruff: noqa: UP045, RUF009

import dataclasses
from typing import Optional

import sage_optax
from train.config.fields import COUNT, Choices, Range, field

_DECAY_RATE = Range(minimum=0, below=1)
_LEARNING_RATE = Range(above=0, maximum=1e15)
_LR_SCALE = Range(0, 1e6)
_WEIGHT_DECAY = Range(0, 1e3)

# Rates without a source come from our own short trials on a model of 1.4M
# parameters: a starting point, not an optimum. With the recipes' factor (0.33,
# sinkgd 0.05), the matrices of the hybrids move by about 1e-3 per entry and
# step. The rates of our study, at width 64, are larger (docs/evidence.md);
# configs/quickstart.py has them.
LEARNING_RATES = {
  'adamw': 3e-3,
  'lion': 1e-3,
  'sage': 1e-3,  # as lion, no trial yet
  'sage_hybrid': 3e-3,
  'lion_hybrid': 3e-3,
  'sinkgd': 2e-2,  # SinkGD's paper (arXiv 2502.06742)
  'sinkgd_pure': 1e-3,  # the matrices' rate of the hybrids, no trial yet
  'stable_spam': 8e-4,  # its paper at 130M (arXiv 2502.17055)
  'spam': 3e-3,  # as adamw
  'sgd_sai': 1e-2,  # best of 3e-3, 1e-2 and 3e-2 on 0.2M parameters
  'scale': 1e-3,  # its paper, 60M to 350M (arXiv 2506.16659)
  'apollo': 1e-2,  # its paper, 60M to 1B (arXiv 2412.05270)
  'apollo_mini': 1e-2,  # as apollo
  'galore': 1e-2,  # its paper, 60M to 1B (arXiv 2403.03507)
  'fira': 1e-2,  # its paper, 60M to 1B (arXiv 2410.01623)
  'swan': 1e-3,  # as sinkgd_pure, no trial yet
  'soap': 3e-3,  # its paper, 360M and 660M (arXiv 2409.11321)
  # Its authors use 0.02 for the matrices only; here AdamW has the same rate.
  'muon': 1e-2,
  'muon_eq': 2e-3,  # its script at 130M (arXiv 2603.28254)
  'normuon': 2e-3,  # as muon_eq, whose updates have the same size
  'adafactor': 3e-3,  # as adamw, whose updates have the same size
  'adam_mini': 3e-3,  # as adamw
  'coupled_adam': 3e-3,  # as adamw
  'rmnp': 5e-3,  # its script (arXiv 2603.20527), with AdamW's own rate there
  'rms_muon': 1e-2,  # matrices as with muon_eq's published rate at 350M
  'symmetric': 2e-2,  # its paper, matrices of Qwen3 0.6B (arXiv 2605.18106)
  'sage_muon': 5e-3,  # not published
  'sage_scale': 1e-3,  # not published, no trial yet
}


@dataclasses.dataclass(slots=True, kw_only=True)
class RoleConfig:
  """Overrides of the recipe for one role; none: as in the recipe."""

  lr_scale: Optional[float] = field(
    None, 'Factor on the learning rate.', _LR_SCALE, 'resolved'
  )
  weight_decay: Optional[float] = field(
    None, 'Decoupled weight decay.', _WEIGHT_DECAY, 'resolved'
  )


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimizerConfig:
  """A recipe of `sage_optax`, its learning rate and its options.

  An option that is set is passed to every role whose method accepts it; if none
  does, this is an error.
  """

  recipe: str = field(
    'sage_hybrid',
    'Name of the recipe.',
    Choices(*sage_optax.recipe_names()),
    'value',
  )
  learning_rate: Optional[float] = field(
    None,
    'Peak learning rate; none: learning_rates[recipe].',
    _LEARNING_RATE,
    'resolved',
  )
  learning_rates: dict[str, float] = field(
    LEARNING_RATES,
    'Peak learning rate per recipe.',
    _LEARNING_RATE,
    'resolved',
  )
  matrix_lr_scales: dict[str, float] = field(
    {},
    'Factor on the learning rate of matrices, for recipes whose published rate '
    "belongs to another factor than the recipe's; matrix.lr_scale overrides "
    'it.',
    _LR_SCALE,
    'resolved',
  )
  weight_decay: float = field(
    0.0, 'Decoupled weight decay.', _WEIGHT_DECAY, 'resolved', option=True
  )
  b1: Optional[float] = field(
    None,
    'Decay rate of the first moment.',
    _DECAY_RATE,
    'resolved',
    option=True,
  )
  b2: Optional[float] = field(
    None,
    "Decay rate of the second moment; none: b2s[recipe], else the method's.",
    _DECAY_RATE,
    'resolved',
    option=True,
  )
  b2s: dict[str, float] = field(
    {},
    "Decay rate of the second moment per recipe, where it is not the method's; "
    'b2 overrides it.',
    _DECAY_RATE,
    'resolved',
  )
  eps: Optional[float] = field(
    None,
    'Added to denominators.',
    Range(above=0, maximum=1),
    'resolved',
    option=True,
  )
  momentum: Optional[float] = field(
    None, 'Decay rate of the momentum.', _DECAY_RATE, 'resolved', option=True
  )
  num_iters: Optional[int] = field(
    None, 'Iterations of SinkGD.', COUNT, 'resolved', option=True
  )
  ns_steps: Optional[int] = field(
    None,
    'Newton-Schulz steps of Muon and SWAN.',
    COUNT,
    'resolved',
    option=True,
  )
  ns_coeffs: Optional[str] = field(
    None,
    'Polynomials of the Newton-Schulz steps of Muon.',
    Choices('standard', 'dion', 'polar_express'),
    'resolved',
    option=True,
  )
  preconditioning: Optional[str] = field(
    None,
    'Norm that Muon divides by before the Newton-Schulz steps: Frobenius, or '
    'Schatten of order 4 or 8.',
    Choices('frobenius', 'schatten', 'schatten8'),
    'resolved',
    option=True,
  )
  ortho_rank: Optional[int] = field(
    None,
    'Units that low-rank Muon samples in each step; none: the whole matrix.',
    COUNT,
    'resolved',
    option=True,
  )
  rank: Optional[int] = field(
    None, 'Rank of APOLLO, GaLore and Fira.', COUNT, 'resolved', option=True
  )
  update_proj_gap: Optional[int] = field(
    None,
    'Steps between projectors of APOLLO, GaLore and Fira, or bases of SOAP.',
    COUNT,
    'resolved',
    option=True,
  )
  projector: Optional[str] = field(
    None,
    'Projector of APOLLO, GaLore and Fira.',
    Choices('gaussian', 'svd', 'subspace'),
    'resolved',
    option=True,
  )
  reset_interval: Optional[int] = field(
    None,
    'Steps between resets of SPAM and Stable-SPAM.',
    COUNT,
    'resolved',
    option=True,
  )
  state_dtype: Optional[str] = field(
    None,
    'Type of the optimizer state; int8 applies to the moments only.',
    Choices('float32', 'bfloat16', 'int8'),
    'resolved',
    option=True,
  )
  kernels: Optional[str] = field(
    None,
    "pallas: SinkGD's kernels for TPUs and NVIDIA GPUs, which have not run on "
    "the hardware; none: XLA's code.",
    Choices('pallas'),
    'resolved',
    option=True,
  )
  paper: bool = field(
    False,
    "Whether to use the authors' released form, where it differs.",
    identity='resolved',
    option=True,
  )
  embedding: RoleConfig = dataclasses.field(default_factory=RoleConfig)
  head: RoleConfig = dataclasses.field(default_factory=RoleConfig)
  matrix: RoleConfig = dataclasses.field(default_factory=RoleConfig)
  vector: RoleConfig = dataclasses.field(default_factory=RoleConfig)
