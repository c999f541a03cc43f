# ruff: noqa: E501
"""Parameters of other people's models: names, shapes, and what is right.

Each project has one tree, with one of its layers where all are alike. The
shapes are those of a published size, or of a small one where none is. Names
were read in the sources named, except those marked 'from memory', which nobody
has compared with the source yet.
"""

from typing import Any, NamedTuple

from sage_optax import layout


class Row(NamedTuple):
  """A parameter.

  Attributes:
    path: its name, '/' between the parts.
    shape: its shape.
    role: what is right; several, with '|', where several are.
    fan_in: the axes of fan_in, in any order; of vectors none.
    fan_out: the axes of fan_out.
    names: logical names of its axes, if the library gives them.
  """

  path: str
  shape: tuple[int, ...]
  role: str
  fan_in: tuple[int, ...]
  fan_out: tuple[int, ...]
  names: tuple[str | None, ...] | None = None


class Project(NamedTuple):
  """The parameters of one model.

  Attributes:
    name: of the project.
    source: where names and shapes were read.
    rows: the parameters.
    preset: what a user of the library says once; None: nothing.
    box: 'flax' or 'haliax': what carries the names of axes.
  """

  name: str
  source: str
  rows: list[Row]
  preset: layout.Preset | None = None
  box: str = 'flax'


def _rows(text: str) -> list[Row]:
  """Rows of 'path shape role in -> out [names]', axes as digits."""
  rows = []
  for line in text.strip().splitlines():
    path, shape, role, axes, *names = line.split()
    fan_in, fan_out = (
      tuple(int(d) for d in side if d.isdigit()) for side in axes.split('>')
    )
    sizes = tuple(int(n) for n in shape.split('x')) if shape != '-' else ()
    named: Any = tuple(names[0].split(',')) if names else None
    rows.append(Row(path, sizes, role, fan_in, fan_out, named))
  return rows


