import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from models import llama
from train import config as config_lib
from train import mesh as mesh_lib
from train import optimizer as optimizer_lib
from train import program
from train import state as state_lib
from train import step as step_lib

# Tests wait for the compiler and for little else.
_FAST = {'xla_backend_optimization_level': 0}

# Two devices, and eight, under each kind of mesh and all at once.
_MESHES = {
  'data_2': {'sizes': (2, 1, 1)},
  'fsdp_8': {'sizes': (1, 8, 1)},
  'tensor_2': {'sizes': (1, 1, 2)},
  'mixed_8': {'sizes': (2, 2, 2)},
  'mixed_8_microbatches': {'sizes': (2, 2, 2), 'microbatch': 4},
}


def _config(recipe='sage_hybrid', dtype=None, **train):
  config = config_lib.Config()
  config.model = config_lib.ModelConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    tie_embeddings=True,
  )
  config.train = config_lib.TrainConfig(
    steps=50,
    batch_size=8,
    seq_len=8,
    dtype=dtype,
    **{'grad_clip': 1e-2} | train,
  )
  config.optimizer.recipe = recipe
  config.optimizer.learning_rate = 1e-2
  if 'sage' in recipe:
    config.optimizer.num_iters = 2
  return config


def _matrix_size(run):
  """The number of entries of the matrices."""
  layers = run.shapes['layers']
  parts = layers['attention'], layers['mlp']
  return sum(x.size for x in jax.tree.leaves(parts))


class _Run:
  """A run as the loop sets it up, on the first devices."""

  def __init__(self, config, sizes=(1, 1, 1)):
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = sizes
    config_lib.validate(config, math.prod(sizes))
    self.config = config
    self.mesh = mesh_lib.make_mesh(config, jax.devices()[: math.prod(sizes)])
    self.model = config_lib.model_config(config, 'cpu')
    self.shapes = state_lib.abstract_params(self.model)
    axes = llama.logical_axes(self.model)
    self.optimizer = optimizer_lib.make(config, self.shapes, axes)
    self.specs, self.replicated = mesh_lib.param_specs(
      axes, self.shapes, self.mesh, units=mesh_lib.axis_units(self.model)
    )
    self.shardings = state_lib.state_shardings(
      self.optimizer.tx, self.shapes, self.specs, self.mesh
    )
    microbatch = config.train.microbatch or config.train.batch_size
    self.train_step = step_lib.make_train_step(
      self.model,
      self.optimizer,
      microbatches=config.train.batch_size // microbatch,
      constrain=mesh_lib.constrain(self.mesh),
      param_shardings=self.shardings.params,
    )
    self.step = step_lib.jit_train_step(
      self.train_step, self.shardings, self.mesh, _FAST
    )

  def init(self):
    """The state of one device, placed: quicker than compiling init_state."""
    dtype, seed = self.config.train.dtype, self.config.train.seed
    params = _initial_params(self.model, seed, dtype)
    opt_state = jax.eval_shape(self.optimizer.tx.init, params)
    # All slots of the recipes here start at zero.
    opt_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), opt_state)
    state = state_lib.TrainState(np.zeros((), np.int32), params, opt_state)
    return jax.device_put(state, self.shardings)

  def compile(self):
    batch = jax.ShapeDtypeStruct(
      (self.config.train.batch_size, self.config.train.seq_len + 1), jnp.int32
    )
    state = state_lib.abstract_state(self.model, self.optimizer.tx)
    return self.step.lower(state, batch).compile()

  def batch(self, index):
    # A few repeated patterns, so that there is something to learn.
    rng = np.random.default_rng(index)
    rows, width = self.config.train.batch_size, self.config.train.seq_len + 1
    start = rng.integers(0, 32, [rows, 1])
    stride = rng.integers(1, 3, [rows, 1])
    tokens = (start + stride * np.arange(width)) % 32
    return mesh_lib.put_batch(tokens.astype(np.int32), self.mesh)

  def losses(self, steps):
    state, losses = self.init(), []
    for index in range(steps):
      state, metrics = self.step(state, self.batch(index))
      losses.append(float(metrics['loss']))
    return np.array(losses), jax.device_get(state.params)


