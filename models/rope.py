"""Rotary positions, with the frequency scaling of Llama 3.1."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Lowers the frequencies for texts longer than those of pre-training.

  With `low_freq_factor` and `high_freq_factor` this is the rule of Llama 3.1:
  wavelengths above original_positions / low_freq_factor are multiplied by
  `factor`, those below original_positions / high_freq_factor stay, and between
  them the frequency is interpolated linearly in the number of turns within
  original_positions. Without the two, all wavelengths are multiplied
  (position interpolation, called 'linear' by Hugging Face).

  Attributes:
    factor: Factor of long wavelengths, at least 1.
    low_freq_factor: Number of turns below which a wavelength counts as long;
      None: all do.
    high_freq_factor: Number of turns above which a wavelength does not change.
    original_positions: Context length of pre-training.
  """

  factor: float
  low_freq_factor: float | None = None
  high_freq_factor: float | None = None
  original_positions: int | None = None

  def __post_init__(self):
    rest = (
      self.low_freq_factor,
      self.high_freq_factor,
      self.original_positions,
    )
    if any(x is None for x in rest) != all(x is None for x in rest):
      raise ValueError(
        'low_freq_factor, high_freq_factor and original_positions belong '
        f'together, got {rest}: give all three, or none'
      )
    if self.factor < 1:
      raise ValueError(f'factor is {self.factor}: give at least 1')
    low, high = self.low_freq_factor, self.high_freq_factor
    if low is not None and high is not None and not 0 < low < high:
      raise ValueError(
        f'low_freq_factor={low} and high_freq_factor={high}: give a positive '
        'low_freq_factor below high_freq_factor'
      )

  def apply(self, frequencies: jax.Array) -> jax.Array:
    """Returns the scaled frequencies, radians per position."""
    low, high = self.low_freq_factor, self.high_freq_factor
    if low is None or high is None or self.original_positions is None:
      return frequencies / self.factor
    turns = self.original_positions * frequencies / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * frequencies / self.factor + kept * frequencies


def tables(
  seq_len: int,
  head_dim: int,
  theta: float,
  dtype: jax.typing.DTypeLike,
  scaling: RopeScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the cosine and sine of every position's angles.

  Args:
    seq_len: Number of positions.
    head_dim: Size of a head, even.
    theta: Base of the wavelengths.
    dtype: Compute type, float32 or wider.
    scaling: Scaling of the frequencies, or None.

  Returns:
    Two arrays [seq_len, head_dim / 2].
  """
  exponents = jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim
  frequencies = theta**-exponents
  if scaling is not None:
    frequencies = scaling.apply(frequencies)
  angles = jnp.outer(jnp.arange(seq_len, dtype=dtype), frequencies)
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLHD: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates queries or keys, pairing feature i with i + D/2 (rotate-half).

  Args:
    x_BLHD: Queries or keys [batch, positions, heads, head size].
    rope: The result of `tables`, in float32 or wider.

  Returns:
    The rotated array, in the type of the input.
  """
  cos, sin = (table[None, :, None, :] for table in rope)
  first, second = jnp.split(x_BLHD, 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x_BLHD.dtype)
