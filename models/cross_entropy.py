"""Softmax cross-entropy over a large vocabulary, in chunks of the sequence.

Only the logits of one chunk are in memory at a time, in the forward and in the
backward pass. Chunks split the sequence axis, so a sharded batch stays sharded.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

# The chunk size makes the logits of one chunk about this many times as large as
# the hidden states of the whole batch, which depends on neither batch nor mesh.
# Fewer chunks need more memory. More chunks make the matrix products thin, and
# pass over the head's gradient (and reduce it on a data mesh) more often.
_LOGITS_PER_HIDDEN = 8


@dataclasses.dataclass(frozen=True)
class Head:
  """The static properties of the output layer.

  Attributes:
    tied: Whether the table is the embedding [V, D], not a kernel [D, V].
    chunk: Sequence positions per chunk; 0 chooses a value automatically.
    constrain: The hook that shards an activation by its axis names.
  """

  tied: bool
  chunk: int
  constrain: Callable[[jax.Array, tuple], jax.Array]

  def logits(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
    """Returns logits [B, S, V], computed in float32 or wider."""
    logits = jnp.einsum(
      'bsd,vd->bsv' if self.tied else 'bsd,dv->bsv',
      hidden,
      table.astype(hidden.dtype),
      preferred_element_type=_wide(hidden),
    )
    return self.constrain(logits, ('batch', 'sequence', 'vocab'))

  def gradients(
    self, hidden: jax.Array, table: jax.Array, dlogits: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of hidden states and kernel, in float32 or wider.

    The kernel is [D, V] also where the table is [V, D]: on CPU, XLA packs the
    operands of a product [V, D] anew for every chunk, which doubles its time.
    """
    einsum = functools.partial(jnp.einsum, preferred_element_type=dlogits.dtype)
    dlogits = dlogits.astype(hidden.dtype)
    table = table.astype(hidden.dtype)
    return (
      einsum('bsv,vd->bsd' if self.tied else 'bsv,dv->bsd', dlogits, table),
      einsum('bsd,bsv->dv', hidden, dlogits),
    )

  def positions(self, hidden: jax.Array, table: jax.Array) -> int:
    """Returns the number of sequence positions per chunk."""
    seq_len, width = hidden.shape[1:]
    if self.chunk:
      return min(self.chunk, seq_len)
    vocab_size = table.shape[0 if self.tied else 1]
    chunks = -(-vocab_size // (_LOGITS_PER_HIDDEN * width))
    return -(-seq_len // min(chunks, seq_len))


def token_losses(
  head: Head, hidden: jax.Array, table: jax.Array, targets: jax.Array
) -> jax.Array:
  """Returns the negative log-likelihood of every target.

  Args:
    head: The output layer.
    hidden: Final hidden states [B, S, D], in the compute type.
    table: The head's kernel [D, V], or the tied embedding [V, D].
    targets: Token ids [B, S].

  Returns:
    Nats [B, S], float32 or wider.
  """

  def body(_, chunk):
    return None, _nll(head.logits(chunk[0], table), chunk[1])[0]

  size = head.positions(hidden, table)
  parts = (_split(hidden, size), _split(targets, size))
  _, losses = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, parts)
  return _join(losses, targets.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_loss(
  head: Head,
  hidden: jax.Array,
  table: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
) -> jax.Array:
  """Returns the sum over all tokens of weight times loss.

  Under differentiation, each chunk's gradients are computed together with its
  loss, which saves a third product with the table.

  Args:
    head: The output layer.
    hidden: Final hidden states [B, S, D], in the compute type.
    table: The head's kernel [D, V], or the tied embedding [V, D].
    targets: Token ids [B, S].
    weights: Weights [B, S].

  Returns:
    Nats, a scalar, float32 or wider.
  """
  losses = token_losses(head, hidden, table, targets)
  return jnp.sum(losses * weights.astype(losses.dtype))


def _weighted_loss_fwd(head, hidden, table, targets, weights):
  size = head.positions(hidden, table)
  wide = _wide(hidden)

  def body(carry, chunk):
    total, dkernel = carry
    hidden, targets, weights = chunk
    logits = head.logits(hidden, table)
    losses, log_normalizer = _nll(logits, targets)
    probs = jnp.exp(logits - log_normalizer[..., None])
    dlogits = (probs - _is_target(logits, targets)) * weights[..., None]
    dhidden, dkernel_chunk = head.gradients(hidden, table, dlogits)
    total = total + jnp.sum(losses * weights)
    return (total, dkernel + dkernel_chunk), (
      dhidden.astype(hidden.dtype),
      losses,
    )

  weights_wide = weights.astype(wide)
  parts = tuple(_split(x, size) for x in (hidden, targets, weights_wide))
  kernel_shape = (hidden.shape[2], table.shape[0 if head.tied else 1])
  carry = (jnp.zeros([], wide), jnp.zeros(kernel_shape, wide))
  (total, dkernel), (dhidden, losses) = jax.lax.scan(body, carry, parts)
  # The barrier keeps XLA on CPU from a product [V, D] of bfloat16, which it
  # cannot run, if there is only one chunk.
  dtable = jax.lax.optimization_barrier(dkernel).T if head.tied else dkernel
  seq_len = targets.shape[1]
  # Pass the types of table and weights to the backward pass.
  like = (jnp.zeros([], table.dtype), jnp.zeros([], weights.dtype))
  return total, (_join(dhidden, seq_len), dtable, _join(losses, seq_len), like)


def _weighted_loss_bwd(head, residuals, g):
  del head
  dhidden, dtable, losses, (table_like, weights_like) = residuals
  return (
    (dhidden * g).astype(dhidden.dtype),
    (dtable * g).astype(table_like.dtype),
    None,
    (losses * g).astype(weights_like.dtype),
  )


weighted_loss.defvjp(_weighted_loss_fwd, _weighted_loss_bwd)


def _wide(x: jax.Array) -> jnp.dtype:
  """Returns the type to sum in."""
  return jnp.promote_types(x.dtype, jnp.float32)


def _is_target(logits, targets):
  # A comparison instead of a gather: it fuses, shards over the vocabulary, and
  # its gradient is not a scatter.
  ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2)
  return ids == targets[..., None]


def _nll(logits, targets):
  """Returns losses [B, S] and log-normalizers [B, S]."""
  log_normalizer = jax.nn.logsumexp(logits, axis=-1)
  at_target = jnp.where(_is_target(logits, targets), logits, 0)
  return log_normalizer - jnp.sum(at_target, axis=-1), log_normalizer


def _split(x, size):
  """Splits [B, S, ...] into [chunks, B, size, ...], zeros at the end."""
  chunks = -(-x.shape[1] // size)
  padding = [(0, 0)] * x.ndim
  padding[1] = (0, chunks * size - x.shape[1])
  x = jnp.pad(x, padding)
  return x.reshape(x.shape[0], chunks, size, *x.shape[2:]).swapaxes(0, 1)


def _join(x, seq_len):
  """Undoes `_split`."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :seq_len]