_NANODO = """
embed/embedding 32000x512 embedding 0>1
pos_embed/embedding 1024x512 embedding 0>1
blocks_0/LayerNorm_0/scale 512 vector >0
blocks_0/CausalAttn_0/query/kernel 512x8x64 matrix 0>12
blocks_0/CausalAttn_0/key/kernel 512x8x64 matrix 0>12
blocks_0/CausalAttn_0/value/kernel 512x8x64 matrix 0>12
blocks_0/CausalAttn_0/attn_out_proj/kernel 8x64x512 matrix 01>2
blocks_0/LayerNorm_1/scale 512 vector >0
blocks_0/Mlp_0/Dense_0/kernel 512x2048 matrix 0>1
blocks_0/Mlp_0/Dense_1/kernel 2048x512 matrix 0>1
out_ln/scale 512 vector >0
"""
_LM1B = """
decoder/Embed_0/embedding 30000x512 embedding 0>1 vocab,embed
decoder/posembed_output/pos_embedding 1x2048x512 embedding 1>2
decoder/encoderdecoderblock_0/LayerNorm_0/scale 512 vector >0 embed
decoder/encoderdecoderblock_0/LayerNorm_0/bias 512 vector >0 embed
decoder/encoderdecoderblock_0/SelfAttention_0/query/kernel 512x8x64 matrix 0>12 embed,kv
decoder/encoderdecoderblock_0/SelfAttention_0/key/kernel 512x8x64 matrix 0>12 embed,kv
decoder/encoderdecoderblock_0/SelfAttention_0/value/kernel 512x8x64 matrix 0>12 embed,kv
decoder/encoderdecoderblock_0/SelfAttention_0/out/kernel 8x64x512 matrix 01>2 embed,kv
decoder/encoderdecoderblock_0/MlpBlock_0/Dense_0/kernel 512x2048 matrix 0>1 embed,mlp
decoder/encoderdecoderblock_0/MlpBlock_0/Dense_0/bias 2048 vector >0 mlp
decoder/encoderdecoderblock_0/MlpBlock_0/Dense_1/kernel 2048x512 matrix 0>1 mlp,embed
decoder/encoderdecoderblock_0/MlpBlock_0/Dense_1/bias 512 vector >0 embed
decoder/encoderdecoder_norm/scale 512 vector >0 embed
decoder/logitdense/kernel 512x30000 head 0>1 embed,vocab
decoder/logitdense/bias 30000 vector >0 vocab
"""
_GEMMA = """
embedder/input_embedding/value 262144x1152 embedding 0>1
layers/0/pre_attention_norm/scale/value 1152 vector >0
layers/0/attn/q_einsum/w/value 4x1152x256 matrix 1>02
layers/0/attn/kv_einsum/w/value 2x1x1152x256 matrix 2>13
layers/0/attn/attn_vec_einsum/w/value 4x256x1152 matrix 01>2
layers/0/attn/_query_norm/scale/value 256 vector >0
layers/0/attn/_key_norm/scale/value 256 vector >0
layers/0/post_attn_norm/scale/value 1152 vector >0
layers/0/mlp/gate_proj/kernel/value 1152x6912 matrix 0>1
layers/0/mlp/up_proj/kernel/value 1152x6912 matrix 0>1
layers/0/mlp/down_proj/kernel/value 6912x1152 matrix 0>1
layers/1/attn/qkv_einsum/w/value 3x4x1152x256 matrix 2>13
final_norm/scale/value 1152 vector >0
"""
_IMAGENET = """
conv_init/kernel 7x7x3x64 matrix 012>3
bn_init/scale 64 vector >0
bn_init/bias 64 vector >0
BottleneckResNetBlock_0/Conv_0/kernel 1x1x64x64 matrix 012>3
BottleneckResNetBlock_0/BatchNorm_0/scale 64 vector >0
BottleneckResNetBlock_0/BatchNorm_0/bias 64 vector >0
BottleneckResNetBlock_0/Conv_1/kernel 3x3x64x64 matrix 012>3
BottleneckResNetBlock_0/conv_proj/kernel 1x1x64x256 matrix 012>3
BottleneckResNetBlock_0/norm_proj/scale 256 vector >0
Dense_0/kernel 2048x1000 matrix|head 0>1
Dense_0/bias 1000 vector >0
batch_stats/bn_init/mean 64 none >
"""
_MAXTEXT = """
token_embedder/embedding 32000x4096 embedding 0>1 vocab,embed
decoder/layers/pre_self_attention_layer_norm/scale 4096x32 vector >0 norm,layers
decoder/layers/self_attention/query/kernel 4096x32x32x128 matrix 0>23 embed,layers,q_heads,kv
decoder/layers/self_attention/key/kernel 4096x32x8x128 matrix 0>23 embed,layers,kv_heads,kv_head_dim
decoder/layers/self_attention/value/kernel 4096x32x8x128 matrix 0>23 embed,layers,kv_heads,kv_head_dim
decoder/layers/self_attention/out/kernel 32x32x128x4096 matrix 02>3 heads,layers,kv,embed
decoder/layers/post_self_attention_layer_norm/scale 4096x32 vector >0 norm,layers
decoder/layers/mlp/wi_0/kernel 4096x32x11008 matrix 0>2 embed,layers,mlp
decoder/layers/mlp/wi_1/kernel 4096x32x11008 matrix 0>2 embed,layers,mlp
decoder/layers/mlp/wo/kernel 11008x32x4096 matrix 0>2 mlp,layers,embed
decoder/decoder_norm/scale 4096 vector >0 norm
decoder/logits_dense/kernel 4096x32000 head 0>1 embed,vocab
"""
_MIXTRAL = """
token_embedder/embedding 32000x4096 embedding 0>1 vocab,embed
decoder/layers/pre_self_attention_layer_norm/scale 4096x24 vector >0 norm,layers
decoder/layers/MoeBlock_0/gate/kernel 4096x24x8 matrix 0>2 embed,layers,exp
decoder/layers/MoeBlock_0/wi_0 8x24x4096x14336 matrix 2>3 exp,layers,embed_no_exp,mlp
decoder/layers/MoeBlock_0/wi_1 8x24x4096x14336 matrix 2>3 exp,layers,embed_no_exp,mlp
decoder/layers/MoeBlock_0/wo 8x24x14336x4096 matrix 2>3 exp,layers,mlp,embed_no_exp
"""
_LEVANTER = """
embeddings/token_embeddings/weight/array 32000x4096 embedding 0>1 vocab,embed
transformer/layers/stacked/input_layernorm/weight/array 32x4096 vector >1 layers,embed
transformer/layers/stacked/self_attn/q_proj/weight/array 32x8x4x128x4096 matrix 4>123 layers,kv_heads,q_heads_per_group,head_size,embed
transformer/layers/stacked/self_attn/k_proj/weight/array 32x8x128x4096 matrix 3>12 layers,kv_heads,head_size,embed
transformer/layers/stacked/self_attn/v_proj/weight/array 32x8x128x4096 matrix 3>12 layers,kv_heads,head_size,embed
transformer/layers/stacked/self_attn/o_proj/weight/array 32x4096x32x128 matrix 23>1 layers,embed,heads,head_size
transformer/layers/stacked/mlp/gate_proj/weight/array 32x11008x4096 matrix 2>1 layers,mlp,embed
transformer/layers/stacked/mlp/up_proj/weight/array 32x11008x4096 matrix 2>1 layers,mlp,embed
transformer/layers/stacked/mlp/down_proj/weight/array 32x4096x11008 matrix 2>1 layers,embed,mlp
transformer/norm/weight/array 4096 vector >0 embed
lm_head/weight/array 32000x4096 head 1>0 vocab,embed
"""
_VIT = """
embedding/kernel 16x16x3x768 matrix 012>3
embedding/bias 768 vector >0
cls 1x1x768 vector >2
pos_embedding 1x196x768 embedding 1>2
Transformer/encoderblock_0/LayerNorm_0/scale 768 vector >0
Transformer/encoderblock_0/LayerNorm_0/bias 768 vector >0
Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel 768x12x64 matrix 0>12
Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/bias 12x64 vector >01
Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/kernel 768x12x64 matrix 0>12
Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/bias 12x64 vector >01
Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/kernel 768x12x64 matrix 0>12
Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/bias 12x64 vector >01
Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/kernel 12x64x768 matrix 01>2
Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/bias 768 vector >0
Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel 768x3072 matrix 0>1
Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias 3072 vector >0
Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel 3072x768 matrix 0>1
Transformer/encoder_norm/scale 768 vector >0
MAPHead_0/probe 1x1x768 vector >2
pre_logits/kernel 768x768 matrix 0>1
head/kernel 768x1000 head 0>1
head/bias 1000 vector >0
"""
_EQUINOX = """
embed/weight 1000x64 embedding 0>1
conv/weight 32x3x5x5 matrix 123>0
conv/bias 32x1x1 vector >0
layers/0/weight 64x32 matrix 1>0
layers/0/bias 64 vector >0
norm/weight 64 vector >0
norm/bias 64 vector >0
attention/query_proj/weight 96x64 matrix 1>0
attention/key_proj/weight 96x64 matrix 1>0
attention/value_proj/weight 96x64 matrix 1>0
attention/output_proj/weight 64x96 matrix 1>0
mlp/layers/0/weight 256x64 matrix 1>0
lm_head/weight 1000x64 head 1>0
"""
_HAIKU = """
embed/embeddings 1000x64 embedding 0>1
transformer/h0_attn/query/w 64x96 matrix 0>1
transformer/h0_attn/query/b 96 vector >0
transformer/h0_attn/key/w 64x96 matrix 0>1
transformer/h0_attn/value/w 64x96 matrix 0>1
transformer/h0_attn/linear/w 96x64 matrix 0>1
transformer/h0_mlp/linear/w 64x256 matrix 0>1
transformer/h0_mlp/linear_1/w 256x64 matrix 0>1
transformer/layer_norm/scale 64 vector >0
transformer/layer_norm/offset 64 vector >0
conv2_d/w 3x3x16x32 matrix 012>3
conv2_d/b 32 vector >0
positional_embeddings 128x64 embedding 0>1
linear/w 64x1000 head 0>1
"""
_PENZAI = """
transformer/embedder/embeddings/value/data_array 32000x512 embedding 0>1 vocabulary,embedding
transformer/block_0/pre_attention_norm/scale/weights/value/data_array 512 vector >0 embedding
transformer/block_0/attention/query/weights/value/data_array 512x2x4x64 matrix 0>123 embedding,head_groups,query_heads,projection
transformer/block_0/attention/key/weights/value/data_array 512x2x64 matrix 0>12 embedding,head_groups,projection
transformer/block_0/attention/value/weights/value/data_array 512x2x64 matrix 0>12 embedding,head_groups,projection
transformer/block_0/attention/output/weights/value/data_array 2x4x64x512 matrix 012>3 head_groups,query_heads,projection,embedding
transformer/block_0/mlp/gating_linear/weights/value/data_array 512x2048 matrix 0>1 embedding,neurons
transformer/block_0/mlp/value_linear/weights/value/data_array 512x2048 matrix 0>1 embedding,neurons
transformer/block_0/mlp/out_linear/weights/value/data_array 2048x512 matrix 0>1 neurons,embedding
transformer/final_norm/scale/weights/value/data_array 512 vector >0 embedding
transformer/lm_head/weights/value/data_array 512x32000 head 0>1 embedding,vocabulary
"""
_HF_LLAMA = """
model/embed_tokens/weight 32000x4096 embedding 0>1
model/layers/0/self_attn/q_proj/weight 4096x4096 matrix 1>0
model/layers/0/self_attn/k_proj/weight 1024x4096 matrix 1>0
model/layers/0/self_attn/v_proj/weight 1024x4096 matrix 1>0
model/layers/0/self_attn/o_proj/weight 4096x4096 matrix 1>0
model/layers/0/mlp/gate_proj/weight 11008x4096 matrix 1>0
model/layers/0/mlp/up_proj/weight 11008x4096 matrix 1>0
model/layers/0/mlp/down_proj/weight 4096x11008 matrix 1>0
model/layers/0/input_layernorm/weight 4096 vector >0
model/layers/0/post_attention_layernorm/weight 4096 vector >0
model/norm/weight 4096 vector >0
lm_head/weight 32000x4096 head 1>0
"""
_HF_GPT2 = """
transformer/wte/weight 50257x768 embedding 0>1
transformer/wpe/weight 1024x768 embedding 0>1
transformer/h/0/ln_1/weight 768 vector >0
transformer/h/0/ln_1/bias 768 vector >0
transformer/h/0/attn/c_attn/weight 768x2304 matrix 0>1
transformer/h/0/attn/c_attn/bias 2304 vector >0
transformer/h/0/attn/c_proj/weight 768x768 matrix 0>1
transformer/h/0/mlp/c_fc/weight 768x3072 matrix 0>1
transformer/h/0/mlp/c_proj/weight 3072x768 matrix 0>1
transformer/ln_f/weight 768 vector >0
"""
_HF_FLAX_BERT = """
embeddings/word_embeddings/embedding 30522x768 embedding 0>1
embeddings/position_embeddings/embedding 512x768 embedding 0>1
embeddings/token_type_embeddings/embedding 2x768 embedding 0>1
embeddings/LayerNorm/scale 768 vector >0
encoder/layer/0/attention/self/query/kernel 768x768 matrix 0>1
encoder/layer/0/attention/self/query/bias 768 vector >0
encoder/layer/0/attention/output/dense/kernel 768x768 matrix 0>1
encoder/layer/0/attention/output/LayerNorm/bias 768 vector >0
encoder/layer/0/intermediate/dense/kernel 768x3072 matrix 0>1
encoder/layer/0/output/dense/kernel 3072x768 matrix 0>1
pooler/dense/kernel 768x768 matrix 0>1
cls/predictions/transform/dense/kernel 768x768 matrix 0>1
cls/predictions/decoder/kernel 768x30522 head 0>1
cls/predictions/bias 30522 vector >0
"""
_LORA = """
layers/0/q_proj/kernel 512x512 matrix 0>1
layers/0/q_proj/lora/lora_a/value 512x8 matrix 0>1
layers/0/q_proj/lora/lora_b/value 8x512 matrix 0>1
layers/0/norm/scale 512 vector >0
"""
_PEFT = """
base_model/model/model/layers/0/self_attn/q_proj/lora_A/default/weight 8x4096 matrix 1>0
base_model/model/model/layers/0/self_attn/q_proj/lora_B/default/weight 4096x8 matrix 1>0
"""
_MAMBA = """
backbone/embedding/weight 50280x768 embedding 0>1
backbone/layers/0/mixer/in_proj/weight 3072x768 matrix 1>0
backbone/layers/0/mixer/conv1d/weight 1536x1x4 matrix 12>0
backbone/layers/0/mixer/conv1d/bias 1536 vector >0
backbone/layers/0/mixer/x_proj/weight 80x1536 matrix 1>0
backbone/layers/0/mixer/dt_proj/weight 1536x48 matrix 1>0
backbone/layers/0/mixer/dt_proj/bias 1536 vector >0
backbone/layers/0/mixer/A_log 1536x16 vector >1
backbone/layers/0/mixer/D 1536 vector >0
backbone/layers/0/mixer/out_proj/weight 768x1536 matrix 1>0
backbone/layers/0/norm/weight 768 vector >0
backbone/norm_f/weight 768 vector >0
"""
_HF_MIXTRAL = """
model/embed_tokens/weight 32000x4096 embedding 0>1
model/layers/0/block_sparse_moe/gate/weight 8x4096 matrix 1>0
model/layers/0/block_sparse_moe/experts/0/w1/weight 14336x4096 matrix 1>0
model/layers/0/block_sparse_moe/experts/0/w2/weight 4096x14336 matrix 1>0
model/layers/0/block_sparse_moe/experts/0/w3/weight 14336x4096 matrix 1>0
"""
_UNSCANNED_MOE = """
token_embedder/embedding 32000x4096 embedding 0>1
decoder/layers_0/norm/scale 4096 vector >0
decoder/layers_0/MoeBlock_0/gate/kernel 4096x8 matrix 0>1
decoder/layers_0/MoeBlock_0/wi_0 8x4096x14336 matrix 1>2
decoder/layers_0/MoeBlock_0/wo 8x14336x4096 matrix 1>2
"""