@functools.cache
def _initial_params(model, seed, dtype):
  del dtype  # Only tells the modes of 32 and 64 bits apart in the cache.
  init = jax.jit(llama.init, static_argnums=1, compiler_options=_FAST)
  return jax.device_get(init(jax.random.key(seed), model))


@functools.cache
def _run(sizes=(1, 1, 1), **options):
  return _Run(_config(**options), sizes)


@functools.cache
def _reference(steps, **options):
  return _run(**options).losses(steps)


class MeshTest(parameterized.TestCase):
  @parameterized.named_parameters(
    *((name, name) for name in ('data_2', 'fsdp_8', 'tensor_2', 'mixed_8'))
  )
  @pytest.mark.nightly_except('mixed_8')  # float64 has the others
  def test_float32_losses_are_those_of_one_device(self, name):
    expected, _ = _reference(10)
    losses, _ = _run(**_MESHES[name]).losses(10)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)

  @parameterized.parameters(
    'data_2', 'fsdp_8', 'tensor_2', 'mixed_8_microbatches'
  )
  def test_float64_losses_are_those_of_one_device(self, name):
    with jax.enable_x64(True):
      expected, params = _reference(50, dtype='float64')
      run = _run(dtype='float64', **_MESHES[name])
      losses, sharded_params = run.losses(50)
    self.assertLess(expected[-1], expected[0] - 0.5)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    chex.assert_trees_all_close(sharded_params, params, rtol=0, atol=1e-9)

  def test_state_is_made_sharded(self):
    run = _run((1, 4, 2), recipe='adamw')
    init = state_lib.jit_init(run.model, run.optimizer.tx, run.shardings)
    compiled = init.lower(0).compile(compiler_options=_FAST)
    state = compiled(0)
    sharded = 0
    for leaf, sharding in zip(
      jax.tree.leaves(state), jax.tree.leaves(run.shardings), strict=True
    ):
      self.assertEqual(leaf.sharding, sharding)
      part = sharding.shard_shape(leaf.shape)
      self.assertEqual({s.data.shape for s in leaf.addressable_shards}, {part})
      self.assertLen({s.device for s in leaf.addressable_shards}, 8)
      sharded += leaf.size == 8 * math.prod(part)
    # Parameter and two moments of: the embedding and seven kernels.
    self.assertEqual(sharded, 3 * 8)
    # No device ever holds the whole; vectors and counters are small.
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    analysis = compiled.memory_analysis()
    self.assertLess(analysis.peak_memory_in_bytes, whole / 8 * 1.5)
    # The numbers do not know the mesh, but for the compiler's last bit.
    chex.assert_trees_all_close(
      jax.device_get(state.params),
      _initial_params(run.model, 0, None),
      rtol=1e-6,
    )

  def test_data_is_not_exchanged_between_devices(self):
    run = _run((2, 2, 1), microbatch=4)
    split = jax.jit(
      lambda x: step_lib._split(x, 2, mesh_lib.constrain(run.mesh)),
      in_shardings=mesh_lib.batch_sharding(run.mesh),
    )
    compiled = split.lower(jax.ShapeDtypeStruct((8, 9), jnp.int32)).compile()
    for collective in ('all-gather', 'all-to-all', 'collective-permute'):
      self.assertNotIn(collective, compiled.as_text())
    # Every part has rows of every device.
    parts = split(run.batch(0))
    self.assertEqual(
      {s.data.shape for s in parts.addressable_shards}, {(2, 1, 9)}
    )
    np.testing.assert_array_equal(
      np.sort(np.asarray(parts).reshape(8, 9), axis=0),
      np.sort(np.asarray(run.batch(0)), axis=0),
    )


