"""States of parameters that Flax has boxed with the names of their axes."""

import functools

import chex
import jax
import jax.numpy as jnp
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
from flax.training import train_state

import sage_optax
from sage_optax import sharding

_AUTO = (jax.sharding.AxisType.Auto,)
_TOKENS = jnp.arange(24).reshape(2, 12)
_VOCAB, _WIDTH = ('model', None), (None, 'model')


class _Linen(nn.Module):
  boxed: bool = True
  wrap: object = nn.with_partitioning

  @nn.compact
  def __call__(self, tokens):
    def init(names):
      normal = nn.initializers.normal()
      return self.wrap(normal, names) if self.boxed else normal

    x = nn.Embed(32, 16, embedding_init=init(_VOCAB), name='embed')(tokens)
    x = nn.Dense(24, kernel_init=init(_WIDTH), bias_init=init(('model',)))(x)
    head = nn.Dense(
      32, use_bias=False, kernel_init=init(_VOCAB), name='lm_head'
    )
    return head(jax.nn.relu(x))


class _Nnx(nnx.Module):
  def __init__(self, rngs):
    def init(names):
      return nnx.with_partitioning(nnx.initializers.normal(), names)

    self.embed = nnx.Embed(32, 16, embedding_init=init(_VOCAB), rngs=rngs)
    self.dense = nnx.Linear(
      16, 24, kernel_init=init(_WIDTH), bias_init=init(('model',)), rngs=rngs
    )
    self.lm_head = nnx.Linear(
      24, 32, use_bias=False, kernel_init=init(_VOCAB), rngs=rngs
    )


def _mesh(devices):
  return jax.make_mesh(
    (devices,), ('model',), _AUTO, devices=jax.devices()[:devices]
  )


def _train_state(model, tx, key):
  params = model.init(key, _TOKENS)['params']
  return train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=tx
  )


def _shard_sizes(specs, shapes, devices):
  """Elements on a device; an axis that is not divided evenly is an error."""
  mesh = _mesh(devices)

  def shard(spec, shape):
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return sharding.shard_shape(shape.shape)

  return jax.tree.map(shard, specs, shapes)


class StateTest(parameterized.TestCase):
  @parameterized.parameters(*sage_optax.recipe_names())
  def test_linen_names_fit_the_state(self, name):
    tx = sage_optax.recipe(name, 1e-3)
    init = functools.partial(_train_state, _Linen(), tx)
    state = jax.eval_shape(init, jax.random.key(0))
    specs = nn.get_partition_spec(state.opt_state)
    for devices in (2, 4, 8):
      _shard_sizes(
        sharding.unbox(specs), sharding.unbox(state.opt_state), devices
      )

  @parameterized.parameters(*sage_optax.recipe_names())
  def test_nnx_names_fit_the_state(self, name):
    tx = sage_optax.recipe(name, 1e-3)

    def make():
      model = _Nnx(nnx.Rngs(0))
      return nnx.state(nnx.Optimizer(model, tx, wrt=nnx.Param))

    with jax.set_mesh(_mesh(8)):
      state = jax.eval_shape(make)
    specs = nnx.get_partition_spec(state)
    for devices in (2, 4, 8):
      _shard_sizes(sharding.unbox(specs), sharding.unbox(state), devices)

  def test_names_of_axes_that_stay_are_kept(self):
    tx = sage_optax.scale_by_sage(axis=-2)
    kernel = nn.Partitioned(jnp.ones((16, 24)), names=('embed', 'mlp'))
    state = tx.init({'kernel': kernel})
    self.assertEqual(state.mu['kernel'].names, ('embed', 'mlp'))
    self.assertEqual(state.abs_mean['kernel'].names, (None, 'mlp'))
    self.assertEqual(state.abs_mean['kernel'].value.shape, (1, 24))

  @parameterized.parameters('sage_hybrid', 'apollo', 'adafactor')
  def test_sharded_steps_equal_those_without_boxes(self, name):
    tx = sage_optax.recipe(name, 1e-2)
    mesh = _mesh(8)
    init = functools.partial(_train_state, _Linen(), tx)
    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = nn.get_sharding(abstract, mesh)
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    plain = _train_state(_Linen(boxed=False), tx, jax.random.key(0))

    @jax.jit
    def step(state):
      def loss(params):
        logits = state.apply_fn({'params': params}, _TOKENS)
        return jnp.mean(jnp.square(logits - 1))

      return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(2):
      state, plain = step(state), step(plain)
    chex.assert_trees_all_close(
      sharding.unbox(state.params), plain.params, rtol=1e-4, atol=1e-5
    )
    chex.assert_trees_all_equal_structs(
      state.opt_state, jax.jit(init)(jax.random.key(0)).opt_state
    )


class SpecsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    params = jax.eval_shape(_Linen().init, jax.random.key(0), _TOKENS)
    self.boxed = params['params']
    self.specs = nn.get_partition_spec(self.boxed)

  def test_state_specs_of_boxed_trees(self):
    tx = sage_optax.sage_hybrid(1e-3)
    plain = sharding.unbox(self.boxed)
    expected = sharding.state_specs(tx, plain, self.specs)
    for params, specs in self._boxings():
      self.assertEqual(sharding.state_specs(tx, params, specs), expected)

  def test_explain_of_boxed_trees(self):
    mesh = jax.sharding.AbstractMesh((5,), ('model',))
    for params, specs in self._boxings():
      explanation = sage_optax.explain(
        'sage_hybrid', params, param_specs=specs, mesh=mesh
      )
      replicated = {row.path: row.replicated for row in explanation.rows}
      self.assertEqual(
        replicated,
        {
          'embed/embedding': (0,),
          'Dense_0/kernel': (1,),
          'Dense_0/bias': (0,),
          'lm_head/kernel': (0,),
        },
      )

  def _boxings(self):
    """Pairs of parameters and specs, of which both or one is boxed."""
    plain = sharding.unbox(self.boxed)
    boxed_specs = jax.tree.map(
      lambda box: box.replace_boxed(box.get_partition_spec()),
      self.boxed,
      is_leaf=lambda x: isinstance(x, nn.Partitioned),
    )
    return (
      (self.boxed, self.specs),
      (self.boxed, boxed_specs),
      (plain, boxed_specs),
    )

  def test_with_mesh_finds_boxed_leaves(self):
    tx = sage_optax.scale_by_muon()
    grads = {
      'kernel': nn.Partitioned(jnp.ones((8, 16, 16)), (None, 'model', None))
    }
    specs = nn.get_partition_spec(grads)
    on_mesh = sharding.with_mesh(tx, _mesh(8), specs)
    text = jax.jit(on_mesh.update).lower(grads, tx.init(grads)).as_text()
    self.assertIn('all_to_all', text)

  def test_a_box_without_an_array(self):
    params = {
      'kernel': nn.Partitioned(jnp.ones((8, 16)), _WIDTH),
      'bias': nn.Partitioned(None, ('model',)),
      'other': nnx.Param(None),
    }
    for state_dtype in (None, 'int8'):
      tx = sage_optax.scale_by_adam(state_dtype=state_dtype)
      updates, state = tx.update(params, tx.init(params))
      chex.assert_trees_all_equal_structs(updates, params)
      self.assertEqual(jax.tree.leaves(updates)[0].shape, (8, 16))
      self.assertEqual(int(state.count), 1)
