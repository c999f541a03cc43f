"""Parameter names used by libraries, and their meaning.

A layout lists a leaf's axes in order: `i` is of fan_in, `o` of fan_out, `b` a
batch of matrices and `1` an axis of size 1. For example, `i o o` is Flax's
kernel [embed, heads, head_dim]. A vector has only `o`. Axes of stacks are not
included.
"""

import re
from typing import NamedTuple


class Known(NamedTuple):
  """A rule for leaves whose path matches a pattern.

  Attributes:
    name: name of the rule in `explain`.
    pattern: regular expression, searched in the leaf's path.
    role: 'embedding', 'head', 'matrix' or 'vector'; None: not a parameter.
    layouts: possible layouts, without stacks. If two fit, a leaf beside it must
      show which one applies.
    doubt: why leaves with this name are refused if no layout fits.
    guess: whether the axes are known once a user gives the role.
    alike: whether all such leaves in a tree have the same layout.
    single: whether only leaves with at most one axis longer than 1 match.
  """

  name: str
  pattern: str
  role: str | None
  layouts: tuple[str, ...]
  doubt: str = ''
  guess: bool = True
  alike: bool = False
  single: bool = False


HEAD_WORDS = (
  r'(?:(?:\w+_)?(?:lm|mlp|output)_head|heads?|classifier|unembed(?:ding)?'
  r'|embed_out|logits?(?:_?dense|_\w+)?|output_projection'
  r'|vocab_proj(?:ector)?)'
)
NORM_WORDS = (
  r'(?:[^/]*[nN]orm(?:\d+|_(?:\d+|global|local))?|[^/]*layer_?norm\w*|[^/]*_ln'
  r'|(?:ln|bn)(?:[a-z]|pre|post|\d*)(?:_\w*)?)'
)
EMBED_WORDS = (
  r'(?:[^/]*embed[^/]*|(?:[^/]*_)?embs?(?:_[^/]*)?|wte|wpe|shared'
  r'|relative_attention_bias)'
)
POSITION_WORDS = (  # Not `transpose`.
  r'(?:(?:[^/]*_)?(?:abs|rel)?pos(?:itions?|itional)?(?:_?(?:emb|enc|table)\w*)?'
  r'|wpe)'
)
HIDDEN_WORDS = (
  r'(?:[^/]*(?:proj|[dD]ense|[lL]inear|qkv|attn|mlp|fc|mapping|router|dt_rank)'
  r'[^/]*|query|key|value|query_key_value|gate|up|down|[qkvo]'
  r'|w[qkvo123i](?:_\d)?)'
)
_QKV = r'(?:query|key|value|[qkv])'
_OUT = r'(?:out|attn_out_proj|attention_out)'
CONV = r'(?:[^/]*[cC]onv(?!_?proj/)[^/]*|[^/]*patch[^/]*|[^/]*stem[^/]*)'
TRANSPOSED = r'[^/]*(?:[cC]onv[^/]*[tT]ranspose|[dD]econv)[^/]*'
UP_CONV = r'[^/]*[uU]p_?[cC]onv[^/]*'
_TOKEN = ('o', '1 o', '1 1 o')
CONV_LAYOUTS = ('i i o', 'i i i o', 'i i i i o')
_KERNEL = r'/(?:kernel|w)$'
START = r'(?:^|/)'


def named(
  name: str,
  pattern: str,
  role: str | None,
  *layouts: str,
  doubt: str = '',
  guess: bool = True,
) -> Known:
  """Returns a rule for leaves whose last names match."""
  return Known(name, START + pattern, role, layouts, doubt, guess)


# Hugging Face's GPT-2 has [in, out] in PyTorch and [out, in] in Flax.
GPT2 = named(
  'GPT-2',
  r'(?:c_(?:attn|fc|proj)|q_attn)/(?:kernel|weight)$',
  'matrix',
  'i o',
  'o i',
  guess=False,
  doubt='GPT-2 is kept as [in, out] or as [out, in], and no bias shows which',
)._replace(alike=True)

STATISTICS = 'batch statistics'  # The name of their rule.

