"""Random methods do not depend on the names of leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax
from sage_optax import rounding

_METHODS = {
  'apollo': lambda: sage_optax.scale_by_apollo(rank=2),
  'galore': lambda: sage_optax.scale_by_galore(rank=2, projector='gaussian'),
  'spam': lambda: sage_optax.scale_by_spam(density=0.5),
  'state in bfloat16': lambda: sage_optax.scale_by_lion(state_dtype='bfloat16'),
  'updates': lambda: sage_optax.stochastic_round_updates(optax.sgd(1e-3)),
}


def _leaves(name):
  dtype = jnp.bfloat16 if name == 'updates' else jnp.float32
  keys = jax.random.split(jax.random.key(0), 3)
  return [jax.random.normal(key, (6, 8)).astype(dtype) for key in keys]


def _run(tx, params):
  updates, state = tx.update(params, tx.init(params), params)
  slots = [x for x in jax.tree.leaves(state) if x.ndim == 2]
  return [np.asarray(x) for x in (*jax.tree.leaves(updates), *slots)]


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(*_METHODS)
  def test_other_names_and_wrappers_change_nothing(self, name):
    a, b, c = _leaves(name)
    tx = _METHODS[name]()
    expected = _run(tx, {'a': a, 'b': b, 'c': {'kernel': c}})
    for tree in (
      {'params': {'x': a, 'y': {'w': b}, 'z': c}},
      [a, (b, c)],
    ):
      for ours, theirs in zip(_run(tx, tree), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Equal leaves are treated differently, as each draws its own numbers.
    first, second, *_ = _run(tx, [a, a])
    if name != 'state in bfloat16':  # where signs are equal
      self.assertTrue((first != second).any())

  @parameterized.parameters(*_METHODS)
  def test_masked_leaves_are_counted(self, name):
    a, b, c = _leaves(name)
    whole, masked = [a, b, c], [a, optax.MaskedNode(), c]
    tx = _METHODS[name]()
    updates, _ = tx.update(whole, tx.init(whole), whole)
    part, _ = tx.update(masked, tx.init(masked), masked)
    if name != 'state in bfloat16':
      np.testing.assert_array_equal(part[2], updates[2])
    self.assertEqual(rounding.leaf_numbers(masked), [0, optax.MaskedNode(), 2])

  def test_the_key_is_the_choice(self):
    a, b, c = _leaves('apollo')
    one, other = (
      _run(sage_optax.scale_by_apollo(rank=2, key=key), [a, b, c])
      for key in (0, 1)
    )
    self.assertTrue((one[0] != other[0]).any())
