"""The Llama against Hugging Face's, plain formulas and published figures."""

import dataclasses
import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from models import attention, cross_entropy, hf, layers, llama

_FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures' / 'llama.npz'
_VARIANTS = {'mha': (4, False), 'mha_tied': (4, True)}
_VARIANTS |= {'gqa': (2, False), 'gqa_tied': (2, True)}

SMALL = llama.LlamaConfig(
  vocab_size=61,
  hidden_size=32,
  intermediate_size=44,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
)
TIED = dataclasses.replace(SMALL, tie_embeddings=True)


# Compiles with little optimization: the models are small, compiling is not.
_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def _hf_variant(name):
  """Returns config, state dict, tokens and logits of a fixture's model."""
  kv_heads, tied = _VARIANTS[name]
  config = llama.LlamaConfig(64, 32, 44, 2, 4, kv_heads, tie_embeddings=tied)
  with np.load(_FIXTURE) as file:
    arrays = {
      key.removeprefix(f'{name}/'): file[key]
      for key in file
      if key.startswith(f'{name}/')
    }
  tokens, logits = arrays.pop('tokens'), arrays.pop('logits')
  state = {key.removeprefix('state/'): x for key, x in arrays.items()}
  return config, state, tokens, logits


def _batch(config, batch=3, seq_len=13):
  """Returns tokens, targets and weights, some of them zero."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, config.vocab_size, (batch, seq_len + 1))
  weights = rng.uniform(0, 2, (batch, seq_len)) * (rng.random(seq_len) < 0.8)
  return (
    jnp.asarray(tokens[:, :-1], jnp.int32),
    jnp.asarray(tokens[:, 1:], jnp.int32),
    jnp.asarray(weights, jnp.float32),
  )


def _plain_losses(params, tokens, targets, config):
  """The textbook cross-entropy [B, S], of all logits at once."""
  log_probs = jax.nn.log_softmax(llama.apply(params, tokens, config))
  return -jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]


def _plain_loss(params, tokens, targets, weights, config):
  losses = _plain_losses(params, tokens, targets, config)
  return jnp.sum(losses * weights)


def _loss(params, tokens, targets, weights, config, **kwargs):
  return llama.loss(params, tokens, targets, weights, config, **kwargs)[0]


def _shapes(config):
  return jax.eval_shape(lambda: llama.init(jax.random.key(0), config))


def _params(config, seed=0):
  """Returns random parameters, those of the norms too, compiling nothing."""
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    values = 0.2 * rng.standard_normal(shape.shape)
    offset = 1 if 'scale' in jax.tree_util.keystr(path) else 0
    return jnp.asarray(offset + values, shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, _shapes(config))


# Jitted, as one compilation is faster than one for every operation.
_apply = _jit(llama.apply, static_argnames='config')
_token_losses = _jit(llama.token_losses, static_argnames='config')


def _value_and_grad(fn, config, params, batch):
  fn = functools.partial(fn, config=config)
  return _jit(jax.value_and_grad(fn))(params, *batch)


@functools.cache
def _plain(config):
  """Returns parameters, a batch, and their loss and gradients."""
  params, batch = _params(config), _batch(config)
  return params, batch, _value_and_grad(_plain_loss, config, params, batch)


def _assert_close(tree, expected, rtol=1e-5):
  """Closeness relative to each array's largest entry."""

  def check(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.max(np.abs(y)))

  jax.tree.map(check, tree, expected)


