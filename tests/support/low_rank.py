"""What the tests of APOLLO, GaLore and Fira have in common."""

import jax

import sage_optax

METHODS = {
  'apollo': sage_optax.scale_by_apollo,
  'galore': sage_optax.scale_by_galore,
  'fira': sage_optax.scale_by_fira,
}
KINDS = ('gaussian', 'svd', 'subspace')


def drawn(key, matrix, count):
  """A projector of rank 2 that uses its key."""
  del count
  return jax.random.normal(key, (2, min(matrix.shape)))
