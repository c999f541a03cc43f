"""Memory-efficient optimizers for language-model pre-training, for Optax."""

from sage_optax import memory, roles, rounding, sharding
from sage_optax._adam import scale_by_adam
from sage_optax._lion import ScaleByLionState, scale_by_lion
from sage_optax._sage import ScaleBySageState, scale_by_sage
from sage_optax._sinkgd import scale_by_sinkgd
from sage_optax.explain import Explanation, explain
from sage_optax.recipes import (
  adamw,
  lion,
  lion_hybrid,
  recipe,
  recipe_names,
  sage,
  sage_hybrid,
  sinkgd,
  sinkgd_pure,
)
from sage_optax.rounding import stochastic_round_updates

__version__ = '0.1.0'

__all__ = [
  'Explanation',
  'ScaleByLionState',
  'ScaleBySageState',
  'adamw',
  'explain',
  'lion',
  'lion_hybrid',
  'memory',
  'recipe',
  'recipe_names',
  'roles',
  'rounding',
  'sage',
  'sage_hybrid',
  'scale_by_adam',
  'scale_by_lion',
  'scale_by_sage',
  'scale_by_sinkgd',
  'sharding',
  'sinkgd',
  'sinkgd_pure',
  'stochastic_round_updates',
]