class HuggingFaceTest(parameterized.TestCase):
  @parameterized.product(
    variant=tuple(_VARIANTS), form=('chunked', 'dot_product')
  )
  def test_logits_are_those_of_hugging_face(self, variant, form):
    config, state, tokens, expected = _hf_variant(variant)
    config = dataclasses.replace(config, attention=form)
    logits = _apply(hf.from_hf(state, config), tokens, config)
    chex.assert_type(logits, jnp.float32)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)

  @parameterized.parameters('mha', 'gqa_tied')
  def test_round_trip(self, variant):
    config, state, _, _ = _hf_variant(variant)
    chex.assert_trees_all_equal(
      hf.to_hf(hf.from_hf(state, config), config), state
    )
    params = _params(config)
    back = hf.from_hf(hf.to_hf(params, config), config)
    chex.assert_trees_all_equal(back, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, _shapes(config))

  def test_old_buffers_and_the_head_of_a_tied_model_are_ignored(self):
    config, state, _, _ = _hf_variant('gqa_tied')
    expected = hf.from_hf(state, config)
    state['lm_head.weight'] = state['model.embed_tokens.weight']
    state['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(4)
    chex.assert_trees_all_equal(hf.from_hf(state, config), expected)

  def test_foreign_states_are_named(self):
    config, state, _, _ = _hf_variant('gqa')
    short = dict(state)
    del short['model.norm.weight']
    with self.assertRaisesRegex(
      ValueError, r"missing names \['model.norm.weight'\]"
    ):
      hf.from_hf(short, config)
    with self.assertRaisesRegex(ValueError, 'unknown.*q_proj.bias'):
      hf.from_hf({**state, 'model.layers.0.self_attn.q_proj.bias': 0}, config)
    wrong = dataclasses.replace(config, num_kv_heads=4)
    with self.assertRaisesRegex(ValueError, r'k_proj.*\(2, 32, 16\)'):
      hf.from_hf(state, wrong)
    tied = dataclasses.replace(config, tie_embeddings=True)
    with self.assertRaisesRegex(ValueError, 'lm_head.weight differs'):
      hf.from_hf(state, tied)


class AttentionTest(parameterized.TestCase):
  @parameterized.parameters((1, 4, 1), (12, 4, 3), (13, 5, 3), (13, 64, 2))
  def test_chunked_equals_dot_product(self, seq_len, chunk, groups):
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (2, seq_len, 2, 8)
    q = jax.random.normal(keys[0], (*shape[:2], 2 * groups, 8))
    k, v = (jax.random.normal(key, shape) for key in keys[1:3])
    direction = jax.random.normal(keys[3], q.shape)

    @functools.partial(_jit, static_argnums=0)
    def value_and_grads(attend):
      out, vjp = jax.vjp(attend, q, k, v)
      return out, vjp(direction)

    chunked = functools.partial(attention.chunked, chunk=chunk)
    chex.assert_trees_all_close(
      value_and_grads(chunked),
      value_and_grads(attention.dot_product),
      rtol=0,
      atol=5e-6,
    )

  @parameterized.parameters('chunked', 'dot_product')
  def test_a_token_changes_no_logits_before_it(self, form):
    config = dataclasses.replace(SMALL, attention=form)
    params = _params(config)
    # More than one chunk of queries.
    tokens = jnp.tile(_batch(config)[0], (1, 11))
    changed = tokens.at[:, 70].set((tokens[:, 70] + 1) % config.vocab_size)
    before, after = (_apply(params, x, config) for x in (tokens, changed))
    np.testing.assert_array_equal(before[:, :70], after[:, :70])
    different = np.any(np.asarray(before != after), axis=(0, 2))
    self.assertTrue(different[70:].all())


class LossTest(parameterized.TestCase):
  @parameterized.parameters(
    (SMALL, 0), (SMALL, 5), (TIED, 1), (TIED, 5), (TIED, 64)
  )
  def test_equals_the_plain_form(self, config, loss_chunk):
    params, batch, expected = _plain(config)
    config = dataclasses.replace(config, loss_chunk=loss_chunk)
    value, grads = _value_and_grad(_loss, config, params, batch)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    _assert_close(grads, expected[1])

  @parameterized.parameters(0, 5)
  def test_losses_of_tokens_and_sums(self, loss_chunk):
    config = dataclasses.replace(SMALL, loss_chunk=loss_chunk)
    params = _params(SMALL)
    tokens, targets, weights = _batch(config)
    losses = _token_losses(params, tokens, targets, config)
    plain = _jit(functools.partial(_plain_losses, config=config))(
      params, tokens, targets
    )
    np.testing.assert_allclose(losses, plain, rtol=1e-5, atol=1e-6)
    sums = _jit(llama.loss, static_argnames='config')(
      params, tokens, targets, weights, config
    )
    np.testing.assert_allclose(sums[0], jnp.sum(plain * weights), rtol=1e-5)
    np.testing.assert_allclose(sums[1], jnp.sum(weights), rtol=1e-6)

  def test_gradients_of_token_losses_and_of_weights(self):
    params = _params(TIED)
    config = dataclasses.replace(TIED, loss_chunk=5)
    tokens, targets, weights = _batch(config)

    def summed(params, weights):
      losses = llama.token_losses(params, tokens, targets, config)
      return jnp.sum(losses * weights)

    def loss(params, weights):
      return _loss(params, tokens, targets, weights, config)

    _assert_close(
      _jit(jax.grad(loss, (0, 1)))(params, weights),
      _jit(jax.grad(summed, (0, 1)))(params, weights),
    )

  def test_is_scaled_by_what_comes_after(self):
    params = _params(SMALL)
    batch = _batch(SMALL)
    scaled = _jit(jax.grad(lambda p: 0.25 * _loss(p, *batch, SMALL)))
    _, grads = _value_and_grad(_loss, SMALL, params, batch)
    _assert_close(scaled(params), jax.tree.map(lambda x: 0.25 * x, grads))

  @parameterized.parameters(False, True)
  def test_the_tables_gradient_is_summed_in_float32(self, tied):
    # 2048 equal contributions: a sum in bfloat16 would stop at 256 of them.
    steps, width, vocab = 2048, 4, 8
    hidden = jnp.ones([1, steps, width], jnp.bfloat16)
    shape = (vocab, width) if tied else (width, vocab)
    targets = jnp.zeros([1, steps], jnp.int32)
    head = cross_entropy.Head(tied, 1, lambda x, axes: x)

    def loss(table):
      weights = jnp.ones([1, steps])
      return cross_entropy.weighted_loss(head, hidden, table, targets, weights)

    grad = _jit(jax.grad(loss))(jnp.zeros(shape, jnp.float32))
    chex.assert_type(grad, jnp.float32)
    one = np.full([vocab], 1 / vocab)
    one[0] -= 1
    expected = np.outer(steps * one, np.ones(width))
    np.testing.assert_allclose(grad, expected if tied else expected.T, 1e-3)

  @parameterized.parameters(False, True)
  def test_bfloat16_logits_are_summed_in_float32(self, tied):
    config = dataclasses.replace(
      SMALL, compute_dtype='bfloat16', tie_embeddings=tied
    )
    params = _params(config)
    tokens, targets, weights = _batch(config)
    logits = _apply(params, tokens, config)
    chex.assert_type(logits, jnp.float32)
    rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
    self.assertLess(float(jnp.mean(rounded == logits)), 0.1)
    value, grads = _value_and_grad(
      _loss, config, params, (tokens, targets, weights)
    )
    wide = dataclasses.replace(config, compute_dtype='float32')
    losses = _token_losses(params, tokens, targets, wide)
    expected = jnp.sum(losses * weights)
    np.testing.assert_allclose(value, expected, rtol=2e-2)
    chex.assert_trees_all_equal_dtypes(grads, params)

  @parameterized.parameters('loss', 'token_losses')
  def test_no_array_of_the_size_of_all_logits(self, name):
    config = llama.LlamaConfig(
      8192, 32, 44, 2, 4, tie_embeddings=True, loss_chunk=8
    )
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    weights = jax.ShapeDtypeStruct((4, 64), jnp.float32)
    params = _shapes(config)
    logits_bytes = 4 * 64 * config.vocab_size * 4

    def temporaries(losses):
      def fn(params, tokens, targets, weights):
        return jnp.sum(losses(params, tokens, targets, config) * weights)

      def chunked(params, tokens, targets, weights):
        return _loss(params, tokens, targets, weights, config)

      step = jax.value_and_grad(chunked if losses is llama.loss else fn)
      step = _jit(step)
      compiled = step.lower(params, tokens, tokens, weights).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    self.assertGreater(temporaries(_plain_losses), logits_bytes)
    self.assertLess(temporaries(getattr(llama, name)), logits_bytes)

  def test_chunks_follow_from_vocabulary_and_width(self):
    hidden = jax.ShapeDtypeStruct((2, 100, 8), jnp.float32)
    for vocab, positions in ((64, 100), (65, 50), (640, 10), (10**6, 1)):
      for tied in (False, True):
        shape = (vocab, 8) if tied else (8, vocab)
        table = jax.ShapeDtypeStruct(shape, jnp.float32)
        head = cross_entropy.Head(tied, 0, lambda x, axes: x)
        self.assertEqual(head.positions(hidden, table), positions)


class ModelTest(parameterized.TestCase):
  @parameterized.parameters(('dots', 'chunked'), ('full', 'dot_product'))
  def test_rematerialisation_changes_no_value(self, remat, form):
    config = dataclasses.replace(SMALL, attention=form)
    params = _params(config)
    batch = _batch(config)
    expected = _value_and_grad(_loss, config, params, batch)
    config = dataclasses.replace(config, remat=remat)
    _assert_close(_value_and_grad(_loss, config, params, batch), expected)

  def test_rematerialisation_saves_memory(self):
    config = dataclasses.replace(SMALL, num_layers=16)
    params = _shapes(config)
    batch = _batch(config, batch=8, seq_len=64)

    def temporaries(remat):
      step = _jit(
        jax.grad(
          functools.partial(
            _loss, config=dataclasses.replace(config, remat=remat)
          )
        )
      )
      analysis = step.lower(params, *batch).compile().memory_analysis()
      return analysis.temp_size_in_bytes

    none, dots, full = map(temporaries, ('none', 'dots', 'full'))
    self.assertLess(dots, 0.7 * none)
    self.assertLess(full, 0.7 * dots)

  @parameterized.parameters(SMALL, TIED)
  def test_logical_axes_match_the_parameters(self, config):
    shapes = _shapes(config)
    axes = llama.logical_axes(config)
    sizes = {
      'layers': 2,
      'vocab': 61,
      'embed': 32,
      'mlp': 44,
      'heads': 32,
      'kv_heads': 16,
    }
    expected = jax.tree.map(
      lambda names: tuple(sizes[name] for name in names),
      axes,
      is_leaf=lambda x: isinstance(x, tuple),
    )
    self.assertEqual(jax.tree.map(lambda x: x.shape, shapes), expected)

  def test_parameters_at_initialization(self):
    config = llama.LlamaConfig(256, 64, 128, 3, 4)
    init = _jit(llama.init, static_argnames='config')
    params = init(jax.random.key(0), config)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      name = jax.tree_util.keystr(path)
      if 'norm' in name:
        np.testing.assert_array_equal(leaf, np.ones(leaf.shape), name)
      else:
        np.testing.assert_allclose(jnp.std(leaf), 0.02, rtol=0.05, err_msg=name)
      if 'kernel' in name and 'layers' in name:
        self.assertFalse(bool(jnp.any(leaf[0] == leaf[1])), name)
    mlp = params['layers']['mlp']
    gate, up = (mlp[name]['kernel'] for name in ('gate_proj', 'up_proj'))
    self.assertFalse(bool(jnp.any(gate == up)))

  def test_number_of_parameters(self):
    # The 1.3B model of SAGE, whose shapes follow from published state sizes.
    config = llama.LlamaConfig(
      128256, 2048, 5461, 24, 32, 8, tie_embeddings=True
    )
    self.assertEqual(f'{llama.num_params(config):.4e}', '1.3197e+09')
    params = _params(SMALL)
    self.assertEqual(
      llama.num_params(SMALL), sum(x.size for x in jax.tree.leaves(params))
    )

  def test_operations_per_token(self):
    # Per layer 32 x 32 for q and o, 32 x 16 for k and v, 3 of 32 x 44, and
    # two norms; a head of 32 x 61; the last norm.
    params = 2 * (2 * 1024 + 2 * 512 + 3 * 1408 + 64) + 1952 + 32
    expected = 6 * params + 12 * 2 * 100 * 32
    self.assertEqual(llama.flops_per_token(SMALL, 100), expected)
    self.assertEqual(llama.flops_per_token(TIED, 100), expected)

  def test_tokens_outside_the_vocabulary_are_not_taken_for_others(self):
    params = _params(SMALL)
    tokens = jnp.array([[1, SMALL.vocab_size]])
    logits = _apply(params, tokens, SMALL)
    self.assertTrue(bool(jnp.isnan(logits).all()))

  @parameterized.parameters(
    ({'num_heads': 5}, 'num_heads=5'),
    ({'num_kv_heads': 3}, 'num_kv_heads=3'),
    ({'attention': 'flash'}, 'chunked, dot_product'),
    ({'remat': 'some'}, 'none, dots, full'),
  )
  def test_bad_configurations_are_named(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(SMALL, **change)

  @parameterized.parameters((False, 'dot_product'), (True, 'chunked'))
  def test_float64_gradient_is_the_slope(self, tied, form):
    with jax.enable_x64(True):
      config = dataclasses.replace(
        SMALL,
        tie_embeddings=tied,
        attention=form,
        compute_dtype='float64',
        param_dtype='float64',
        loss_chunk=5,
      )
      params = _params(config)
      direction = _params(config, 1)
      batch = _batch(config)
      value, grads = _value_and_grad(_loss, config, params, batch)
      for leaf in (value, *jax.tree.leaves(grads)):
        chex.assert_type(leaf, jnp.float64)

      @_jit
      def along(t):
        moved = jax.tree.map(lambda p, d: p + t * d, params, direction)
        return _loss(moved, *batch, config)

      slope = sum(
        jnp.vdot(g, d)
        for g, d in zip(
          jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True
        )
      )
      step = 1e-5
      difference = (along(step) - along(-step)) / (2 * step)
      np.testing.assert_allclose(slope, difference, rtol=1e-7)

  def test_projection_on_cpu_has_the_gradients_of_a_product(self):
    rng = np.random.default_rng(0)
    x, kernel, g = (
      jnp.asarray(rng.standard_normal(shape), jnp.float32)
      for shape in ((2, 5, 8), (8, 6), (2, 5, 6))
    )
    out, pullback = jax.vjp(layers._project, x, kernel)
    expected, expected_pullback = jax.vjp(jnp.matmul, x, kernel)
    chex.assert_trees_all_close(out, expected, rtol=1e-5)
    chex.assert_trees_all_close(pullback(g), expected_pullback(g), rtol=1e-5)

  @parameterized.product(
    platform=('cpu', 'tpu'), attention=('chunked', 'dot_product')
  )
  def test_the_platform_chooses_the_projection(self, platform, attention):
    config = dataclasses.replace(SMALL, platform=platform, attention=attention)
    block = layers.Block(config, rngs=nnx.Rngs(0))
    expected = {'cpu': layers._project_by, 'tpu': jax.lax.dot_general}
    found = block.mlp.up_proj.dot_general
    self.assertIs(found, expected[platform])


class MeshTest(parameterized.TestCase):
  @parameterized.parameters((SMALL, 'dot_product'), (TIED, 'chunked'))
  def test_sharded_microbatches_give_the_same_gradients(self, config, form):
    config = dataclasses.replace(
      config, vocab_size=64, attention=form, remat='dots', loss_chunk=5
    )
    params = _params(config)
    batch = _batch(config, batch=8)
    expected = _value_and_grad(_loss, config, params, batch)
    mesh = jax.make_mesh(
      (2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3
    )
    tensor = ('heads', 'kv_heads', 'mlp', 'vocab')
    seen = set()

    def constrain(x, axes):
      seen.add(axes)
      self.assertEqual(len(axes), x.ndim)
      spec = [('data', 'fsdp') if a == 'batch' else None for a in axes]
      spec = [
        'tensor' if a in tensor else s for a, s in zip(axes, spec, strict=True)
      ]
      return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    def specs(names):
      axes = {'embed': 'fsdp'} | dict.fromkeys(tensor, 'tensor')
      return NamedSharding(mesh, P(*(axes.get(name) for name in names)))

    shardings = jax.tree.map(
      specs,
      llama.logical_axes(config),
      is_leaf=lambda x: isinstance(x, tuple),
    )

    def step(params, *batch):
      def body(carry, batch):
        out = jax.value_and_grad(_loss)(
          params, *batch, config, constrain=constrain
        )
        return jax.tree.map(jnp.add, carry, out), None

      batch = jax.tree.map(lambda x: x.reshape(2, 4, -1), batch)
      zeros = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, params))
      return jax.lax.scan(body, zeros, batch)[0]

    rows = NamedSharding(mesh, P(('data', 'fsdp')))
    sharded = _jit(step, in_shardings=(shardings, rows, rows, rows))
    _assert_close(sharded(params, *batch), expected)
    heads = ('batch', 'sequence', 'heads', None)
    self.assertContainsSubset(
      {
        ('batch', 'sequence', 'embed'),
        ('batch', 'sequence', 'mlp'),
        ('batch', 'sequence', 'vocab'),
        heads,
      },
      seen,
    )


if __name__ == '__main__':
  pytest.main([__file__])
