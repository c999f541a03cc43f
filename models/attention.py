"""Causal grouped-query attention.

Shape suffixes: B batch, L queries (sequence), M keys (sequence), H query
heads, K key and value heads, G query heads per key head, D head size.
"""

import jax
import jax.numpy as jnp

# Queries per chunk.
CHUNK = 128

# Queries and keys per block of a splash kernel: the first that divides S.
_BLOCKS = (512, 384, 256, 128)

# A single kernel for all gradients writes the gradients of the queries once per
# block of keys, rounded each time. For few blocks, this is cheaper than a
# second kernel.
_FUSED_BLOCKS = 4


def dot_product(
  q_BLHD: jax.Array, k_BMKD: jax.Array, v_BMKD: jax.Array
) -> jax.Array:
  """Causal attention by `jax.nn.dot_product_attention`, for accelerators."""
  if q_BLHD.dtype == jnp.float64:
    # JAX computes the softmax in float32 for all input types.
    return chunked(q_BLHD, k_BMKD, v_BMKD)
  return jax.nn.dot_product_attention(q_BLHD, k_BMKD, v_BMKD, is_causal=True)


def cudnn(q_BLHD: jax.Array, k_BMKD: jax.Array, v_BMKD: jax.Array) -> jax.Array:
  """Causal attention by cuDNN, for NVIDIA GPUs.

  Args:
    q_BLHD: Queries, in bfloat16 or float16.
    k_BMKD: Keys, sharded like the queries.
    v_BMKD: Values.

  Returns:
    The attended values, [B, L, H, D].

  Raises:
    RuntimeError: cuDNN is not available.
    NotImplementedError: The inputs have another type.
  """
  return jax.nn.dot_product_attention(
    q_BLHD, k_BMKD, v_BMKD, is_causal=True, implementation='cudnn'
  )


def splash(
  q_BLHD: jax.Array,
  k_BMKD: jax.Array,
  v_BMKD: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Causal attention by JAX's splash kernels, for TPUs.

  The scores never leave the chip, and blocks above the diagonal are skipped.
  Inputs that the kernels do not support (float64, sequences whose length is not
  a multiple of 128) use `dot_product`.

  Args:
    q_BLHD: Queries, on one device.
    k_BMKD: Keys.
    v_BMKD: Values.
    interpret: Whether to interpret the kernels on CPU, for tests.

  Returns:
    The attended values, [B, L, H, D].
  """
  # Imported here because the import is slow and rarely needed.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  _, L, H, D = q_BLHD.shape
  block = next((size for size in _BLOCKS if L % size == 0), None)
  if block is None or q_BLHD.dtype == jnp.float64:
    return dot_product(q_BLHD, k_BMKD, v_BMKD)
  fused = L // block <= _FUSED_BLOCKS
  attend = kernels.make_splash_mha(
    masks.MultiHeadMask([masks.CausalMask((L, L))] * H),
    block_sizes=kernels.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=None if fused else block,
      block_kv_dq=None if fused else block,
      use_fused_bwd_kernel=fused,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  heads_first = (x.swapaxes(1, 2) for x in (q_BLHD * D**-0.5, k_BMKD, v_BMKD))
  return jax.vmap(attend)(*heads_first).swapaxes(1, 2)


def chunked(
  q_BLHD: jax.Array, k_BMKD: jax.Array, v_BMKD: jax.Array, chunk: int = CHUNK
) -> jax.Array:
  """Causal attention in chunks of queries, each against the keys up to it.

  This form is for CPUs. Batch and heads are the leading axes, so each product
  is one batched matrix product, and most scores above the diagonal are never
  computed. The queries that share a key head form one matrix, so keys are not
  repeated.

  Args:
    q_BLHD: Queries.
    k_BMKD: Keys.
    v_BMKD: Values.
    chunk: Queries per chunk; it does not have to divide the sequence length.

  Returns:
    The attended values, [B, L, H, D].
  """
  B, L, H, D = q_BLHD.shape
  K = k_BMKD.shape[2]
  q_BKGLD = q_BLHD.reshape(B, L, K, H // K, D).transpose(0, 2, 3, 1, 4)
  k_BKMD = k_BMKD.transpose(0, 2, 1, 3)
  v_BKMD = v_BMKD.transpose(0, 2, 1, 3)
  q_BKGLD = q_BKGLD * D**-0.5
  chunks = [
    _attend(
      q_BKGLD[:, :, :, start : start + chunk],
      k_BKMD[:, :, : start + chunk],
      v_BKMD[:, :, : start + chunk],
    )
    for start in range(0, L, chunk)
  ]
  out_BKGLD = jnp.concatenate(chunks, axis=3)
  return out_BKGLD.transpose(0, 3, 1, 2, 4).reshape(B, L, H, D)


def _attend(q_BKGLD, k_BKMD, v_BKMD):
  """Attends with the last L of M positions to all M, causally."""
  B, K, G, L, D = q_BKGLD.shape
  M = k_BKMD.shape[2]
  score_dtype = jnp.promote_types(q_BKGLD.dtype, jnp.float32)
  scores = jnp.einsum(
    'bknd,bkmd->bknm',
    q_BKGLD.reshape(B, K, G * L, D),
    k_BKMD,
    preferred_element_type=score_dtype,
  ).reshape(B, K, G, L, M)
  causal = jnp.tri(L, M, M - L, dtype=bool)[None, None, None]
  scores = jnp.where(causal, scores, jnp.finfo(score_dtype).min)
  probs = jax.nn.softmax(scores, axis=-1).astype(v_BKMD.dtype)
  out = jnp.einsum('bknm,bkmd->bknd', probs.reshape(B, K, G * L, M), v_BKMD)
  return out.reshape(B, K, G, L, D)
