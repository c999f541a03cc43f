"""Arrays in 8 bits: a code per number, and a float32 scale per block.

Blocks lie along the last axis, and codes have the shape of the array, so the
parameter's spec shards both. Within a block, codes are finer for small numbers:
code c means (c / 127)^2 times the block's largest number in a first moment,
which has signs, and (c / 255)^4 times it in a second moment.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import linalg

_SMALLEST_AXIS = 16
# Smallest code of a positive second moment. Its root is 9 times the value of
# code 1 of a first moment, if the blocks' largest numbers agree. With smaller
# codes, rounding noise of the first moment would be divided by almost nothing.
_SMALLEST_CODE = 6


class EightBits(NamedTuple):
  """A tree of arrays in 8 bits.

  Attributes:
    codes: int8 arrays in the shapes of the tree; leaves whose last axis is
      shorter than 16 are unchanged.
    scales: float32 [..., blocks]; `optax.MaskedNode` for unchanged leaves.
  """

  codes: Any
  scales: Any


def block_size(shape: tuple[int, ...]) -> int | None:
  """Numbers per block: a divisor of the last axis from 16 to 128.

  This is the largest divisor that also divides a 16th of the axis (else an 8th,
  and so on), so that no block is split over 16 devices. It is below 32 only if
  the axis has no divisor from 32 to 128. An axis without any is one block.
  None: the axis is shorter than 16 or another is empty, so codes would save
  nothing.
  """
  last = shape[-1] if shape else 0
  if last < _SMALLEST_AXIS or 0 in shape:
    return None
  for sizes in (range(128, 31, -1), range(31, 15, -1)):
    for parts in (16, 8, 4, 2, 1):
      share = last // math.gcd(last, parts)
      for size in sizes:
        if share % size == 0:
          return size
  return last


def encode(
  tree: Any, noise: Callable[[Any], Any] | None, *, signed: bool
) -> EightBits:
  """Rounds the arrays of a tree to 8 bits.

  Args:
    tree: a tree of arrays.
    noise: tree -> tree of numbers from 0 to 1 in the same shapes, for
      stochastic rounding. None: round to nearest.
    signed: whether the numbers have signs. If not, positive numbers stay
      positive.
  """

  def code(x, uniform):
    if block_size(x.shape) is None:
      return x, optax.MaskedNode()
    like = x, linalg.aligned_zeros(x, _scales_shape(x.shape), jnp.float32)
    function = _signed_codes if signed else _unsigned_codes
    return linalg.in_auto_axes(function, like)(x, uniform)

  half = jax.tree.map(lambda x: 0.5, tree)
  both = jax.tree.map(code, tree, half if noise is None else noise(tree))
  return EightBits(
    *(jax.tree.map(lambda _, pair, i=i: pair[i], tree, both) for i in (0, 1))
  )


def decode(stored: EightBits, *, signed: bool) -> Any:
  """Inverts `encode`, up to rounding; returns a tree of float32 arrays."""

  def number(codes, scales):
    if isinstance(scales, optax.MaskedNode):
      return codes
    function = _signed_numbers if signed else _unsigned_numbers
    return linalg.in_auto_axes(function, codes)(codes, scales)

  return jax.tree.map(number, stored.codes, stored.scales)


def kept_in(
  tx: optax.GradientTransformation,
  slots: tuple[str, ...],
  noise: Callable[[jax.Array, str], Callable[[Any], Any]],
) -> optax.GradientTransformationExtraArgs:
  """Stores the moments of `tx` in 8 bits.

  Args:
    tx: a transformation whose state is a NamedTuple with a field `count`.
    slots: the fields to store in 8 bits: 'mu' (with signs), 'nu' (without).
    noise: count and slot -> the argument `noise` of `encode`.

  Returns:
    A transformation whose state has `EightBits` in these fields.
  """
  inner = optax.with_extra_args_support(tx)

  def change(state, function):
    present = [n for n in slots if getattr(state, n, None) is not None]
    return state._replace(
      **{n: function(n, getattr(state, n)) for n in present}
    )

  def init_fn(params):
    return change(
      inner.init(params),
      lambda name, tree: encode(tree, None, signed=name == 'mu'),
    )

  def update_fn(updates, state, params=None, **extra_args):
    wide = change(
      state, lambda name, stored: decode(stored, signed=name == 'mu')
    )
    updates, wide = inner.update(updates, wide, params, **extra_args)
    return updates, change(
      wide,
      lambda name, tree: encode(
        tree, noise(wide.count, name), signed=name == 'mu'
      ),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _signed_codes(x, uniform):
  share, scales = _shares(jnp.abs(x))
  root = jnp.sqrt(share)
  codes = _rounded(share, root, jnp.square, 127, _like(share, uniform))
  return (jnp.sign(x) * codes.reshape(x.shape)).astype(jnp.int8), scales


def _signed_numbers(codes, scales):
  share = jnp.square(_blocks(codes.astype(jnp.float32)) / 127)
  return jnp.sign(codes) * (share * scales[..., None]).reshape(codes.shape)


def _unsigned_codes(x, uniform):
  share, scales = _shares(x)
  root = jnp.sqrt(jnp.sqrt(share))
  codes = _rounded(share, root, _fourth_power, 255, _like(share, uniform))
  codes = jnp.where(share > 0, jnp.maximum(codes, _SMALLEST_CODE), 0)
  codes = codes.reshape(x.shape)
  return (codes - 128).astype(jnp.int8), scales


def _unsigned_numbers(codes, scales):
  share = _fourth_power(_blocks(codes.astype(jnp.float32) + 128) / 255)
  return (share * scales[..., None]).reshape(codes.shape)


def _fourth_power(x):
  return jnp.square(jnp.square(x))


def _shares(x):
  """Non-negative numbers divided by their block's largest, and the largest."""
  blocks = _blocks(x.astype(jnp.float32))
  scales = jnp.max(blocks, axis=-1)
  return blocks / jnp.where(scales > 0, scales, 1.0)[..., None], scales


def _rounded(share, root, power, levels, uniform):
  """Codes, up or down with the right probabilities."""
  low = jnp.floor(root * levels)
  below, above = power(low / levels), power((low + 1) / levels)
  up = uniform < (share - below) / (above - below)
  return jnp.minimum(low + up, levels)


def _like(blocks, uniform):
  return uniform if jnp.ndim(uniform) == 0 else uniform.reshape(blocks.shape)


def _blocks(x):
  """[..., n] as [..., blocks, numbers]."""
  return x.reshape(*x.shape[:-1], -1, block_size(x.shape))


def _scales_shape(shape):
  return (*shape[:-1], shape[-1] // block_size(shape))