# The first matching rule is used, so special names come before general ones.
DEFAULT: tuple[Known, ...] = (
  Known(
    STATISTICS,
    r'(?:^|/)(?:batch_stats/.*|running_(?:mean|var)|num_batches_tracked'
    r'|moving_(?:mean|var)\w*)$',
    None,
    (),
    'batch statistics are not parameters: remove them from the tree, or mask '
    'them',
  ),
  # Vision transformers.
  named(
    'token',
    r'(?:cls|cls_token|class_token|probe|mask_token|register_tokens'
    r'|dist_token)$',
    'vector',
    *_TOKEN,
  ),
  # Otherwise it is an embedding of classes.
  named('token', r'class_embedding$', 'vector', *_TOKEN)._replace(single=True),
  named(
    'relative positions', r'relpos_bias/rel_embedding$', 'embedding', 'o i'
  ),
  named(
    'relative positions',
    r'[^/]*rel(?:ative|_|pos)[^/]*(?:embed[^/]*|bias_table)$',
    'embedding',
    'i o',
    'o i',
    guess=False,
    doubt='[positions, heads] and [heads, positions] are both usual',
  ),
  named(
    'positions',
    r'(?![^/]*rel)(?:\w+_)?(?:pos_?emb\w*|position(?:al)?_?embed\w*)$',
    'embedding',
    'i o',
    '1 i o',
  ),
  named(
    'patches',
    r'embedding/kernel$',
    'matrix',
    'i i i o',
    doubt='an embedding and a projection can both have this name',
  ),
  # Gemma.
  named('gemma query', r'q_einsum' + _KERNEL, 'matrix', 'o i o'),
  named('gemma key, value', r'q?kv_einsum' + _KERNEL, 'matrix', 'b o i o'),
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
  named('adapter', r'lora[_/][ab]$', 'matrix', 'i o'),
  named(
    'experts',
    r'(?:\w*[eE]xperts?\w*|moe\w*|Moe\w*)/(?:.*/)?w[io](?:_\d)?$',
    'matrix',
    'i o',
  ),
  named('head kernel', HEAD_WORDS + _KERNEL, 'head', 'i o'),
  Known(
    'top-level output', r'^(?:params/)?output/(?:kernel|w)$', 'head', ('i o',)
  ),
  named(
    'norm',
    NORM_WORDS + r'/(?:weight|kernel|w|scale|bias|b|offset|gamma|beta)$',
    'vector',
    'o',
  ),
  named('attention bias', _QKV + r'/(?:bias|b)$', 'vector', 'o', 'o o'),
  named('attention kernel', _QKV + _KERNEL, 'matrix', 'i o', 'i o o'),
  named('attention out', _OUT + _KERNEL, 'matrix', 'i o', 'i i o'),
  GPT2,
  named(
    'transposed convolution',
    f'(?:{TRANSPOSED}|{UP_CONV})' + _KERNEL,
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
    r'(?![^/]*(?:patch|proj|mapping))' + EMBED_WORDS + _KERNEL,
    None,
    doubt='an embedding and a projection can both have this name',
  ),
  named(
    'vector quantizer', r'vector_quantizer\w*/embeddings$', 'embedding', 'o i'
  ),
  named('embedding', r'(?![^/]*patch)[^/]*embeddings?$', 'embedding', 'i o'),
  named(
    'einsum',
    r'[^/]*[eE]insum[^/]*' + _KERNEL,
    'matrix',
    'i o',
    'o i',
    guess=False,
    doubt='an einsum can have any order, and no bias shows which',
  ),
  named('kernel', r'(?:kernel|w)$', 'matrix', 'i o'),
  named(
    'bias or scale',
    r'(?:[^/]*bias(?:_n|_[ih]h\w*)?|[^/]*scale|b|offset|gamma|beta)$',
    'vector',
    'o',
    '',
  ),
)

# Kernels that may have an axis of heads.
HEADS = re.compile(START + f'(?:{_QKV}|{_OUT})' + _KERNEL)
HEAD = re.compile(START + HEAD_WORDS + r'(?:/\w+)?$')
PROJECTION = re.compile(START + HIDDEN_WORDS + r'/\w+$')
# Folders of kernels with an axis of experts or layers, unless it is a list.
_EXPERTS = r'\w*[eE]xperts?|[mM]oe\w*'
EXPERTS = re.compile(START + f'(?:{_EXPERTS})/')
STACKS = re.compile(
  START + rf'(?:{_EXPERTS}|layers|blocks|stack(?:ed)?)/(?!\d)'
)
NORM = re.compile(START + NORM_WORDS + r'/\w+$')
OTHER_TABLES = re.compile(
  'pos|type|segment|patch|class|time|label|relative|wpe|rel_|quantiz',
  re.IGNORECASE,
)
_TOKENS = re.compile(r'embed|wte|tok|(?<![^/])shared(?![^/])', re.IGNORECASE)
# Projections to the width of the residual stream, and from it.
INTO_STREAM = re.compile(
  START + r'(?:out|out_?proj|o_?proj|o|wo|down|down_?proj|c_proj|w2'
  r'|dense_4h_to_h|attn_out_proj|attn_vec_einsum|output_proj|output|out_linear)'
  r'(?:/\w+)?$'
)
OUT_OF_STREAM = re.compile(
  START + r'(?:query|key|value|[qkv]|[qkv]_proj|(?:query|key|value)_proj|qkv\w*'
  r'|c_attn|c_fc|gate|up|gate_proj|up_proj|wi(?:_\d)?|w[qkv13]|q_einsum|fc1'
  r'|fc_in|dense_h_to_4h|gating_linear|value_linear|w(?:q|kv)_[ab])(?:/\w+)?$'
)


def of_tokens(path: str) -> bool:
  """Whether a name is that of an embedding of tokens."""
  return bool(_TOKENS.search(path)) and not OTHER_TABLES.search(path)


def is_general(path: str, known: Known | None) -> bool:
  """Whether a name fits any matrix: hidden, head or embedding."""
  general = known is not None and known.name in ('kernel', 'weight')
  return general and not OUT_OF_STREAM.search(path)


def bias_of(path: str) -> str:
  """The path of the bias beside a matrix; '' if it cannot have one."""
  names = {'kernel': 'bias', 'w': 'b', 'weight': 'bias', 'weights': 'bias'}
  return _beside(path, names)


def kernel_of(path: str) -> str:
  """The path of the kernel beside a bias; '' if it cannot have one."""
  return _beside(path, {'bias': 'kernel', 'b': 'w'})


def _beside(path: str, other: dict[str, str]) -> str:
  folder, _, name = path.rpartition('/')
  return f'{folder}/{other[name]}'.lstrip('/') if name in other else ''


def linear_of(path: str) -> str:
  """The path of the matrix that maps from Gemma's gates; '' for others."""
  linear = path.replace('gating_einsum', 'linear')
  return linear if linear != path else ''


def query_and_out(path: str) -> tuple[str, str]:
  """The paths of query and out, if `path` is one of them (Flax's attention)."""
  match = re.fullmatch(r'((?:.*/)?)(?:query|out)(/\w+)', path)
  if match is None:
    return '', ''
  before, after = match.groups()
  return f'{before}query{after}', f'{before}out{after}'
