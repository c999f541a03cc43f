"""Random bits for rounding: cheap, and the same on any mesh."""

import jax
import jax.numpy as jnp

from sage_optax.core import linalg


def bits(key: jax.Array, x: jax.Array) -> jax.Array:
  """uint32 bits per element of `x`: a hash of the key and the element's index.

  This costs a tenth of jax.random.bits, which would take more time than the
  optimizer. Two rounds of a 32-bit mixing function (with the constants of
  Wellons's lowbias32) are good enough for rounding.
  """
  place = jnp.zeros([], jnp.uint32)
  for axis in range(x.ndim):
    # Indices in the whole array, modulo 2^32, so the mesh does not matter.
    along = jax.lax.broadcasted_iota(
      jnp.uint32, x.shape, axis, out_sharding=linalg.explicit_sharding(x)
    )
    place = place * jnp.uint32(x.shape[axis]) + along

  def mix(bits):
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)

  first, second = jax.random.bits(key, (2,), jnp.uint32)
  return mix(mix(place ^ first) + second)


def uniform(key: jax.Array, x: jax.Array) -> jax.Array:
  """Numbers from 0 to 1 per element of `x`, in float32."""
  return (bits(key, x) >> 8).astype(jnp.float32) / 2**24
