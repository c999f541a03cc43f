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
    layouts: one for each number of axes that it may have without a stack.
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
    outputs_first: whether a named array has the axes of fan_out before those
      of fan_in.
    scan_axis: where stacked layers have the axis of layers; None: proved.
  """

  name: str
  known: tuple[Known, ...] = ()
  outputs_first: bool = False
  scan_axis: int | None = None


_HEAD = (
  r'(?:(?:\w+_)?(?:lm|mlp|output)_head|heads?|unembed(?:ding)?|embed_out'
  r'|logits?(?:_?dense|_\w+)?|output_projection|vocab_proj(?:ector)?)'
)
_NORM = (
  r'(?:[^/]*[nN]orm(?:_\d+)?|[^/]*layer_?norm\w*|ln_?\w*|[^/]*_ln|bn_?\w*)'
)
_EMBED = r'(?:[^/]*embed[^/]*|wte|wpe|shared)'
_HIDDEN = (
  r'(?:[^/]*(?:proj|dense|linear|qkv|attn|mlp|fc|mapping|router|dt_rank)[^/]*'
  r'|query|key|value|query_key_value|gate|up|down|[qkvo]|w[qkvo123i](?:_\d)?)'
)
_QKV = r'(?:query|key|value|[qkv])'
_OUT = r'(?:out|attn_out_proj|attention_out)'
_CONV = r'(?:[^/]*[cC]onv(?!_?proj/)[^/]*|[^/]*patch[^/]*|[^/]*stem[^/]*)'
_CONV_LAYOUTS = ('i i o', 'i i i o', 'i i i i o')
_TORCH_CONV = ('o i i', 'o i i i', 'o i i i i')
_KERNEL = r'/(?:kernel|w)$'
_START = r'(?:^|/)'


def _known(name, pattern, role, *layouts, doubt='', guess=True):
  return Known(name, _START + pattern, role, layouts, doubt, guess)


_WEIGHT = r'/weights?$'
_TORCH = (
  _known(
    'HF GPT-2',
    r'c_(?:attn|fc|proj)/weight$',
    'matrix',
    guess=False,
    doubt="Hugging Face's GPT-2 keeps it as [in, out], other GPT-2s as "
    '[out, in]',
  ),
  _known(
    'adapter',
    r'lora_embedding_[AB](?:/.*)?$',
    None,
    doubt='an adapter of a table',
  ),
  _known('adapter', r'lora_[AB](?:/\w+)?' + _WEIGHT, 'matrix', 'o i'),
  _known('norm', _NORM + _WEIGHT, 'vector', 'o'),
  _known('head', _HEAD + _WEIGHT, 'head', 'o i'),
  Known('top-level output', r'^output/weight$', 'head', ('o i',)),
  _known('position', r'(?:[^/]*pos[^/]*|wpe)/weight$', 'embedding', 'i o'),
  _known(
    'table',
    rf'(?!{_HIDDEN}/)(?![^/]*patch)' + _EMBED + _WEIGHT,
    'embedding',
    'i o',
  ),
  _known('convolution', r'[^/]*' + _CONV + _WEIGHT, 'matrix', *_TORCH_CONV),
  _known('projection', r'(?:.*/)?' + _HIDDEN + _WEIGHT, 'matrix', 'o i'),
  _known(
    'patches',
    r'[^/]*(?:patch|projection)[^/]*' + _WEIGHT,
    'matrix',
    *_TORCH_CONV,
  ),
  _known('weight', r'weights?$', 'matrix', 'o i'),
)

_LAYOUT_DOUBT = (
  'PyTorch, Equinox and Haliax keep a weight as [out, in], others as [in, out]'
)
# The same names, where nobody has said that the layout is PyTorch's.
_UNSURE = tuple(
  known
  if known.role in ('vector', 'embedding')
  else known._replace(
    role=None if known is _TORCH[-1] else known.role,
    layouts=(),
    doubt=_LAYOUT_DOUBT,
    guess=False,
  )
  for known in _TORCH
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
  _known(
    'token',
    r'(?:cls|cls_token|class_token|probe|mask_token'
    r'|register_tokens|dist_token)$',
    'vector',
    'o',
    '1 o',
    '1 1 o',
  ),
  _known(
    'positions',
    r'(?:pos_?emb\w*|position_?embed\w*|positional_embed\w*)$',
    'embedding',
    'i o',
    '1 i o',
  ),
  _known(
    'patches',
    r'embedding/kernel$',
    'matrix',
    'i i i o',
    doubt='a table and a projection can both have this name',
  ),
  # Gemma.
  _known('gemma query', r'q_einsum/w$', 'matrix', 'o i o'),
  _known('gemma key, value', r'kv_einsum/w$', 'matrix', 'b o i o'),
  _known('gemma qkv', r'qkv_einsum/w$', 'matrix', 'b o i o'),
  _known('gemma out', r'attn_vec_einsum/w$', 'matrix', 'i i o'),
  _known('gemma gates', r'gating_einsum(?:/w)?$', 'matrix', 'b i o'),
  _known('gemma linear', r'mlp/linear(?:/w)?$', 'matrix', 'i o'),
  # Mamba.
  _known(
    'state space',
    r'(?:A_log|D|dt_bias)$',
    'vector',
    'o',
    doubt='the axes [channels, state] are one unit, or a vector each',
    guess=False,
  ),
  # Low rank adapters, in Flax.
  _known('adapter', r'lora_[ab]$', 'matrix', 'i o'),
  _known(
    'experts',
    r'(?:\w*[eE]xperts?\w*|moe\w*|Moe\w*)/(?:.*/)?w[io](?:_\d)?$',
    'matrix',
    'i o',
  ),
  _known('head kernel', _HEAD + _KERNEL, 'head', 'i o'),
  Known(
    'top-level output', r'^(?:params/)?output/(?:kernel|w)$', 'head', ('i o',)
  ),
  _known(
    'norm',
    _NORM + r'/(?:weight|kernel|w|scale|bias|b|offset|gamma|beta)$',
    'vector',
    'o',
  ),
  _known('attention bias', _QKV + r'/(?:bias|b)$', 'vector', 'o', 'o o'),
  _known('attention kernel', _QKV + _KERNEL, 'matrix', 'i o', 'i o o'),
  _known('attention out', _OUT + _KERNEL, 'matrix', 'i o', 'i i o'),
  _known('convolution', _CONV + _KERNEL, 'matrix', 'i o', *_CONV_LAYOUTS),
  _known(
    'embedding as kernel',
    r'(?![^/]*(?:patch|proj|mapping))' + _EMBED + _KERNEL,
    None,
    doubt='a table and a projection can both have this name',
  ),
  _known('embedding', r'[^/]*embeddings?$', 'embedding', 'i o'),
  _known('kernel', r'(?:kernel|w)$', 'matrix', 'i o'),
  *_UNSURE,
  _known(
    'bias or scale',
    r'(?:[^/]*bias|[^/]*scale|b|offset|gamma|beta)$',
    'vector',
    'o',
    '',
  ),
)

FLAX = Preset('FLAX')
MAXTEXT = Preset('MAXTEXT', scan_axis=1)
TORCH = Preset('TORCH', _TORCH)
EQUINOX = Preset(
  'EQUINOX',
  (
    _known(
      'convolution bias',
      _CONV + r'/bias$',
      'vector',
      'o',
      'o 1',
      'o 1 1',
      'o 1 1 1',
    ),
    *_TORCH,
  ),
)
HAIKU = Preset('HAIKU')
HALIAX = Preset('HALIAX', outputs_first=True, known=_TORCH)
PRESETS = (FLAX, MAXTEXT, TORCH, EQUINOX, HAIKU, HALIAX)

# Projections to the width of the residual stream, and from it.
INTO_STREAM = re.compile(
  r'(?:^|/)(?:out|out_?proj|o_?proj|o|wo|down|down_?proj|c_proj|w2|dense_4h_to_h'
  r'|attn_out_proj|attn_vec_einsum|output_proj|output|out_linear)(?:/\w+)?$'
)
OUT_OF_STREAM = re.compile(
  r'(?:^|/)(?:query|key|value|[qkv]|[qkv]_proj|(?:query|key|value)_proj|qkv\w*'
  r'|c_attn|c_fc|gate|up|gate_proj|up_proj|wi(?:_\d)?|w[qkv13]|q_einsum'
  r'|fc_in|dense_h_to_4h|gating_linear|value_linear)(?:/\w+)?$'
)
HEAD = re.compile(_START + _HEAD + r'(?:/\w+)?$')
NORM = re.compile(_START + _NORM + r'/\w+$')
TOKENS = re.compile(
  r'^(?!.*(?:pos|type|segment|patch|class|time|label|relative|wpe|rel_)).*'
  r'(?:embed|wte|shared|tok)',
  re.IGNORECASE,
)


def find(path: str, preset: Preset | None) -> Known | None:
  """The row of the names that knows the leaf, if one does."""
  bare = re.sub(r'(?<=[a-zA-Z_])(?:/\d+)+$', '', path)
  for known in (*(preset.known if preset else ()), *DEFAULT):
    if re.search(known.pattern, bare):
      return known
  return None
