"""What the tests of SinkGD's kernels share."""

import jax
import jax.numpy as jnp
import numpy as np

from sage_optax.core import sinkhorn


def gradient(shape, dtype=jnp.float32):
  """A gradient whose slices differ much in size."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal(shape)
  x *= np.exp(2 * rng.standard_normal((*shape[:-1], 1)))
  x *= np.exp(rng.standard_normal((*shape[:-2], 1, shape[-1])))
  return jnp.asarray(x, dtype)


def zero_slices():
  """Matrices with a zero row and column, and one of zeros."""
  x = gradient((3, 40, 50)).at[0, 7].set(0).at[0, :, 9].set(0)
  return x.at[1].set(0)


def apply(x, scales):
  """The array scaled, in float32."""
  in_scale, out_scale = scales
  assert in_scale.shape == (*x.shape[:-1], 1)
  assert out_scale.shape == (*x.shape[:-2], 1, x.shape[-1])
  return np.asarray(x.astype(jnp.float32) * in_scale * out_scale)


def check(find, plans, x, num_iters=3, eps=1e-8, unit_norm=False):
  """That a kernel, interpreted, gives what the plain form does, by any plan."""
  want = apply(
    x, sinkhorn.plain(x, sinkhorn.Options(num_iters, eps, unit_norm))
  )
  assert np.isfinite(want).all()
  for how in plans:
    interpreted = jax.jit(
      lambda x, num_iters, eps, how=how: find(
        x,
        sinkhorn.Options(num_iters, eps, unit_norm),
        ((), ()),
        how,
        interpret=True,
      )
    )
    scales = interpreted(x, num_iters, eps)
    for scale in scales:
      assert np.isfinite(scale).all(), how
    limit = 1e-5 * np.abs(want).max()
    got = apply(x, scales)
    np.testing.assert_allclose(got, want, 1e-5, limit, err_msg=str(how))