def _without_names(text: str) -> list[Row]:
  return [row._replace(names=None) for row in _rows(text)]


PROJECTS = (
  Project('NanoDO', 'google-deepmind/nanodo nanodo/model.py', _rows(_NANODO)),
  Project('Flax lm1b', 'google/flax examples/lm1b/models.py', _rows(_LM1B)),
  Project('Flax gemma', 'google/flax examples/gemma/modules.py', _rows(_GEMMA)),
  Project(
    'Flax imagenet', 'google/flax examples/imagenet/models.py', _rows(_IMAGENET)
  ),
  Project(
    'MaxText, boxed',
    'AI-Hypercomputer/maxtext MaxText/layers/llama2.py, attentions.py',
    _rows(_MAXTEXT),
  ),
  Project(
    'MaxText, unboxed',
    'AI-Hypercomputer/maxtext MaxText/layers/llama2.py, attentions.py',
    _without_names(_MAXTEXT),
    layout.MAXTEXT,
  ),
  Project(
    'MaxText MoE, boxed',
    'AI-Hypercomputer/maxtext MaxText/layers/moe.py',
    _rows(_MIXTRAL),
  ),
  Project(
    'MaxText MoE, layers apart',
    'AI-Hypercomputer/maxtext MaxText/layers/moe.py',
    _rows(_UNSCANNED_MOE),
  ),
  Project(
    'Levanter',
    'stanford-crfm/levanter src/levanter/models/llama.py',
    _rows(_LEVANTER),
    layout.HALIAX,
    'haliax',
  ),
  Project(
    'big_vision ViT',
    'google-research/big_vision big_vision/models/vit.py',
    _rows(_VIT),
  ),
  Project(
    'Equinox', 'from memory; equinox.nn', _rows(_EQUINOX), layout.EQUINOX
  ),
  Project('Haiku', 'from memory; haiku', _rows(_HAIKU), layout.HAIKU),
  Project(
    'Penzai',
    'penzai.models.transformer.variants.llamalike_common',
    _rows(_PENZAI),
    box='penzai',
  ),
  Project(
    'Hugging Face Llama',
    'from memory; huggingface/transformers models/llama/modeling_llama.py',
    _rows(_HF_LLAMA),
    layout.TORCH,
  ),
  Project(
    'Hugging Face GPT-2',
    'huggingface/transformers models/gpt2/modeling_gpt2.py',
    _rows(_HF_GPT2),
    layout.TORCH,
  ),
  Project(
    'Hugging Face Flax BERT',
    'from memory; huggingface/transformers models/bert/modeling_flax_bert.py',
    _rows(_HF_FLAX_BERT),
  ),
  Project('LoRA in NNX', 'from memory; flax.nnx.LoRA', _rows(_LORA)),
  Project(
    'LoRA in PEFT', 'from memory; huggingface/peft', _rows(_PEFT), layout.TORCH
  ),
  Project(
    'Mamba',
    'state-spaces/mamba mamba_ssm/modules/mamba_simple.py',
    _rows(_MAMBA),
    layout.TORCH,
  ),
  Project(
    'Hugging Face Mixtral',
    'from memory; huggingface/transformers models/mixtral/modeling_mixtral.py',
    _rows(_HF_MIXTRAL),
    layout.TORCH,
  ),
)
