"""The configuration of a Llama, and its layers as Flax NNX modules.

Parameters enter and leave as nested dicts: see `init` and `bind`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import attention as attention_lib
from models import rope as rope_lib

Params = dict[str, Any]
Constrain = Callable[[jax.Array, tuple], jax.Array]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

RESIDUAL = ('batch', 'sequence', 'embed')
_ATTENTION = ('chunked', 'dot_product', 'cudnn', 'splash')
_REMAT = ('none', 'dots', 'full')
_PLATFORMS = ('cpu', 'gpu', 'tpu')


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """The shape of the model, and how it is computed.

  Attributes:
    vocab_size: Number of tokens, V.
    hidden_size: Width of the residual stream, D.
    intermediate_size: Width of the feed-forward block.
    num_layers: Number of layers, L.
    num_heads: Number of query heads; it divides hidden_size.
    num_kv_heads: Number of key and value heads, a divisor of num_heads; None
      means num_heads.
    tie_embeddings: Whether the embedding is also the output layer.
    rope_theta: Base of the rotary wavelengths.
    rope_scaling: Scaling of the rotary frequencies for long texts, or None.
    rms_norm_eps: Added to the mean square in RMSNorm.
    init_std: Standard deviation of every matrix at initialization.
    compute_dtype: Type of activations and of the products' inputs.
    param_dtype: Type of the parameters.
    attention: Name of a function in `models.attention`: 'chunked' for CPUs,
      'dot_product' for accelerators, 'cudnn' for NVIDIA GPUs, 'splash' for
      TPUs. Or a function with the same signature.
    remat: What the backward pass recomputes: 'none'; 'dots': everything except
      matrix products; 'full': everything except each layer's input.
    platform: 'cpu', 'gpu' or 'tpu', what the model will run on; it need not be
      where the model is compiled.
    loss_chunk: Sequence positions whose logits are in memory at once; 0 chooses
      a value automatically.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int | None = None
  tie_embeddings: bool = False
  rope_theta: float = 10000.0
  rope_scaling: rope_lib.RopeScaling | None = None
  rms_norm_eps: float = 1e-5
  init_std: float = 0.02
  compute_dtype: str = 'float32'
  param_dtype: str = 'float32'
  attention: str | Attend = 'chunked'
  remat: str = 'none'
  platform: str = 'cpu'
  loss_chunk: int = 0

  def __post_init__(self):
    if self.hidden_size % (2 * self.num_heads):
      raise ValueError(
        f'hidden_size={self.hidden_size} does not split into '
        f'num_heads={self.num_heads} heads of even size: change one'
      )
    if self.num_heads % self.kv_heads:
      raise ValueError(
        f'num_kv_heads={self.kv_heads} does not divide '
        f'num_heads={self.num_heads}: change one'
      )
    for name, known in (
      ('attention', _ATTENTION),
      ('remat', _REMAT),
      ('platform', _PLATFORMS),
    ):
      if isinstance(value := getattr(self, name), str) and value not in known:
        raise ValueError(
          f'{name}={value!r} is unknown: choose one of {", ".join(known)}'
        )

  @property
  def kv_heads(self) -> int:
    """Number of key and value heads, never None."""
    return self.num_kv_heads or self.num_heads

  @property
  def head_dim(self) -> int:
    """Size of a head."""
    return self.hidden_size // self.num_heads

  @property
  def wide_dtype(self) -> jnp.dtype:
    """Type of norms, angles, softmax and logits: float32 or wider."""
    return jnp.promote_types(self.compute_dtype, jnp.float32)


