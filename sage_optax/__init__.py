"""Memory-efficient optimizers for language-model pre-training, for Optax."""

from sage_optax import layout, memory, roles, rounding, sharding
from sage_optax.explain import Explanation, explain
from sage_optax.fewer_moments import (
  adafactor,
  adam_mini,
  coupled_adam,
  rms_muon,
)
from sage_optax.fit import Fit, fit
from sage_optax.hybrids import (
  lion_hybrid,
  sage_hybrid,
  sage_muon,
  sinkgd,
  swan,
)
from sage_optax.hyperball import hyperball
from sage_optax.layout import with_matrix_axes
from sage_optax.low_rank import apollo, apollo_mini, fira, galore, soap
from sage_optax.methods.adafactor import (
  ScaleByAdafactorState,
  scale_by_adafactor,
)
from sage_optax.methods.adam import scale_by_adam
from sage_optax.methods.adam_mini import (
  ScaleByAdamMiniState,
  scale_by_adam_mini,
)
from sage_optax.methods.apollo import ScaleByApolloState, scale_by_apollo
from sage_optax.methods.fira import ScaleByFiraState, scale_by_fira
from sage_optax.methods.galore import ScaleByGaloreState, scale_by_galore
from sage_optax.methods.lion import ScaleByLionState, scale_by_lion
from sage_optax.methods.muon import ScaleByMuonState, scale_by_muon
from sage_optax.methods.sage import ScaleBySageState, scale_by_sage
from sage_optax.methods.scale import (
  ScaleByColumnNormState,
  scale_by_column_norm,
)
from sage_optax.methods.sgd_sai import ScaleBySgdSaiState, scale_by_sgd_sai
from sage_optax.methods.sinkgd import scale_by_multi_norm, scale_by_sinkgd
from sage_optax.methods.soap import ScaleBySoapState, scale_by_soap
from sage_optax.methods.spam import ScaleBySpamState, scale_by_spam
from sage_optax.methods.stable_spam import (
  ScaleByStableSpamState,
  scale_by_stable_spam,
)
from sage_optax.methods.swan import scale_by_swan
from sage_optax.normalized import rmnp, sage_scale, scale, symmetric
from sage_optax.orthogonal import muon, muon_eq, normuon
from sage_optax.recipes import recipe, recipe_names
from sage_optax.rounding import stochastic_round_updates
from sage_optax.single import (
  adamw,
  lion,
  sage,
  sgd_sai,
  sinkgd_pure,
  spam,
  stable_spam,
)

__version__ = '0.1.0'

__all__ = [
  'Explanation',
  'Fit',
  'ScaleByAdafactorState',
  'ScaleByAdamMiniState',
  'ScaleByApolloState',
  'ScaleByColumnNormState',
  'ScaleByFiraState',
  'ScaleByGaloreState',
  'ScaleByLionState',
  'ScaleByMuonState',
  'ScaleBySageState',
  'ScaleBySgdSaiState',
  'ScaleBySoapState',
  'ScaleBySpamState',
  'ScaleByStableSpamState',
  'adafactor',
  'adam_mini',
  'adamw',
  'apollo',
  'apollo_mini',
  'coupled_adam',
  'explain',
  'fira',
  'fit',
  'galore',
  'hyperball',
  'layout',
  'lion',
  'lion_hybrid',
  'memory',
  'muon',
  'muon_eq',
  'normuon',
  'recipe',
  'recipe_names',
  'rmnp',
  'rms_muon',
  'roles',
  'rounding',
  'sage',
  'sage_hybrid',
  'sage_muon',
  'sage_scale',
  'scale',
  'scale_by_adafactor',
  'scale_by_adam',
  'scale_by_adam_mini',
  'scale_by_apollo',
  'scale_by_column_norm',
  'scale_by_fira',
  'scale_by_galore',
  'scale_by_lion',
  'scale_by_multi_norm',
  'scale_by_muon',
  'scale_by_sage',
  'scale_by_sgd_sai',
  'scale_by_sinkgd',
  'scale_by_soap',
  'scale_by_spam',
  'scale_by_stable_spam',
  'scale_by_swan',
  'sgd_sai',
  'sharding',
  'sinkgd',
  'sinkgd_pure',
  'soap',
  'spam',
  'stable_spam',
  'stochastic_round_updates',
  'swan',
  'symmetric',
  'with_matrix_axes',
]
