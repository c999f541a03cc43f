"""The forms for one CPU against the plain ones; `with_mesh` asks for them."""

import functools
import importlib.util
import subprocess
import sys
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

import sage_optax
from sage_optax.core import blocks, moments, sinkhorn_blocks
from sage_optax.sharding import with_mesh
from tests.support import oracles
from train.plan import targets

_AUTO = (jax.sharding.AxisType.Auto,)
_METHODS = {
  'sage': sage_optax.scale_by_sage(axis=-2),
  'sage_dense': sage_optax.scale_by_sage(axis=-1),
  'scale': sage_optax.scale_by_column_norm(),
  'scale_norm': sage_optax.scale_by_column_norm(unit_norm=True),
  'scale_momentum': sage_optax.scale_by_column_norm(0.9),
  'sinkgd': sage_optax.scale_by_sinkgd(),
  'sinkgd_unit': sage_optax.scale_by_sinkgd(2, unit_norm=True),
}
_SHAPES = ((37, 24), (3, 24, 37), (2, 3, 40, 17), (1, 9), (9, 1), (2, 0, 5))


def _tree(dtype, scale=1.0):
  keys = jax.random.split(jax.random.key(0), len(_SHAPES))
  return [
    (scale * jax.random.normal(key, shape)).astype(dtype)
    for key, shape in zip(keys, _SHAPES, strict=True)
  ]


def _on_one_cpu(tx, params):
  mesh = jax.make_mesh((1,), ('fsdp',), _AUTO, devices=jax.devices()[:1])
  return with_mesh(tx, mesh, jax.tree.map(lambda _: jax.P(), params))


def _three_steps(tx, grads):
  state = tx.init(grads)
  update = jax.jit(tx.update)
  for factor in (1, 2, 3):
    scaled = optax.tree.cast_like(optax.tree.scale(factor, grads), grads)
    updates, state = update(scaled, state)
  return updates, state


class FormsTest(parameterized.TestCase):
  """Blocks of some rows with a rest, matrices in the cache and not."""

  def setUp(self):
    super().setUp()
    # Blocks of 8 rows, the least; the smaller matrices stay in the cache.
    self.enter_context(mock.patch.object(blocks, '_BLOCK_BYTES', 64))
    self.enter_context(
      mock.patch.object(sinkhorn_blocks, '_RESIDENT_BYTES', 4 * 24 * 37)
    )

  @parameterized.product(
    method=sorted(_METHODS), of=(('float32', 1e-12), ('bfloat16', 1.0))
  )
  def test_numbers_are_those_of_the_plain_forms(self, method, of):
    (dtype, scale), tx = of, _METHODS[method]
    grads = _tree(dtype, scale)
    # Slices of zeros stay zero.
    grads[0] = grads[0].at[3].set(0.0).at[:, 5].set(0.0)
    grads[1] = grads[1].at[1].set(0.0)
    expected = _three_steps(tx, grads)
    actual = _three_steps(_on_one_cpu(tx, grads), grads)
    chex.assert_trees_all_equal_dtypes(actual, expected)
    # bfloat16 updates may round the other way.
    rtol = 1e-5 if dtype == 'float32' else 8e-3
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=1e-9)
    chex.assert_tree_all_finite(actual)
    for i in (0, 1):
      zeros = np.asarray(grads[i]) == 0
      np.testing.assert_array_equal(np.asarray(actual[0][i])[zeros], 0.0)

  def test_the_oracle_agrees(self):
    x = np.random.default_rng(0).normal(size=(40, 33))
    with jax.enable_x64(True):
      for resident in (0, 2**24):
        with mock.patch.object(sinkhorn_blocks, '_RESIDENT_BYTES', resident):
          tx = _on_one_cpu(sage_optax.scale_by_sinkgd(), jnp.asarray(x))
          actual, _ = jax.jit(tx.update)(jnp.asarray(x), tx.init(x))
        np.testing.assert_allclose(actual, oracles.sinkgd([x])[0], rtol=1e-9)

  def test_the_forms_are_those_for_one_device(self):
    x = jnp.ones((16, 8))
    tx = sage_optax.scale_by_sinkgd()
    with mock.patch.object(sinkhorn_blocks, 'scales', side_effect=RuntimeError):
      # Nothing says that x lies on one device.
      jax.jit(tx.update)(x, tx.init(x))
      one = _on_one_cpu(tx, x)
      one.update(x, one.init(x))  # Not compiled.
      with self.assertRaises(RuntimeError):
        jax.jit(one.update)(x, one.init(x))

  @parameterized.parameters(*sorted(_METHODS))
  def test_inside_a_shard_map(self, method):
    x = jax.random.normal(jax.random.key(0), (16, 8))
    tx = _on_one_cpu(_METHODS[method], x)
    mesh = jax.make_mesh((1,), ('x',), _AUTO, devices=jax.devices()[:1])
    update = jax.shard_map(
      lambda x: tx.update(x, tx.init(x))[0],
      mesh=mesh,
      in_specs=jax.P('x'),
      out_specs=jax.P('x'),
    )
    expected, _ = _METHODS[method].update(x, tx.init(x))
    np.testing.assert_allclose(jax.jit(update)(x), expected, rtol=1e-5)

  def test_what_is_not_finite_is_not_hidden(self):
    x = jnp.ones((24, 16)).at[3, 5].set(jnp.nan)
    tx = _on_one_cpu(sage_optax.scale_by_sinkgd(), x)
    updates, _ = jax.jit(tx.update)(x, tx.init(x))
    self.assertTrue(np.isnan(updates).all())

  def test_shapes_can_be_asked_for_before_there_are_devices(self):
    script = (
      'import jax, sage_optax; from jax._src import xla_bridge as bridge;'
      'x = jax.ShapeDtypeStruct((4, 3), "float32");'
      '[jax.eval_shape(sage_optax.recipe(name, 1e-3).init, x)'
      ' for name in ("sage", "scale", "sinkgd")];'
      'assert not bridge.backends_are_initialized()'
    )
    subprocess.run([sys.executable, '-c', script], check=True, timeout=120)


