# ruff: noqa: E501
"""Parameters of public models: names, shapes, and the right roles and axes.

Each project has one tree, with one of its layers where all are alike. The
shapes are those of a published size, or of a small one where none is. Each
source names the version. Trees of projects in JAX were made by their code and
compared with the rows; names in PyTorch were read in the source.
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
    preset: that a user of the library passes; None: none.
    box: 'flax' or 'haliax': what carries the names of axes.
  """

  name: str
  source: str
  rows: list[Row]
  preset: layout.Preset | None = None
  box: str = 'flax'


def rows(text: str) -> list[Row]:
  """Rows of 'path shape role in -> out [names]', axes as digits."""
  rows = []
  for line in text.strip().splitlines():
    path, shape, role, axes, *names = line.split()
    fan_in, fan_out = (
      tuple(int(d) for d in side if d.isdigit()) for side in axes.split('>')
    )
    sizes = tuple(int(n) for n in shape.split('x')) if shape != '-' else ()
    named: Any = None
    if names:
      named = tuple(n if n != 'None' else None for n in names[0].split(','))
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
decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/query/kernel 512x8x64 matrix 0>12 embed,kv
decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/key/kernel 512x8x64 matrix 0>12 embed,kv
decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/value/kernel 512x8x64 matrix 0>12 embed,kv
decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/out/kernel 8x64x512 matrix 01>2 embed,kv
decoder/encoderdecoderblock_0/MlpBlock_0/Dense_0/kernel 512x2048 matrix 0>1 embed,mlp
decoder/encoderdecoderblock_0/MlpBlock_0/Dense_0/bias 2048 vector >0 mlp
decoder/encoderdecoderblock_0/MlpBlock_0/Dense_1/kernel 2048x512 matrix 0>1 mlp,embed
decoder/encoderdecoderblock_0/MlpBlock_0/Dense_1/bias 512 vector >0 embed
decoder/encoderdecoder_norm/scale 512 vector >0 embed
decoder/logitdense/kernel 512x30000 head 0>1 embed,vocab
decoder/logitdense/bias 30000 vector >0 vocab
"""
_GEMMA = """
embedder/embedding/value 262144x1152 embedding 0>1
layers/0/pre_attention_norm/scale/value 1152 vector >0
layers/0/attn/q_einsum/kernel/value 4x1152x256 matrix 1>02
layers/0/attn/kv_einsum/kernel/value 2x1x1152x256 matrix 2>13
layers/0/attn/attn_vec_einsum/kernel/value 4x256x1152 matrix 01>2
layers/0/attn/_query_norm/scale/value 256 vector >0
layers/0/attn/_key_norm/scale/value 256 vector >0
layers/0/post_attention_norm/scale/value 1152 vector >0
layers/0/post_ffw_norm/scale/value 1152 vector >0
layers/0/mlp/gate_proj/kernel/value 1152x6912 matrix 0>1
layers/0/mlp/up_proj/kernel/value 1152x6912 matrix 0>1
layers/0/mlp/down_proj/kernel/value 6912x1152 matrix 0>1
final_norm/scale/value 1152 vector >0
"""
_GEMMA_7B = """
embedder/embedding/value 256128x3072 embedding 0>1
layers/0/pre_attention_norm/scale/value 3072 vector >0
layers/0/attn/qkv_einsum/kernel/value 3x16x3072x256 matrix 2>13
layers/0/attn/attn_vec_einsum/kernel/value 16x256x3072 matrix 01>2
layers/0/mlp/gate_proj/kernel/value 3072x24576 matrix 0>1
layers/0/mlp/down_proj/kernel/value 24576x3072 matrix 0>1
"""
_LINEN_GEMMA = """
embedder/input_embedding 262144x1152 embedding 0>1
embedder/mm_input_projection/w 96x1152 matrix 0>1
embedder/mm_soft_embedding_norm/scale 96 vector >0
layer_0/pre_attention_norm/scale 1152 vector >0
layer_0/attn/q_einsum/w 4x1152x256 matrix 1>02
layer_0/attn/kv_einsum/w 2x1x1152x256 matrix 2>13
layer_0/attn/attn_vec_einsum/w 4x256x1152 matrix 01>2
layer_0/attn/_query_norm/scale 256 vector >0
layer_0/mlp/linear 6912x1152 matrix 0>1
"""
_GATES_1 = 'layer_0/mlp/gating_einsum 2x1152x6912 matrix 1>2'
_GATES_3 = 'layer_0/mlp/gating_einsum 2x6912x1152 matrix 2>1'
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
token_embedder/embedding 32000x4096 embedding 0>1 vocab,embed_vocab
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
decoder/logits_dense/kernel 4096x32000 head 0>1 embed_vocab,vocab
"""
_MIXTRAL = """
token_embedder/embedding 32000x4096 embedding 0>1 vocab,embed_vocab
decoder/layers/pre_self_attention_layer_norm/scale 4096x24 vector >0 norm,layers
decoder/layers/MoeBlock_0/gate/kernel 4096x24x8 matrix 0>2 embed,layers,None
decoder/layers/MoeBlock_0/wi_0 8x24x4096x14336 matrix 2>3 exp,layers,embed_moe,mlp_moe
decoder/layers/MoeBlock_0/wi_1 8x24x4096x14336 matrix 2>3 exp,layers,embed_moe,mlp_moe
decoder/layers/MoeBlock_0/wo 8x24x14336x4096 matrix 2>3 exp,layers,mlp_moe,embed_moe
"""
_DEEPSEEK = """
decoder/dense_layers/self_attention/kv_norm/scale 512x3 vector >0 norm,dense_layers
decoder/dense_layers/self_attention/query/kernel 2048x3x16x192 matrix 0>23 embed,dense_layers,q_heads,kv
decoder/dense_layers/self_attention/wkv_a/kernel 2048x3x576 matrix 0>2 embed,dense_layers,kv_lora_up_proj
decoder/dense_layers/self_attention/wkv_b/kernel 512x3x16x256 matrix 0>23 kv_lora,dense_layers,kv_heads,kv_head_dim
decoder/dense_layers/self_attention/out/kernel 16x3x128x2048 matrix 02>3 heads,dense_layers,kv,embed
decoder/moe_layers/DeepSeekMoeBlock_0/MoeBlock_0/gate/kernel 2048x26x64 matrix 0>2 embed_moe,moe_layers,None
decoder/moe_layers/DeepSeekMoeBlock_0/MoeBlock_0/wi_0 64x26x2048x1408 matrix 2>3 exp,moe_layers,embed_moe,mlp_moe
decoder/moe_layers/DeepSeekMoeBlock_0/shared_experts/wo/kernel 2816x26x2048 matrix 0>2 mlp,moe_layers,embed
"""
_GPT3 = """
token_embedder/embedding 32000x4096 embedding 0>1
decoder/layers/pre_self_attention_norm/scale 4096x32 vector >0
decoder/layers/self_attention/query/kernel 4096x32x32x128 matrix 0>23
decoder/layers/self_attention/query/bias 32x32x128 vector >02
decoder/layers/self_attention/key/kernel 4096x32x32x128 matrix 0>23
decoder/layers/self_attention/key/bias 32x32x128 vector >02
decoder/layers/self_attention/out/kernel 32x32x128x4096 matrix 02>3
decoder/layers/self_attention/out/bias 4096x32 vector >0
decoder/layers/mlp/wi_0/kernel 4096x32x11008 matrix 0>2
decoder/layers/mlp/wi_0/bias 11008x32 vector >0
decoder/layers/mlp/wo/kernel 11008x32x4096 matrix 0>2
decoder/layers/mlp/wo/bias 4096x32 vector >0
"""
_LEVANTER = """
embeddings/token_embeddings/weight/array 32000x4096 embedding 0>1 vocab,embed
transformer/layers/stacked/input_layernorm/weight/array 32x4096 vector >1 layers,embed
transformer/layers/stacked/self_attn/q_proj/weight/array 32x8x4x128x4096 matrix 4>123 layers,kv_head,q_heads_per_group,head_size,embed
transformer/layers/stacked/self_attn/k_proj/weight/array 32x8x128x4096 matrix 3>12 layers,kv_head,head_size,embed
transformer/layers/stacked/self_attn/v_proj/weight/array 32x8x128x4096 matrix 3>12 layers,kv_head,head_size,embed
transformer/layers/stacked/self_attn/o_proj/weight/array 32x4096x32x128 matrix 23>1 layers,embed,heads,head_size
transformer/layers/stacked/mlp/gate_proj/weight/array 32x11008x4096 matrix 2>1 layers,mlp,embed
transformer/layers/stacked/mlp/up_proj/weight/array 32x11008x4096 matrix 2>1 layers,mlp,embed
transformer/layers/stacked/mlp/down_proj/weight/array 32x4096x11008 matrix 2>1 layers,embed,mlp
transformer/norm/weight/array 4096 vector >0 embed
lm_head/weight/array 32000x4096 head 1>0 vocab,embed
"""
_LEVANTER_MIXTRAL = """
transformer/layers/stacked/block_sparse_moe/gate/weight/array 32x8x4096 matrix 2>1 layers,experts,embed
transformer/layers/stacked/block_sparse_moe/experts/w1/weight/array 32x8x4096x14336 matrix 2>3 layers,experts,embed,mlp
transformer/layers/stacked/block_sparse_moe/experts/w2/weight/array 32x8x14336x4096 matrix 2>3 layers,experts,mlp,embed
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
gru/weight_ih 192x32 matrix 1>0
gru/weight_hh 192x64 matrix 1>0
gru/bias 192 vector >0
gru/bias_n 64 vector >0
lm_head/weight 1000x64 head 1>0
"""
_HAIKU = """
language_model/positional_embeddings 128x64 embedding 0>1
language_model/embed/embeddings 1000x64 embedding 0>1
language_model/linear/w 64x1000 head 0>1
language_model/linear/b 1000 vector >0
transformer/layer_norm/scale 64 vector >0
transformer/layer_norm/offset 64 vector >0
transformer/multi_head_attention/query/w 64x96 matrix 0>1
transformer/multi_head_attention/query/b 96 vector >0
transformer/multi_head_attention/key/w 64x96 matrix 0>1
transformer/multi_head_attention/value/w 64x96 matrix 0>1
transformer/multi_head_attention/linear/w 96x64 matrix 0>1
transformer/linear/w 64x256 matrix 0>1
transformer/linear_1/w 256x64 matrix 0>1
"""
_HAIKU_IMAGES = """
conv2_d/w 3x3x3x32 matrix 012>3
conv2_d/b 32 vector >0
conv2_d_transpose/w 3x3x16x32 matrix 013>2
conv2_d_transpose/b 16 vector >0
depthwise_conv2_d/w 3x3x1x32 matrix 012>3
batch_norm/scale 1x1x1x32 vector >3
lstm/linear/w 40x32 matrix 0>1
res_net18/~/block_group_0/~/block_0/~/conv_0/w 3x3x64x64 matrix 012>3
res_net18/~/logits/w 512x10 head 0>1
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
transformer/h/0/attn/c_proj/bias 768 vector >0
transformer/h/0/mlp/c_fc/weight 768x3072 matrix 0>1
transformer/h/0/mlp/c_fc/bias 3072 vector >0
transformer/h/0/mlp/c_proj/weight 3072x768 matrix 0>1
transformer/h/0/mlp/c_proj/bias 768 vector >0
transformer/ln_f/weight 768 vector >0
"""
_HF_FLAX_BERT = """
bert/embeddings/word_embeddings/embedding 30522x768 embedding 0>1
bert/embeddings/position_embeddings/embedding 512x768 embedding 0>1
bert/embeddings/token_type_embeddings/embedding 2x768 embedding 0>1
bert/embeddings/LayerNorm/scale 768 vector >0
bert/encoder/layer/0/attention/self/query/kernel 768x768 matrix 0>1
bert/encoder/layer/0/attention/self/query/bias 768 vector >0
bert/encoder/layer/0/attention/output/dense/kernel 768x768 matrix 0>1
bert/encoder/layer/0/attention/output/LayerNorm/bias 768 vector >0
bert/encoder/layer/0/intermediate/dense/kernel 768x3072 matrix 0>1
bert/encoder/layer/0/output/dense/kernel 3072x768 matrix 0>1
bert/pooler/dense/kernel 768x768 matrix 0>1
cls/predictions/transform/dense/kernel 768x768 matrix 0>1
cls/predictions/decoder/kernel 768x30522 head 0>1
cls/predictions/bias 30522 vector >0
"""
_HF_FLAX_GPT2 = """
transformer/wte/embedding 50257x768 embedding 0>1
transformer/wpe/embedding 1024x768 embedding 0>1
transformer/h/0/ln_1/scale 768 vector >0
transformer/h/0/attn/c_attn/kernel 2304x768 matrix 1>0
transformer/h/0/attn/c_attn/bias 2304 vector >0
transformer/h/0/attn/c_proj/kernel 768x768 matrix 1>0
transformer/h/0/attn/c_proj/bias 768 vector >0
transformer/h/0/mlp/c_fc/kernel 3072x768 matrix 1>0
transformer/h/0/mlp/c_fc/bias 3072 vector >0
transformer/h/0/mlp/c_proj/kernel 768x3072 matrix 1>0
transformer/h/0/mlp/c_proj/bias 768 vector >0
"""
_HF_FLAX_CLIP = """
text_model/embeddings/token_embedding/embedding 49408x512 embedding 0>1
text_model/embeddings/position_embedding/embedding 77x512 embedding 0>1
text_model/encoder/layers/0/self_attn/q_proj/kernel 512x512 matrix 0>1
text_model/final_layer_norm/scale 512 vector >0
text_projection/kernel 512x512 matrix 0>1
vision_model/embeddings/class_embedding 768 vector >0
vision_model/embeddings/patch_embedding/kernel 32x32x3x768 matrix 012>3
vision_model/embeddings/position_embedding/embedding 50x768 embedding 0>1
vision_model/encoder/layers/0/mlp/fc1/kernel 768x3072 matrix 0>1
visual_projection/kernel 768x512 matrix 0>1
logit_scale - vector >
"""
_HF_FLAX_VIT = """
vit/embeddings/cls_token 1x1x768 vector >2
vit/embeddings/patch_embeddings/projection/kernel 16x16x3x768 matrix 012>3
vit/embeddings/position_embeddings 1x197x768 embedding 1>2
vit/encoder/layer/0/attention/attention/query/kernel 768x768 matrix 0>1
vit/encoder/layer/0/attention/output/dense/kernel 768x768 matrix 0>1
vit/encoder/layer/0/output/dense/kernel 3072x768 matrix 0>1
classifier/kernel 768x2 head 0>1
"""
_T5X = """
token_embedder/embedding 32128x512 embedding 0>1
encoder/relpos_bias/rel_embedding 6x32 embedding 1>0
encoder/layers_0/attention/query/kernel 512x384 matrix 0>1
encoder/layers_0/attention/out/kernel 384x512 matrix 0>1
encoder/layers_0/mlp/wi_0/kernel 512x1024 matrix 0>1
encoder/layers_0/mlp/wo/kernel 1024x512 matrix 0>1
encoder/layers_0/pre_attention_layer_norm/scale 512 vector >0
encoder/encoder_norm/scale 512 vector >0
decoder/layers_0/encoder_decoder_attention/key/kernel 512x384 matrix 0>1
decoder/logits_dense/kernel 512x32128 head 0>1
"""
_EASYLM = """
transformer/wte/embedding 32000x4096 embedding 0>1
transformer/h/0/attention/wq/kernel 4096x4096 matrix 0>1
transformer/h/0/attention/wo/kernel 4096x4096 matrix 0>1
transformer/h/0/feed_forward/w1/kernel 4096x11008 matrix 0>1
transformer/h/0/feed_forward/w2/kernel 11008x4096 matrix 0>1
transformer/h/0/attention_norm/kernel 4096 vector >0
transformer/ln_f/kernel 4096 vector >0
lm_head/kernel 4096x32000 head 0>1
"""
_QWEN3 = """
embedder/embedding/value 151936x1024 embedding 0>1
layers/0/attn/q_proj/kernel/value 1024x16x128 matrix 0>12
layers/0/attn/k_proj/kernel/value 1024x8x128 matrix 0>12
layers/0/attn/o_proj/kernel/value 16x128x1024 matrix 01>2
layers/0/attn/q_norm/scale/value 128 vector >0
layers/0/mlp/gate_proj/kernel/value 1024x3072 matrix 0>1
layers/0/mlp/down_proj/kernel/value 3072x1024 matrix 0>1
layers/0/input_layernorm/scale/value 1024 vector >0
lm_head/kernel/value 1024x151936 head 0>1
"""
_WHISPER = """
encoder/conv1/kernel/value 3x80x384 matrix 01>2
encoder/conv1/bias/value 384 vector >0
encoder/embed_positions/embedding/value 1500x384 embedding 0>1
encoder/layers/0/self_attn/query/kernel/value 384x6x64 matrix 0>12
encoder/layers/0/self_attn/query/bias/value 6x64 vector >01
encoder/layers/0/self_attn/out/kernel/value 6x64x384 matrix 01>2
encoder/layers/0/fc1/kernel/value 384x1536 matrix 0>1
decoder/embed_tokens/embedding/value 51865x384 embedding 0>1
decoder/layers/0/encoder_attn/value/kernel/value 384x6x64 matrix 0>12
decoder/layers/0/encoder_attn_layer_norm/scale/value 384 vector >0
"""
_UMT5 = """
encoder/embed_tokens/embedding/value 250112x512 embedding 0>1
encoder/block/0/layer/0/SelfAttention/q/kernel/value 512x384 matrix 0>1
encoder/block/0/layer/0/SelfAttention/o/kernel/value 384x512 matrix 0>1
encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding/value 32x6 embedding 0>1
encoder/block/0/layer/1/DenseReluDense/wi_0/kernel/value 512x1024 matrix 0>1
encoder/final_layer_norm/scale/value 512 vector >0
lm_head/kernel/value 512x250112 head 0>1
"""
_UNET = """
inc/conv1/kernel/value 3x3x3x64 matrix 012>3
inc/conv1/bias/value 64 vector >0
down1/conv/conv2/kernel/value 3x3x128x128 matrix 012>3
up1/up/kernel/value 2x2x1024x512 matrix 012>3
up1/conv/conv1/kernel/value 3x3x1024x512 matrix 012>3
outc/conv/kernel/value 1x1x64x1 matrix 012>3
"""
_DIFFUSERS = """
conv_in/kernel 3x3x4x320 matrix 012>3
time_embedding/linear_1/kernel 320x1280 matrix 0>1
down_blocks_0/resnets_0/norm1/scale 320 vector >0
down_blocks_0/resnets_0/conv1/kernel 3x3x320x320 matrix 012>3
down_blocks_0/resnets_0/time_emb_proj/kernel 1280x320 matrix 0>1
down_blocks_0/attentions_0/proj_in/kernel 1x1x320x320 matrix 012>3
down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel 320x320 matrix 0>1
down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_out_0/kernel 320x320 matrix 0>1
down_blocks_0/attentions_0/transformer_blocks_0/ff/net_0/proj/kernel 320x2560 matrix 0>1
down_blocks_1/resnets_0/conv_shortcut/kernel 1x1x320x640 matrix 012>3
conv_out/kernel 3x3x320x4 matrix 012>3
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
  return [row._replace(names=None) for row in rows(text)]


_NANODO_SOURCE = 'google-deepmind/nanodo@10aefde nanodo/model.py'
_FLAX_SOURCE = 'google/flax@18f8f311 examples/'
_GEMMA_SOURCE = 'google-deepmind/gemma@7691fd4 gemma/gm/nn/_modules.py'
_MAXTEXT_SOURCE = 'AI-Hypercomputer/maxtext@e591f30 src/maxtext/models/'
_LEVANTER_SOURCE = 'stanford-crfm/levanter@9263f81 src/levanter/models/'
_BONSAI_SOURCE = 'jax-ml/bonsai@3628425 bonsai/models/'
_HF_SOURCE = 'huggingface/transformers 4.57.6 models/'

PROJECTS = (
  Project('NanoDO', _NANODO_SOURCE, rows(_NANODO)),
  Project('Flax lm1b', _FLAX_SOURCE + 'lm1b/models.py', rows(_LM1B)),
  Project('Flax gemma', _FLAX_SOURCE + 'gemma/transformer.py', rows(_GEMMA)),
  Project(
    'Flax gemma, 7B', _FLAX_SOURCE + 'gemma/transformer.py', rows(_GEMMA_7B)
  ),
  Project(
    'Flax imagenet', _FLAX_SOURCE + 'imagenet/models.py', rows(_IMAGENET)
  ),
  Project('Gemma 1', _GEMMA_SOURCE, rows(_LINEN_GEMMA + _GATES_1)),
  Project('Gemma 3', _GEMMA_SOURCE, rows(_LINEN_GEMMA + _GATES_3)),
  Project('MaxText, boxed', _MAXTEXT_SOURCE + 'llama2.py', rows(_MAXTEXT)),
  Project(
    'MaxText, unboxed',
    _MAXTEXT_SOURCE + 'llama2.py',
    _without_names(_MAXTEXT),
    layout.MAXTEXT,
  ),
  Project('MaxText MoE, boxed', _MAXTEXT_SOURCE + 'mixtral.py', rows(_MIXTRAL)),
  Project(
    'MaxText MoE, layers apart',
    _MAXTEXT_SOURCE + 'mixtral.py',
    rows(_UNSCANNED_MOE),
  ),
  Project(
    'MaxText DeepSeek, boxed', _MAXTEXT_SOURCE + 'deepseek.py', rows(_DEEPSEEK)
  ),
  Project(
    'MaxText GPT-3, unboxed',
    _MAXTEXT_SOURCE + 'gpt3.py',
    rows(_GPT3),
    layout.MAXTEXT,
  ),
  Project(
    'Levanter',
    _LEVANTER_SOURCE + 'llama.py, haliax 1.4.dev453',
    rows(_LEVANTER),
    box='haliax',
  ),
  Project(
    'Levanter Mixtral',
    _LEVANTER_SOURCE + 'mixtral.py, haliax 1.4.dev453',
    rows(_LEVANTER_MIXTRAL),
    box='haliax',
  ),
  Project(
    'big_vision ViT',
    'google-research/big_vision@0127fb6 big_vision/models/vit.py',
    rows(_VIT),
  ),
  Project('Equinox', 'equinox 0.13.8 nn', rows(_EQUINOX), layout.EQUINOX),
  Project(
    'Haiku',
    'google-deepmind/dm-haiku@f4d858a examples/transformer/model.py',
    rows(_HAIKU),
    layout.HAIKU,
  ),
  Project(
    'Haiku, images',
    'dm-haiku 0.0.17 conv, depthwise_conv, recurrent, nets.resnet',
    rows(_HAIKU_IMAGES),
    layout.HAIKU,
  ),
  Project(
    'Penzai',
    'penzai 0.2.5 models.transformer.variants.llamalike_common',
    rows(_PENZAI),
    box='penzai',
  ),
  Project('T5X', 'google-research/t5x@cc342d4 examples/t5', rows(_T5X)),
  Project(
    'EasyLM',
    'young-geng/EasyLM@fe5b2c3 EasyLM/models/llama/llama_model.py',
    rows(_EASYLM),
  ),
  Project('bonsai Qwen3', _BONSAI_SOURCE + 'qwen3', rows(_QWEN3)),
  Project('bonsai Whisper', _BONSAI_SOURCE + 'whisper', rows(_WHISPER)),
  Project('bonsai UMT5', _BONSAI_SOURCE + 'umt5', rows(_UMT5)),
  Project('bonsai U-Net', _BONSAI_SOURCE + 'unet', rows(_UNET)),
  Project(
    'Diffusers U-Net',
    'huggingface/diffusers 0.30.3 models/unets/unet_2d_condition_flax.py',
    rows(_DIFFUSERS),
  ),
  Project(
    'Hugging Face Llama',
    _HF_SOURCE + 'llama/modeling_llama.py',
    rows(_HF_LLAMA),
    layout.TORCH,
  ),
  Project(
    'Hugging Face GPT-2',
    _HF_SOURCE + 'gpt2/modeling_gpt2.py',
    rows(_HF_GPT2),
    layout.TORCH,
  ),
  Project(
    'Hugging Face Flax GPT-2',
    _HF_SOURCE + 'gpt2/modeling_flax_gpt2.py',
    rows(_HF_FLAX_GPT2),
  ),
  Project(
    'Hugging Face Flax BERT',
    _HF_SOURCE + 'bert/modeling_flax_bert.py',
    rows(_HF_FLAX_BERT),
  ),
  Project(
    'Hugging Face Flax CLIP',
    _HF_SOURCE + 'clip/modeling_flax_clip.py',
    rows(_HF_FLAX_CLIP),
  ),
  Project(
    'Hugging Face Flax ViT',
    _HF_SOURCE + 'vit/modeling_flax_vit.py',
    rows(_HF_FLAX_VIT),
  ),
  Project('LoRA in NNX', 'flax 0.12.8 nnx.LoRALinear', rows(_LORA)),
  Project(
    'LoRA in PEFT',
    'huggingface/peft@0033694 src/peft/tuners/lora/layer.py',
    rows(_PEFT),
    layout.TORCH,
  ),
  Project(
    'Mamba',
    'state-spaces/mamba@000b310 mamba_ssm/modules/mamba_simple.py',
    rows(_MAMBA),
    layout.TORCH,
  ),
  Project(
    'Hugging Face Mixtral',
    _HF_SOURCE + 'mixtral/modeling_mixtral.py',
    rows(_HF_MIXTRAL),
    layout.TORCH,
  ),
)
