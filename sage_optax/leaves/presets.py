"""Presets: names and layouts of libraries, chosen by the user."""

from sage_optax.leaves.names import (
  CONV,
  CONV_LAYOUTS,
  TORCH_CONV,
  TRANSPOSED,
  WEIGHT,
  WEIGHTS,
  Preset,
  named,
)

_TRANSPOSED = 'transposed convolution'

FLAX = Preset('FLAX')
MAXTEXT = Preset('MAXTEXT', scan_axis=1)
TORCH = Preset('TORCH', WEIGHTS)
EQUINOX = Preset(
  'EQUINOX',
  (
    named(
      'convolution bias',
      CONV + r'/bias$',
      'vector',
      'o',
      'o 1',
      'o 1 1',
      'o 1 1 1',
    ),
    named(_TRANSPOSED, TRANSPOSED + WEIGHT, 'matrix', *TORCH_CONV),
    *WEIGHTS,
  ),
)
HAIKU = Preset(
  'HAIKU',
  (
    named(
      _TRANSPOSED,
      TRANSPOSED + r'/w$',
      'matrix',
      *(layout.replace('i o', 'o i') for layout in CONV_LAYOUTS),
    ),
  ),
)
# haliax.nn.Linear has both orders; its convolution has PyTorch's.
HALIAX = Preset(
  'HALIAX',
  tuple(
    known
    if known.role in ('vector', 'embedding') or known.name == 'convolution'
    else known._replace(
      layouts=(),
      doubt='haliax.nn.Linear keeps [in, out] or [out, in]: pass the tree of '
      'modules, whose In and Out give the order',
      guess=False,
    )
    for known in WEIGHTS
  ),
)
PRESETS = (FLAX, MAXTEXT, TORCH, EQUINOX, HAIKU, HALIAX)