class AccumulationTest(parameterized.TestCase):
  def test_equals_no_accumulation(self):
    with jax.enable_x64(True):
      whole = _run(dtype='float64')
      parts = _run(dtype='float64', microbatch=2)
      batch = whole.batch(0)
      state, metrics = whole.step(whole.init(), batch)
      parts_state, parts_metrics = parts.step(parts.init(), batch)
      chex.assert_trees_all_close(
        parts_metrics, metrics, rtol=1e-12, atol=1e-12
      )
      chex.assert_trees_all_close(parts_state, state, rtol=1e-12, atol=1e-12)

  def test_costs_at_most_one_more_gradient(self):
    # Big matrices and few tokens: memory is the parameters', not activations'.
    def run(microbatch):
      config = _config(recipe='adamw', microbatch=microbatch)
      config.model.hidden_size = 128
      config.model.intermediate_size = 512
      config.model.vocab_size = 1024
      return _Run(config)

    def cost(run):
      analysis = run.compile().memory_analysis()
      return analysis.temp_size_in_bytes, analysis.peak_memory_in_bytes

    whole, parts = run(None), run(4)
    gradient = sum(4 * x.size for x in jax.tree.leaves(whole.shapes))
    self.assertGreater(cost(whole)[0], gradient)
    for before, after in zip(cost(whole), cost(parts), strict=True):
      self.assertLess(after - before, 1.02 * gradient)

  def test_batch_that_does_not_split(self):
    run = _run()
    step = step_lib.make_train_step(run.model, run.optimizer, microbatches=3)
    with pytest.raises(ValueError, match='8 does not split into 3'):
      jax.eval_shape(step, run.init(), run.batch(0))


class MaskTest(parameterized.TestCase):
  """A token given as ~t is an input, but no target."""

  def test_loss_and_gradient_are_those_of_the_targets(self):
    with jax.enable_x64(True):
      whole = _run(dtype='float64')
      parts = _run(dtype='float64', microbatch=2)
      tokens = np.asarray(whole.batch(0))
      masked = np.random.default_rng(0).random(tokens.shape) < 0.7
      masked[0] = True  # A row, and so half of a microbatch, without targets.
      masked[:, -1] = True
      batch = mesh_lib.put_batch(np.where(masked, ~tokens, tokens), whole.mesh)
      params = whole.init().params

      @functools.partial(jax.jit, compiler_options=_FAST)
      @jax.value_and_grad
      def expected(params):
        log_probs = jax.nn.log_softmax(
          llama.apply(params, tokens[:, :-1], whole.model)
        )
        rows, columns = np.nonzero(~masked[:, 1:])
        targets = tokens[rows, columns + 1]
        return -jnp.mean(log_probs[rows, columns, targets])

      gradient = jax.jit(
        step_lib._gradient_fn(whole.model, 1, lambda x, _: x, None),
        compiler_options=_FAST,
      )
      value, grads = expected(params)
      loss, found = gradient(params, batch)
      np.testing.assert_allclose(loss, value, 1e-12)
      chex.assert_trees_all_close(found, grads, rtol=1e-10, atol=1e-14)
      for run in (whole, parts):
        _, metrics = run.step(run.init(), batch)
        np.testing.assert_allclose(metrics['loss'], value, 1e-12)
        np.testing.assert_allclose(
          metrics['grad_norm'], optax.tree.norm(grads), 1e-10
        )
      # What nothing predicts does not matter.
      other = np.where(masked, ~tokens, tokens)
      other[:, -1] = ~((tokens[:, -1] + 1) % 32)
      chex.assert_trees_all_equal(gradient(params, other), (loss, found))
      # Without targets there is no loss and no gradient.
      loss, found = gradient(params, ~tokens)
      self.assertEqual(loss, 0)
      chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))


