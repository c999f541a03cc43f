"""Presets: names and layouts of libraries, chosen by the user.

Weights of PyTorch, Equinox and Haliax have the same names but different
layouts. Without a preset, a bias must show the layout.
"""

import re
from typing import NamedTuple

from sage_optax.leaves.names import (
  CONV,
  CONV_LAYOUTS,
  DEFAULT,
  EMBED_WORDS,
  GPT2,
  HEAD_WORDS,
  HIDDEN_WORDS,
  NORM_WORDS,
  POSITION_WORDS,
  TRANSPOSED,
  UP_CONV,
  Known,
  named,
)


class Preset(NamedTuple):
  """How a library names and lays out its parameters.

  Attributes:
    name: name of the preset, for messages.
    known: its names, which take precedence over the default ones.
    scan_axis: the axis of stacked layers; None: it must be proved.
    outputs_first: whether weights are [out, in]. Matrices of unknown names may
      then have either order.
  """

  name: str
  known: tuple[Known, ...] = ()
  scan_axis: int | None = None
  outputs_first: bool = False


_TRANSPOSED = 'transposed convolution'
# Three axes may also be those of stacked matrices.
CONVOLUTIONS = ('o i i i', 'o i i i i')
_TORCH_CONV = ('o i i', *CONVOLUTIONS)
_WEIGHT = r'/weights?$'

# In the layout of PyTorch.
_WEIGHTS: tuple[Known, ...] = (
  GPT2,
  named(
    'adapter',
    r'lora_embedding_[AB](?:/.*)?$',
    None,
    doubt='an adapter of an embedding',
  ),
  named('adapter', r'lora_[AB](?:/\w+)?' + _WEIGHT, 'matrix', 'o i'),
  named('norm', NORM_WORDS + _WEIGHT, 'vector', 'o'),
  named('head', HEAD_WORDS + _WEIGHT, 'head', 'o i'),
  Known('top-level output', r'^output/weight$', 'head', ('o i',)),
  named(
    'position',
    rf'(?!{HIDDEN_WORDS}/)' + POSITION_WORDS + _WEIGHT,
    'embedding',
    'i o',
  ),
  # Patches and times are projected.
  Known(
    'table',
    rf'^(?!.*(?:patch|temporal))(?:.*/)?(?!{HIDDEN_WORDS}/){EMBED_WORDS}{_WEIGHT}',
    'embedding',
    ('i o',),
  ),
  named(
    _TRANSPOSED,
    TRANSPOSED + _WEIGHT,
    'matrix',
    *(layout.replace('o i', 'i o') for layout in _TORCH_CONV),
  ),
  named(
    _TRANSPOSED,
    UP_CONV + _WEIGHT,
    'matrix',
    *_TORCH_CONV,
    *(layout.replace('o i', 'i o') for layout in _TORCH_CONV),
    doubt='a convolution is [out, in, ...], a transposed one [in, out, ...], '
    'and no bias shows which',
    guess=False,
  ),
  # Some projections of patches, and linears, have such names.
  named(
    'convolution',
    rf'(?:[^/]*{CONV}|[^/]*patch[^/]*/proj(?:ection)?)' + _WEIGHT,
    'matrix',
    'o i',
    *_TORCH_CONV,
  ),
  named('projection', r'(?:.*/)?' + HIDDEN_WORDS + _WEIGHT, 'matrix', 'o i'),
  named(
    'patches',
    r'[^/]*(?:patch|projection)[^/]*' + _WEIGHT,
    'matrix',
    *_TORCH_CONV,
  ),
  named('recurrent', r'weight_[ih]h\w*$', 'matrix', 'o i'),
  named('weight', r'weights?$', 'matrix', 'o i'),
)

LAYOUT_DOUBT = (
  'PyTorch and Equinox keep a weight as [out, in], Haliax in either order, '
  'others as [in, out], and no bias shows which'
)


def _of_any_layout(doubt: str, *but: str) -> tuple[Known, ...]:
  """The weights whose axis of outputs must be shown by a bias."""
  return tuple(
    known
    if known.role in ('vector', 'embedding') or known.name in but
    else known._replace(
      layouts=_any_order(known.layouts),
      doubt=known.doubt or doubt,
      guess=False,
    )
    for known in _WEIGHTS
  )


def _any_order(layouts: tuple[str, ...]) -> tuple[str, ...]:
  """The layouts, and those with `o` first, second or last."""
  found = dict.fromkeys(layouts)
  for count in sorted({len(layout.split()) for layout in layouts}):
    for place in (0, 1, count - 1):
      letters = ['i'] * count
      letters[place] = 'o'
      found[' '.join(letters)] = None
  return tuple(found)


_UNSURE = _of_any_layout(LAYOUT_DOUBT)

FLAX = Preset('FLAX')
MAXTEXT = Preset('MAXTEXT', scan_axis=1)
TORCH = Preset('TORCH', _WEIGHTS, outputs_first=True)
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
    named(_TRANSPOSED, TRANSPOSED + _WEIGHT, 'matrix', *_TORCH_CONV),
    *_WEIGHTS,
  ),
  outputs_first=True,
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
HALIAX = Preset(
  'HALIAX',
  _of_any_layout(
    'haliax.nn.Linear keeps [in, out] or [out, in]: pass the tree of modules, '
    'whose In and Out give the order',
    'convolution',
  ),
)


EITHER_DOUBT = 'it may be [out, in], as weights of the preset, or [in, out]'


def either_order(
  known: Known | None, role: str | None, preset: Preset | None
) -> bool:
  """Whether a matrix of unknown name may be [out, in]."""
  first = preset is not None and preset.outputs_first
  return first and known is None and role not in ('embedding', 'vector')


def find(
  path: str, shape: tuple[int, ...], preset: Preset | None
) -> Known | None:
  """Returns the first row that matches the leaf, or None."""
  bare = re.sub(r'(?<=[a-zA-Z_])(?:/\d+)+$', '', path)
  single = sum(size > 1 for size in shape) <= 1
  for known in (*(preset.known if preset else ()), *DEFAULT, *_UNSURE):
    if re.search(known.pattern, bare) and (single or not known.single):
      return known
  return None
