"""The names of parameters that libraries give, and what they mean.

A layout spells a leaf's axes in their order: `i` is of fan_in, `o` of fan_out,
`b` a batch of matrices and `1` an axis of size 1; so `i o o` is Flax's kernel
[embed, heads, head_dim]. A vector has `o` only. Axes of a stack come on top.
"""

import re
from typing import NamedTuple


class Known(NamedTuple):
  """Leaves that have a name of this form.

  Attributes:
    name: what the rule is called in `explain`.
    pattern: regular expression, searched in the leaf's path.
    role: 'embedding', 'head', 'matrix' or 'vector'; None: not a parameter.
    layouts: those that it may have without a stack. Where two fit, a leaf
      beside it has to show which.
    doubt: why leaves of this name are refused where no layout fits.
    guess: whether a role that a user gives is enough to know the axes.
  """

  name: str
  pattern: str
  role: str | None
  layouts: tuple[str, ...]
  doubt: str = ''
  guess: bool = True


class Preset(NamedTuple):
  """How a library names and lays out its parameters.

  Attributes:
    name: of the preset, in messages.
    known: its names, before those that are known anyway.
    scan_axis: where stacked layers have the axis of layers; None: proved.
  """

  name: str
  known: tuple[Known, ...] = ()
  scan_axis: int | None = None


_HEAD = (
  r'(?:(?:\w+_)?(?:lm|mlp|output)_head|heads?|classifier|unembed(?:ding)?'
  r'|embed_out|logits?(?:_?dense|_\w+)?|output_projection'
  r'|vocab_proj(?:ector)?)'
)
_NORM = (
  r'(?:[^/]*[nN]orm(?:_(?:\d+|global|local))?|[^/]*layer_?norm\w*|[^/]*_ln'
  r'|(?:ln|bn)(?:f|\d*)(?:_\w*)?)'
)
_EMBED = (
  r'(?:[^/]*embed[^/]*|(?:[^/]*_)?embs?(?:_[^/]*)?|wte|wpe|shared'
  r'|relative_attention_bias)'
)
_POSITION = (  # Not `transpose`.
  r'(?:(?:[^/]*_)?(?:abs|rel)?pos(?:itions?|itional)?(?:_?(?:emb|enc|table)\w*)?'
  r'|wpe)'
)
_HIDDEN = (
  r'(?:[^/]*(?:proj|[dD]ense|[lL]inear|qkv|attn|mlp|fc|mapping|router|dt_rank)[^/]*'
  r'|query|key|value|query_key_value|gate|up|down|[qkvo]|w[qkvo123i](?:_\d)?)'
)
_QKV = r'(?:query|key|value|[qkv])'
_OUT = r'(?:out|attn_out_proj|attention_out)'
CONV = r'(?:[^/]*[cC]onv(?!_?proj/)[^/]*|[^/]*patch[^/]*|[^/]*stem[^/]*)'
TRANSPOSED = r'[^/]*(?:[cC]onv[^/]*[tT]ranspose|[dD]econv)[^/]*'
CONV_LAYOUTS = ('i i o', 'i i i o', 'i i i i o')
TORCH_CONV = ('o i i', 'o i i i', 'o i i i i')
_KERNEL = r'/(?:kernel|w)$'
_START = r'(?:^|/)'


def named(
  name: str,
  pattern: str,
  role: str | None,
  *layouts: str,
  doubt: str = '',
  guess: bool = True,
) -> Known:
  """Leaves whose last names have this form."""
  return Known(name, _START + pattern, role, layouts, doubt, guess)


# Hugging Face's GPT-2 has [in, out] in PyTorch and [out, in] in Flax.
_GPT2 = named(
  'GPT-2',
  r'(?:c_(?:attn|fc|proj)|q_attn)/kernel$',
  'matrix',
  'i o',
  'o i',
  guess=False,
  doubt='GPT-2 is kept as [in, out] or as [out, in], and no bias beside it '
  'shows which',
)
WEIGHT = r'/weights?$'
# Weights of PyTorch, Equinox and Haliax, in the layout of PyTorch.
WEIGHTS: tuple[Known, ...] = (
  _GPT2._replace(pattern=_START + r'(?:c_(?:attn|fc|proj)|q_attn)/weight$'),
  named(
    'adapter',
    r'lora_embedding_[AB](?:/.*)?$',
    None,
    doubt='an adapter of a table',
  ),
  named('adapter', r'lora_[AB](?:/\w+)?' + WEIGHT, 'matrix', 'o i'),
  named('norm', _NORM + WEIGHT, 'vector', 'o'),
  named('head', _HEAD + WEIGHT, 'head', 'o i'),
  Known('top-level output', r'^output/weight$', 'head', ('o i',)),
  named(
    'position', rf'(?!{_HIDDEN}/)' + _POSITION + WEIGHT, 'embedding', 'i o'
  ),
  named(
    'table',
    rf'(?!{_HIDDEN}/)(?![^/]*patch)' + _EMBED + WEIGHT,
    'embedding',
    'i o',
  ),
  named(
    'transposed convolution',
    TRANSPOSED + WEIGHT,
    'matrix',
    *(layout.replace('o i', 'i o') for layout in TORCH_CONV),
  ),
  named('convolution', r'[^/]*' + CONV + WEIGHT, 'matrix', *TORCH_CONV),
  named('projection', r'(?:.*/)?' + _HIDDEN + WEIGHT, 'matrix', 'o i'),
  named(
    'patches',
    r'[^/]*(?:patch|projection)[^/]*' + WEIGHT,
    'matrix',
    *TORCH_CONV,
  ),
  named('weight', r'weights?$', 'matrix', 'o i'),
)

