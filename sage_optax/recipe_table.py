"""The methods by name, and the recipes: which method each role gets."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from sage_optax.methods import (
  adafactor,
  adam,
  adam_mini,
  apollo,
  fira,
  galore,
  lion,
  muon,
  sage,
  scale,
  sgd_sai,
  sinkgd,
  soap,
  spam,
  stable_spam,
  swan,
)

METHODS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'adafactor': adafactor.scale_by_adafactor,
  'adam_mini': adam_mini.scale_by_adam_mini,
  'adamw': adam.scale_by_adam,
  'apollo': apollo.scale_by_apollo,
  'fira': fira.scale_by_fira,
  'galore': galore.scale_by_galore,
  'lion': lion.scale_by_lion,
  'muon': muon.scale_by_muon,
  'sage': sage.scale_by_sage,
  'scale': scale.scale_by_column_norm,
  'sinkgd': sinkgd.scale_by_sinkgd,
  'soap': soap.scale_by_soap,
  'swan': swan.scale_by_swan,
  'stable_spam': stable_spam.scale_by_stable_spam,
  'spam': spam.scale_by_spam,
  'sgd_sai': sgd_sai.scale_by_sgd_sai,
}


# Methods that treat each element on its own.
ELEMENTWISE = ('adamw', 'lion', 'spam')


class Part(NamedTuple):
  """The method of one role.

  Attributes:
    method: key of `METHODS`.
    kwargs: arguments of the method.
    lr_scale: factor of the update, not of the decay.
    weight_decay: decoupled decay, multiplied by the learning rate; None: no
      decay.
  """

  method: str
  kwargs: Mapping[str, Any] = {}
  lr_scale: float = 1.0
  weight_decay: float | None = 0.0


class Recipe(NamedTuple):
  """A row of the table of recipes.

  Attributes:
    summary: one line for the docstring.
    embedding, head, matrix, vector: the parts.
    paper: role -> overrides of `paper=True`; None: the recipe has no such form.
  """

  summary: str
  embedding: Part
  head: Part
  matrix: Part
  vector: Part
  paper: Mapping[str, Mapping[str, Any]] | None = None


_SAGE_EMBEDDING = Part('sage', {'axis': -2})
_SAGE_DENSE = Part('sage', {'axis': -1})
_ADAMW = Part('adamw')
_UNIT_MOMENTUM = {'momentum': 0.95, 'unit_norm': True}


def _uniform(summary: str, method: str) -> Recipe:
  part = Part(method)
  return Recipe(summary, part, part, part, part)


RECIPES: dict[str, Recipe] = {
  'adamw': _uniform("AdamW, Optax's with float32 state.", 'adamw'),
  'lion': _uniform('Lion on every role.', 'lion'),
  'sage': Recipe(
    'SAGE on every role.',
    _SAGE_EMBEDDING,
    _SAGE_DENSE,
    _SAGE_DENSE,
    Part('sage'),
  ),
  'sage_hybrid': Recipe(
    'SAGE on embedding, head and vectors, SinkGD on matrices.',
    _SAGE_EMBEDDING,
    _SAGE_DENSE,
    # 0.33 with learning rate 3e-3: our first trials, not the paper's.
    Part('sinkgd', lr_scale=0.33),
    Part('sage'),
    paper={'matrix': {'unit_norm': True, 'lr_scale': 10.0}},
  ),
  'lion_hybrid': Recipe(
    'Lion on embedding and head, SinkGD on matrices, AdamW on vectors.',
    Part('lion'),
    Part('lion'),
    Part('sinkgd', lr_scale=0.33),
    _ADAMW,
  ),
  'sinkgd': Recipe(
    'SinkGD on matrices, AdamW elsewhere, as in its paper.',
    _ADAMW,
    _ADAMW,
    Part('sinkgd', lr_scale=0.05),
    _ADAMW,
  ),
  'sinkgd_pure': _uniform('SinkGD on every role, without state.', 'sinkgd'),
  'stable_spam': _uniform('Stable-SPAM on every role.', 'stable_spam'),
  'spam': _uniform('SPAM on every role.', 'spam'),
  'sgd_sai': _uniform('SGD-SaI on every role.', 'sgd_sai'),
  'scale': Recipe(
    'SCALE, with momentum on the head; AdamW on vectors.',
    Part('scale'),
    Part('scale', {'momentum': 0.9}),
    Part('scale'),
    _ADAMW,
  ),
  'apollo': Recipe(
    'APOLLO on matrices, AdamW elsewhere.',
    _ADAMW,
    _ADAMW,
    Part('apollo', {'rank': 256}),
    _ADAMW,
  ),
  'apollo_mini': Recipe(
    'APOLLO-Mini (rank 1) on matrices, AdamW elsewhere.',
    _ADAMW,
    _ADAMW,
    Part('apollo', {'rank': 1, 'per_unit': False, 'scale': 128.0}),
    _ADAMW,
  ),
  'galore': Recipe(
    'GaLore on matrices, AdamW elsewhere.',
    _ADAMW,
    _ADAMW,
    Part('galore', {'rank': 256}),
    _ADAMW,
  ),
  'fira': Recipe(
    'Fira on matrices, AdamW elsewhere.',
    _ADAMW,
    _ADAMW,
    Part('fira', {'rank': 256}),
    _ADAMW,
  ),
  'swan': Recipe(
    'SWAN on matrices, AdamW elsewhere.', _ADAMW, _ADAMW, Part('swan'), _ADAMW
  ),
  'soap': Recipe(
    'SOAP on matrices, AdamW elsewhere.', _ADAMW, _ADAMW, Part('soap'), _ADAMW
  ),
  'muon': Recipe(
    'Muon on matrices, AdamW elsewhere.', _ADAMW, _ADAMW, Part('muon'), _ADAMW
  ),
  'muon_eq': Recipe(
    'MuonEq on matrices, AdamW elsewhere.',
    _ADAMW,
    _ADAMW,
    Part('muon', {'equilibrate': 'fan_out', 'consistent_rms': 0.2}),
    _ADAMW,
  ),
  'normuon': Recipe(
    'NorMuon on matrices, AdamW elsewhere.',
    _ADAMW,
    _ADAMW,
    Part(
      'muon', {'nesterov': False, 'consistent_rms': 0.2, 'unit_decay': 0.95}
    ),
    _ADAMW,
  ),
  'adafactor': _uniform(
    'Adafactor on every role, without relative step sizes.', 'adafactor'
  ),
  'adam_mini': Recipe(
    'Adam-mini: a second moment per token and per fan-out unit.',
    Part('adam_mini', {'axis': -1}),
    Part('adam_mini', {'axis': -2}),
    Part('adam_mini', {'axis': -2}),
    _ADAMW,
  ),
  'coupled_adam': Recipe(
    'Coupled Adam on embedding and head, AdamW elsewhere.',
    Part('adam_mini', {'axis': -2}),
    Part('adam_mini', {'axis': -1}),
    _ADAMW,
    _ADAMW,
  ),
  'rmnp': Recipe(
    'RMNP on matrices, AdamW elsewhere.',
    _ADAMW,
    _ADAMW,
    Part(
      'scale',
      {**_UNIT_MOMENTUM, 'nesterov': True, 'shape_factor': True},
    ),
    _ADAMW,
  ),
  'rms_muon': Recipe(
    'A second moment per token on embedding and head, Muon without momentum on '
    'matrices, AdamW on vectors: ours.',
    Part('adam_mini', {'b1': None, 'b2': 0.99, 'axis': -1}),
    Part('adam_mini', {'b1': None, 'b2': 0.99, 'axis': -2}),
    # Factor and decays as tuned in our study.
    Part('muon', {'momentum': None, 'consistent_rms': 0.2}, lr_scale=0.25),
    Part('adamw', {'b2': 0.99}),
  ),
  # Factors from the rates at Qwen3 0.6B: 0.5, 5e-3, 0.02 (matrices) and 0.05.
  'symmetric': Recipe(
    'Unit norm per token, Muon on matrices, AdamW on vectors.',
    Part('scale', {**_UNIT_MOMENTUM, 'axis': -1}, lr_scale=25.0),
    Part('scale', {**_UNIT_MOMENTUM, 'center': True}, lr_scale=0.25),
    Part('muon', {'ns_coeffs': 'polar_express'}),
    Part('adamw', {'b2': 0.95}, lr_scale=2.5),
  ),
  'sage_muon': Recipe(
    'SAGE on embedding, head and vectors, Muon on matrices: a new combination '
    'without published learning rates.',
    _SAGE_EMBEDDING,
    _SAGE_DENSE,
    Part('muon'),
    Part('sage'),
  ),
  'sage_scale': Recipe(
    'SAGE on embedding, head and vectors, SCALE on matrices: a new combination '
    'without published learning rates.',
    _SAGE_EMBEDDING,
    _SAGE_DENSE,
    Part('scale'),
    Part('sage'),
  ),
}