class TemporariesTest(parameterized.TestCase):
  @parameterized.product(
    recipe=('lion', 'sage', 'scale', 'sage_hybrid', 'sinkgd_pure'),
    dtype=('float32', 'bfloat16'),
  )
  def test_no_matrix_is_written_but_the_parameters(self, recipe, dtype):
    shapes = {'embed': (32000, 256), 'head': (256, 32000), 'up': (8, 256, 4096)}
    params = {
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in shapes.items()
    }
    grads = {
      name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()
    }
    roles = {'embed': 'embedding', 'head': 'head', 'up': 'matrix'}
    tx = sage_optax.recipe(
      recipe, 1e-3, roles=roles, stacked='up', weight_decay=0.1
    )
    tx = _on_one_cpu(tx, params)

    def step(params, state, grads):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    compiled = (
      jax.jit(step, donate_argnums=(0, 1))
      .lower(params, jax.eval_shape(tx.init, params), grads)
      .compile()
    )
    # A block and its squares; each parameter has 32 MB.
    self.assertLess(
      compiled.memory_analysis().temp_size_in_bytes, 2.2 * blocks._BLOCK_BYTES
    )


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda13_plugin') is None,
  reason='needs the extra gpu-plan',
)
@pytest.mark.usefixtures('uncached')
class GpuTest(parameterized.TestCase):
  @parameterized.product(
    method=('sinkgd', 'sage', 'scale'), dtype=('float32', 'bfloat16')
  )
  def test_no_matrix_is_written_on_an_h100(self, method, dtype):
    device = targets.devices(targets.parse('h100:8'))[:1]
    mesh = jax.sharding.Mesh(np.array(device), ('fsdp',))
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    tx = with_mesh(_METHODS[method], mesh, jax.P())
    grad = jax.ShapeDtypeStruct((4, 2048, 5461), dtype, sharding=whole)
    state = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      jax.eval_shape(tx.init, grad),
    )
    param = jax.ShapeDtypeStruct(grad.shape, jnp.float32, sharding=whole)

    def step(param, state, grad):
      update, state = tx.update(grad, state)
      return optax.apply_updates(param, update), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(param, state, grad)
    compiled = lowered.compile(compiler_options={'xla_gpu_autotune_level': 0})
    # SinkGD's kernel has partial sums, of a thirtieth of the gradient.
    limit = grad.size * grad.dtype.itemsize / 25
    self.assertLess(compiled.memory_analysis().temp_size_in_bytes, limit)


class SignTest(absltest.TestCase):
  def test_of_the_new_momentum_it_is_the_sign_of_the_old_one(self):
    grad, mu = (
      jax.random.normal(jax.random.key(i), (1000, 100)) for i in (0, 1)
    )
    for b1, b2 in ((0.9, 0.99), (0.95, 0.98), (0.0, 0.9), (0.9, 0.9)):
      step = functools.partial(moments.sign_step, b1=b1, b2=b2)
      sign, new = jax.jit(step)(grad, mu)
      argument = b1 * mu + (1 - b1) * grad
      certain = np.abs(argument) > 1e-6
      self.assertGreater(certain.mean(), 0.999)
      np.testing.assert_array_equal(sign[certain], np.sign(argument)[certain])
      # Compiled, products and sums are rounded at once.
      np.testing.assert_allclose(new, (1 - b2) * grad + b2 * mu, 1e-6, 1e-6)

  def test_elsewhere_it_is_optax_bit_for_bit(self):
    # The plain form is what accelerators run; here it is asked for by name.
    def default(*arrays, cpu, default):
      del cpu
      return default(*arrays)

    ours, theirs = sage_optax.scale_by_lion(), optax.scale_by_lion()
    grad = jnp.zeros((64, 8))
    state, other = ours.init(grad), theirs.init(grad)
    with mock.patch.object(jax.lax, 'platform_dependent', default):
      for step in range(20):
        # Few values: the argument is often zero but for rounding.
        grad = jax.random.randint(jax.random.key(step), (64, 8), -9, 10).astype(
          jnp.float32
        )
        updates, state = jax.jit(ours.update)(grad, state)
        expected, other = jax.jit(theirs.update)(grad, other)
        np.testing.assert_array_equal(updates, expected)
    np.testing.assert_array_equal(state.mu, other.mu)

  def test_a_small_or_injected_decay_takes_the_plain_form(self):
    grads = jnp.array([1.0, -2.0, 0.0])
    for make in (sage_optax.scale_by_lion, sage_optax.scale_by_sage):
      for b2 in (0.0, 0.3):
        tx = make(b1=0.9, b2=b2)
        updates, state = tx.update(grads, tx.init(grads))
        chex.assert_tree_all_finite((updates, state))
      tx = optax.inject_hyperparams(make)(b1=0.9, b2=0.99)
      updates, _ = tx.update(grads, tx.init(grads))
      np.testing.assert_array_equal(jnp.sign(updates), jnp.sign(grads))


if __name__ == '__main__':
  absltest.main()
