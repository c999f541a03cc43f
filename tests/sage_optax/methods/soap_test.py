"""SOAP: its bases, and what it is without them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax
from tests.support import oracles, stepping


def _grads(shape, steps=8):
  return np.random.default_rng(0).normal(size=(steps, *shape))


def _rotation(size, seed):
  drawn = np.random.default_rng(seed).normal(size=(size, size))
  return np.linalg.qr(drawn)[0]


class SoapTest(parameterized.TestCase):
  def test_both_sides_as_the_equations(self):
    grads = _grads((5, 5))
    with jax.enable_x64(True):
      tx = sage_optax.scale_by_soap(update_proj_gap=3)
      ours = stepping.updates(tx, jnp.asarray(grads))
    np.testing.assert_allclose(ours, oracles.soap(list(grads), gap=3), 1e-9)

  def test_rotating_gradients_rotates_updates(self):
    grads, left, right = _grads((5, 5)), _rotation(5, 1), _rotation(5, 2)
    with jax.enable_x64(True):
      tx = sage_optax.scale_by_soap(update_proj_gap=3)
      plain = stepping.updates(tx, jnp.asarray(grads))
      turned = stepping.updates(tx, jnp.asarray(left @ grads @ right))
    np.testing.assert_allclose(turned, left @ plain @ right, 1e-7, 1e-9)

  def test_without_rotation_it_is_adam_from_the_second_step(self):
    grads = jnp.asarray(_grads((6, 4)), jnp.float32)
    ours = stepping.updates(sage_optax.scale_by_soap(max_side=3), grads)
    adam = optax.scale_by_adam(b1=0.95, b2=0.95, eps=0.0)
    np.testing.assert_array_equal(ours[0], 0)
    np.testing.assert_allclose(
      ours[1:], stepping.updates(adam, grads[1:]), 1e-4
    )

  def test_one_long_side_is_left_alone(self):
    tx = sage_optax.scale_by_soap(max_side=5)
    state = jax.eval_shape(tx.init, jnp.ones((3, 6, 4)))
    self.assertEqual(state.basis_in.shape, (3, 1, 1))
    self.assertEqual(state.basis_out.shape, (3, 4, 4))

  def test_whole_layers_on_the_devices(self):
    grads = jnp.asarray(_grads((8, 8, 12), 4), jnp.float32)
    tx = sage_optax.scale_by_soap(update_proj_gap=2, one_sided=True)
    expected = stepping.updates(tx, grads)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ('a', 'b'), auto)
    spec = jax.P(None, 'a', 'b')
    sharding = jax.sharding.NamedSharding(mesh, jax.P(None, None, 'a', 'b'))
    on_mesh = sage_optax.sharding.with_mesh(tx, mesh, spec)
    ours = stepping.updates(on_mesh, jax.device_put(grads, sharding))
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)

  def test_bases_stay_where_they_are_between_renewals(self):
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ('a', 'b'), auto)
    spec = jax.P(None, 'a', 'b')
    plain = sage_optax.scale_by_soap(one_sided=True)
    tx = sage_optax.sharding.with_mesh(plain, mesh, spec)
    param = jax.ShapeDtypeStruct((8, 8, 12), jnp.float32)
    specs = sage_optax.sharding.state_specs(plain, param, spec, mesh.shape)
    placed = jax.tree.map(
      lambda s: jax.sharding.NamedSharding(mesh, s), (spec, specs)
    )
    step = jax.jit(tx.update, in_shardings=placed, out_shardings=placed)
    compiled = step.lower(param, jax.eval_shape(tx.init, param)).compile()
    text = compiled.as_text()
    (branches,) = re.findall(r'branch_computations=\{(.*?)\}', text)
    sent = []
    for name in branches.split(', '):
      body = text[text.index(f'\n{name} (') :]
      sent.append('all-to-all' in body[: body.index('\n}')])
    self.assertEqual(sent, [False, True, True])

  def test_wrong_arguments(self):
    with self.assertRaisesRegex(ValueError, 'update_proj_gap must be at least'):
      sage_optax.scale_by_soap(update_proj_gap=0)
    with self.assertRaisesRegex(ValueError, 'max_side must be at least 1'):
      sage_optax.scale_by_soap(max_side=0)