class RMSNorm(nnx.Module):
  """Normalizes to root mean square 1, then scales by a learned vector."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
    del rngs
    self.config = config
    self.scale = nnx.Param(jnp.ones([config.hidden_size], config.param_dtype))

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(self.config.wide_dtype)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(mean_square + self.config.rms_norm_eps)
    scale = self.scale[None, None].astype(x.dtype)
    return scale * wide.astype(x.dtype)


class Attention(nnx.Module):
  """Causal self-attention with rotary positions and grouped queries."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
    self.config = config
    kv_size = config.kv_heads * config.head_dim
    self.q_proj = _linear(config, config.hidden_size, config.hidden_size, rngs)
    self.k_proj = _linear(config, config.hidden_size, kv_size, rngs)
    self.v_proj = _linear(config, config.hidden_size, kv_size, rngs)
    self.o_proj = _linear(config, config.hidden_size, config.hidden_size, rngs)

  def __call__(self, x, rope, constrain: Constrain) -> jax.Array:
    def heads(projection, name):
      split = (*x.shape[:2], -1, self.config.head_dim)
      out = projection(x).reshape(split)
      return constrain(out, ('batch', 'sequence', name, None))

    q_BLHD = rope_lib.rotate(heads(self.q_proj, 'heads'), rope)
    k_BLKD = rope_lib.rotate(heads(self.k_proj, 'kv_heads'), rope)
    v_BLKD = heads(self.v_proj, 'kv_heads')
    attend = self.config.attention
    if isinstance(attend, str):
      attend = getattr(attention_lib, attend)
    out_BLHD = attend(q_BLHD, k_BLKD, v_BLKD)
    out_BLHD = constrain(out_BLHD, ('batch', 'sequence', 'heads', None))
    return self.o_proj(out_BLHD.reshape(x.shape))


class MLP(nnx.Module):
  """SwiGLU feed-forward block."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
    width, hidden = config.hidden_size, config.intermediate_size
    self.gate_proj = _linear(config, width, hidden, rngs)
    self.up_proj = _linear(config, width, hidden, rngs)
    self.down_proj = _linear(config, hidden, width, rngs)

  def __call__(self, x: jax.Array, constrain: Constrain) -> jax.Array:
    hidden = jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(constrain(hidden, ('batch', 'sequence', 'mlp')))


class Block(nnx.Module):
  """One layer: attention and feed-forward block, each added to its input."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config, rngs=rngs)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config, rngs=rngs)
    self.mlp = MLP(config, rngs=rngs)

  def __call__(self, x, rope, constrain: Constrain) -> jax.Array:
    x = x + self.attention(self.attention_norm(x), rope, constrain)
    x = constrain(x, RESIDUAL)
    x = x + self.mlp(self.mlp_norm(x), constrain)
    return constrain(x, RESIDUAL)


def init(
  kind: type[RMSNorm] | type[Block], key: jax.Array, config: LlamaConfig
) -> Params:
  """Returns fresh parameters of one module, as a nested dict."""
  module = kind(config, rngs=nnx.Rngs(key))
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def bind(
  kind: type[RMSNorm] | type[Block], params: Params, config: LlamaConfig
) -> nnx.Module:
  """Returns a module with the given parameters."""
  return nnx.merge(_graphdef(kind, config), params)


@functools.lru_cache(maxsize=64)
def _graphdef(kind, config):
  """Returns the structure of a module without its parameters."""
  module = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
  return nnx.split(module)[0]


def _linear(config, size_in, size_out, rngs):
  return nnx.Linear(
    size_in,
    size_out,
    use_bias=False,
    dtype=config.compute_dtype,
    param_dtype=config.param_dtype,
    kernel_init=jax.nn.initializers.normal(config.init_std),
    # On accelerators JAX's own gradient is as fast.
    dot_general=_project_by
    if config.platform == 'cpu'
    else jax.lax.dot_general,
    rngs=rngs,
  )


def _project_by(x, kernel, dimension_numbers, **kwargs):
  """`_project` with the signature that nnx.Linear expects."""
  del dimension_numbers, kwargs
  return _project(x, kernel)


@jax.custom_vjp
def _project(x, kernel):
  """Returns activations [B, S, fan_in] times a kernel [fan_in, fan_out].

  The gradients are those of JAX, except for the order of operands in the
  kernel's gradient. With JAX's order, XLA on CPU writes a transposed copy of
  the output's gradient and of the elementwise operations that produced it.
  Forward mode (`jax.jvp`) is not supported.
  """
  return jnp.einsum('bsd,df->bsf', x, kernel)


def _project_fwd(x, kernel):
  # Not a call of `_project`, which would hide the product from remat's policy.
  return jnp.einsum('bsd,df->bsf', x, kernel), (x, kernel)


def _project_bwd(residuals, g):
  x, kernel = residuals
  return (
    jnp.einsum('bsf,df->bsd', g, kernel),
    jnp.einsum('bsd,bsf->df', x, g),
  )


_project.defvjp(_project_fwd, _project_bwd)
