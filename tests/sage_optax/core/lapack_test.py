"""On CPUs, LAPACK gets one matrix at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sage_optax
from sage_optax.core import lapack


@pytest.mark.parametrize('function', [jnp.linalg.qr, jnp.linalg.eigh])
@pytest.mark.parametrize('batch', [(), (3,), (2, 2), (0,)])
def test_batches_are_factorized_as_by_numpy(function, batch):
  x = np.random.default_rng(0).normal(size=(*batch, 4, 4)).astype(np.float32)
  x = x + np.swapaxes(x, -1, -2)
  found = lapack.of_each(function, jnp.asarray(x))
  expected = getattr(np.linalg, function.__name__)(x)
  assert [y.shape for y in found] == [y.shape for y in expected]
  if function is jnp.linalg.eigh:
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    found = found[1] * found[0][..., None, :], np.swapaxes(found[1], -1, -2)
  np.testing.assert_allclose(found[0] @ found[1], x, atol=1e-5)


@pytest.mark.parametrize(
  'tx',
  [
    sage_optax.scale_by_soap(),
    sage_optax.scale_by_galore(2),
    sage_optax.scale_by_fira(2),
  ],
  ids=['soap', 'galore', 'fira'],
)
def test_methods_pass_no_batch_to_lapack(tx):
  # A batch would be distributed over the threads that wait for it: the methods
  # hung on a mesh of as many devices as threads.
  params = jnp.ones((3, 4, 6))
  update = jax.jit(tx.update).lower(params, tx.init(params), params)
  calls = [line for line in update.as_text().splitlines() if '@lapack' in line]
  assert calls
  for line in calls:
    operands, _ = line.rsplit('->', 1)
    assert not re.search(r': \(tensor<\d+x\d+x\d', operands), line