class StepTest(parameterized.TestCase):
  def test_loss_is_the_mean_over_tokens_before_the_update(self):
    run = _run()
    state = run.init()
    batch = run.batch(0)

    @functools.partial(jax.jit, compiler_options=_FAST)
    def mean_nll(params):
      log_probs = jax.nn.log_softmax(
        llama.apply(params, batch[:, :-1], run.model)
      )
      return -jnp.mean(
        jnp.take_along_axis(log_probs, batch[:, 1:, None], axis=-1)
      )

    expected = mean_nll(state.params)
    _, metrics = run.step(state, batch)
    np.testing.assert_allclose(metrics['loss'], expected, 1e-6)

  def test_donates_the_state(self):
    run = _run()
    state = run.init()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    self.assertEqual(run.compile().memory_analysis().alias_size_in_bytes, size)
    run.step(state, run.batch(0))
    self.assertTrue(all(x.is_deleted() for x in jax.tree.leaves(state)))

  def test_compiles_once(self):
    run = _run((2, 2, 2))
    state = run.init()
    for index in range(3):
      state, _ = run.step(state, run.batch(index))
    self.assertEqual(run.step._cache_size(), 1)
    self.assertEqual(int(state.step), 3)

  def test_state_stays_where_it_is(self):
    run = _run((2, 2, 2))
    state, metrics = run.step(run.init(), run.batch(0))
    chex.assert_trees_all_equal(
      jax.tree.map(lambda x: x.sharding, state), run.shardings
    )
    chex.assert_rank(list(metrics.values()), 0)

  def test_metrics_of_every_role(self):
    run = _run()
    state = run.init()
    batch = run.batch(0)

    @functools.partial(jax.jit, compiler_options=_FAST)
    @jax.grad
    def gradient(params):
      ones = jnp.ones(batch[:, 1:].shape)
      total, weight = llama.loss(
        params, batch[:, :-1], batch[:, 1:], ones, run.model
      )
      return total / weight

    before = jax.device_get(state.params)
    grads = jax.device_get(gradient(state.params))
    state, metrics = run.step(state, batch)
    after = jax.device_get(state.params)
    change = jax.tree.map(np.subtract, after, before)
    for name, tree in (
      ('grad_norm', grads),
      ('param_norm', before),
      ('update_norm', change),
    ):
      roles = {
        'embedding': [tree['embed']],
        'matrix': [tree['layers']['attention'], tree['layers']['mlp']],
        'vector': [
          tree['final_norm'],
          tree['layers']['attention_norm'],
          tree['layers']['mlp_norm'],
        ],
      }
      for role, leaves in roles.items():
        squares = sum(np.sum(x**2) for x in jax.tree.leaves(leaves))
        np.testing.assert_allclose(
          metrics[f'{name}/{role}'], math.sqrt(squares), 1e-3, err_msg=name
        )
    total = sum(np.sum(x**2) for x in jax.tree.leaves(grads))
    np.testing.assert_allclose(metrics['grad_norm'], math.sqrt(total), 1e-4)

  def test_effective_learning_rates(self):
    run = _run()
    state = run.init()
    for index in range(3):
      state, metrics = run.step(state, run.batch(index))
      rate = float(run.optimizer.schedule(index))
      np.testing.assert_allclose(metrics['lr/embedding'], rate, 1e-6)
      np.testing.assert_allclose(metrics['lr/vector'], rate, 1e-6)
      np.testing.assert_allclose(metrics['lr/matrix'], 0.33 * rate, 1e-6)
    self.assertNotIn('lr/head', metrics)

  def test_lion_moves_every_entry_by_the_learning_rate(self):
    run = _run(recipe='lion')
    _, metrics = run.step(run.init(), run.batch(0))
    size = _matrix_size(run)
    np.testing.assert_allclose(
      metrics['update_norm/matrix'],
      metrics['lr/matrix'] * math.sqrt(size),
      1e-5,
    )

  def test_sinkgd_moves_the_matrices_by_its_share(self):
    # Entries of SinkGD's updates have a root mean square of 1.
    run = _run()
    _, metrics = run.step(run.init(), run.batch(0))
    size = _matrix_size(run)
    rate = float(run.optimizer.schedule(0))
    np.testing.assert_allclose(
      metrics['update_norm/matrix'], 0.33 * rate * math.sqrt(size), 1e-3
    )

  def test_eval_step_weighs_the_losses(self):
    run = _run((2, 2, 2))
    state = run.init()
    eval_step = step_lib.jit_eval_step(
      step_lib.make_eval_step(run.model, mesh_lib.constrain(run.mesh)),
      run.shardings,
      run.mesh,
    )
    batch = run.batch(0)
    weights = np.ones((8, 8), np.float32)
    losses = eval_step(state.params, batch, weights)
    chex.assert_shape(losses, (8, 8))
    _, metrics = run.step(state, batch)
    np.testing.assert_allclose(jnp.mean(losses), metrics['loss'], 1e-5)
    weights[2:] = 0.0
    state = run.init()
    half = eval_step(state.params, batch, weights)
    np.testing.assert_array_equal(half[2:], np.zeros((6, 8)))
    np.testing.assert_allclose(half[:2], losses[:2], 1e-6)