_LAYOUT_DOUBT = (
  'PyTorch, Equinox and Haliax keep a weight as [out, in], others as [in, out]'
)
# The same names, without a preset for PyTorch's layout.
_UNSURE = tuple(
  known
  if known.role in ('vector', 'embedding')
  else known._replace(
    role=None if known is WEIGHTS[-1] else known.role,
    layouts=(),
    doubt=_LAYOUT_DOUBT,
    guess=False,
  )
  for known in WEIGHTS
)

# The first one that matches counts: from special names to general ones.
DEFAULT: tuple[Known, ...] = (
  Known(
    'batch statistics',
    r'(?:^|/)(?:batch_stats/.*|running_(?:mean|var)|num_batches_tracked'
    r'|moving_(?:mean|var)\w*)$',
    None,
    (),
    'statistics of batches are no parameters: leave them out of the tree, or '
    'mask them',
  ),
  # Vision transformers.
  named(
    'token',
    r'(?:cls|cls_token|class_token|class_embedding|probe|mask_token'
    r'|register_tokens|dist_token)$',
    'vector',
    'o',
    '1 o',
    '1 1 o',
  ),
  named(
    'relative positions', r'relpos_bias/rel_embedding$', 'embedding', 'o i'
  ),
  named(
    'relative positions',
    r'[^/]*rel(?:ative|_|pos)[^/]*embed[^/]*$',
    None,
    doubt='[positions, heads] and [heads, positions] are both usual',
  ),
  named(
    'positions',
    r'(?:pos_?emb\w*|position_?embed\w*|positional_embed\w*)$',
    'embedding',
    'i o',
    '1 i o',
  ),
  named(
    'patches',
    r'embedding/kernel$',
    'matrix',
    'i i i o',
    doubt='a table and a projection can both have this name',
  ),
  # Gemma.
  named('gemma query', r'q_einsum' + _KERNEL, 'matrix', 'o i o'),
  named('gemma key, value', r'kv_einsum' + _KERNEL, 'matrix', 'b o i o'),
  named('gemma qkv', r'qkv_einsum' + _KERNEL, 'matrix', 'b o i o'),
  named('gemma out', r'attn_vec_einsum' + _KERNEL, 'matrix', 'i i o'),
  named(
    'gemma gates',
    r'gating_einsum(?:/w)?$',
    'matrix',
    'b i o',
    'b o i',
    doubt='Gemma 1 keeps it as [2, in, out], Gemma 2 as [2, out, in], and no '
    'linear beside it shows which',
  ),
  named('gemma linear', r'mlp/linear(?:/w)?$', 'matrix', 'i o'),
  # Mamba.
  named(
    'state space',
    r'(?:A_log|D|dt_bias)$',
    'vector',
    'o',
    doubt='the axes [channels, state] are one unit, or a vector each',
    guess=False,
  ),
  # Low rank adapters, in Flax.
  named('adapter', r'lora_[ab]$', 'matrix', 'i o'),
  named(
    'experts',
    r'(?:\w*[eE]xperts?\w*|moe\w*|Moe\w*)/(?:.*/)?w[io](?:_\d)?$',
    'matrix',
    'i o',
  ),
  named('head kernel', _HEAD + _KERNEL, 'head', 'i o'),
  Known(
    'top-level output', r'^(?:params/)?output/(?:kernel|w)$', 'head', ('i o',)
  ),
  named(
    'norm',
    _NORM + r'/(?:weight|kernel|w|scale|bias|b|offset|gamma|beta)$',
    'vector',
    'o',
  ),
  named('attention bias', _QKV + r'/(?:bias|b)$', 'vector', 'o', 'o o'),
  named('attention kernel', _QKV + _KERNEL, 'matrix', 'i o', 'i o o'),
  named('attention out', _OUT + _KERNEL, 'matrix', 'i o', 'i i o'),
  _GPT2,
  named(
    'transposed convolution',
    TRANSPOSED + _KERNEL,
    'matrix',
    *CONV_LAYOUTS,
    *(layout.replace('i o', 'o i') for layout in CONV_LAYOUTS),
    doubt='it is kept as [..., in, out] or as [..., out, in], and no bias '
    'beside it shows which',
  ),
  named(
    'convolution',
    rf'(?:{CONV}|[^/]*patch[^/]*/proj(?:ection)?)' + _KERNEL,
    'matrix',
    'i o',
    *CONV_LAYOUTS,
  ),
  named(
    'embedding as kernel',
    r'(?![^/]*(?:patch|proj|mapping))' + _EMBED + _KERNEL,
    None,
    doubt='a table and a projection can both have this name',
  ),
  named('embedding', r'[^/]*embeddings?$', 'embedding', 'i o'),
  named('kernel', r'(?:kernel|w)$', 'matrix', 'i o'),
  *_UNSURE,
  named(
    'bias or scale',
    r'(?:[^/]*bias|[^/]*scale|b|offset|gamma|beta)$',
    'vector',
    'o',
    '',
  ),
)

HEAD = re.compile(_START + _HEAD + r'(?:/\w+)?$')
PROJECTION = re.compile(_START + _HIDDEN + r'/\w+$')
NORM = re.compile(_START + _NORM + r'/\w+$')
TOKENS = re.compile(
  r'^(?!.*(?:pos|type|segment|patch|class|time|label|relative|wpe|rel_)).*'
  r'(?:embed|wte|shared|tok)',
  re.IGNORECASE,
)


def find(path: str, preset: Preset | None) -> Known | None:
  """Returns the first row whose pattern matches the path, or None."""
  bare = re.sub(r'(?<=[a-zA-Z_])(?:/\d+)+$', '', path)
  for known in (*(preset.known if preset else ()), *DEFAULT):
    if re.search(known.pattern, bare):
      return known
  return None
