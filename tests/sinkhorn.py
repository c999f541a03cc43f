"""What the tests of SinkGD's kernels share."""

import jax.numpy as jnp
import numpy as np


def gradient(shape, dtype=jnp.float32):
  """A gradient whose slices differ much in size."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal(shape)
  x *= np.exp(2 * rng.standard_normal((*shape[:-1], 1)))
  x *= np.exp(rng.standard_normal((*shape[:-2], 1, shape[-1])))
  return jnp.asarray(x, dtype)


def apply(x, scales):
  """The array scaled, in float32."""
  in_scale, out_scale = scales
  assert in_scale.shape == (*x.shape[:-1], 1)
  assert out_scale.shape == (*x.shape[:-2], 1, x.shape[-1])
  return np.asarray(x.astype(jnp.float32) * in_scale * out_scale)