class OptimizerTest(parameterized.TestCase):
  @parameterized.parameters(None, 1e-2)
  def test_gradients_are_clipped_by_their_global_norm(self, grad_clip):
    run = _run(recipe='adamw', grad_clip=grad_clip)
    size = sum(x.size for x in jax.tree.leaves(run.shapes))

    @functools.partial(jax.jit, compiler_options=_FAST)
    def first_moments():
      ones = jax.tree.map(lambda x: jnp.ones(x.shape), run.shapes)
      tx = run.optimizer.tx
      _, state = tx.update(ones, tx.init(ones), ones)
      return [x for _, x in optax.tree.get_all_with_path(state, 'mu')]

    # AdamW's first moment is a tenth of the first gradient.
    norm = optax.tree.norm(first_moments())
    np.testing.assert_allclose(norm, 0.1 * (grad_clip or size**0.5), 1e-4)

  @parameterized.parameters(True, False)
  def test_roles_come_from_the_axes(self, tied):
    config = _config()
    config.model.tie_embeddings = tied
    run = _Run(config)
    roles = run.optimizer.roles
    self.assertEqual(roles['embed']['embedding'], 'embedding')
    self.assertEqual(set(jax.tree.leaves(roles['layers']['mlp'])), {'matrix'})
    self.assertEqual(roles['layers']['mlp_norm']['scale'], 'vector')
    self.assertEqual(roles['final_norm']['scale'], 'vector')
    if not tied:
      self.assertEqual(roles['lm_head']['kernel'], 'head')
    self.assertEqual(
      run.optimizer.lr_scales,
      {
        'embedding': 1.0,
        'matrix': 0.33,
        'vector': 1.0,
        **({} if tied else {'head': 1.0}),
      },
    )

  def test_published_factor_gives_way_to_the_role(self):
    config = _config(recipe='sinkgd')
    config.optimizer.matrix_lr_scales = {'sinkgd': 100.0, 'lion': 7.0}
    self.assertEqual(_Run(config).optimizer.lr_scales['matrix'], 100.0)
    config.optimizer.matrix.lr_scale = 2.0
    self.assertEqual(_Run(config).optimizer.lr_scales['matrix'], 2.0)

  def test_explanation_counts_heads_not_columns(self):
    # 2 key heads of 4 columns: tensor=4 divides the columns, not the heads.
    config = _config()
    config.mesh.tensor = 4
    rows = {row.path: row for row in program.build(config).explanation.rows}
    self.assertEqual(rows['layers/attention/k_proj/kernel'].replicated, (2,))
    self.assertEqual(rows['layers/mlp/up_proj/kernel'].replicated, ())

  def test_axis_roles_are_needed(self):
    # Renamed leaves, which no rule about names knows, keep their roles.
    model = config_lib.model_config(_config(), 'cpu')
    shapes = state_lib.abstract_params(model)
    axes = llama.logical_axes(model)
    up_proj = shapes['layers']['mlp']['up_proj']['kernel']
    renamed = {'a': up_proj, 'b': shapes['embed']['embedding']}
    axes = {
      'a': axes['layers']['mlp']['up_proj']['kernel'],
      'b': axes['embed']['embedding'],
    }
    roles = optimizer_lib.make(_config(), renamed, axes).roles
    self.assertEqual(roles['b'], 'embedding')
    self.assertEqual(roles['a'], 'matrix')
