"""Recipes: the parts they are made of, and life in other libraries' loops."""

import gc

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
from flax.training import train_state

import sage_optax
from sage_optax import recipes

_NAMES = tuple((name, name) for name in sage_optax.recipe_names())
_LR = 0.01


def _tree(seed, layers=3):
  shapes = {
    'embed': {'embedding': (16, 8)},
    'layers': {
      'proj': {'kernel': (layers, 8, 6)},
      'norm': {'scale': (layers, 8)},
    },
    'final_norm': {'scale': (8,)},
    'lm_head': {'kernel': (8, 16)},
  }
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.standard_t(3, shape), jnp.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def _steps(tx, params, count=3):
  """Parameters after some steps on the gradients `_tree(1)`, `_tree(2)`..."""
  state = tx.init(params)
  for t in range(count):
    grads = jax.tree.map(lambda g, p: g.reshape(p.shape), _tree(t + 1), params)
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


def _assert_equal(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b
  )


class PartsTest(parameterized.TestCase):
  @parameterized.named_parameters(*_NAMES)
  def test_function_is_the_recipe(self, name):
    params = _tree(0)
    kwargs = {'weight_decay': 0.1, 'matrix': {'lr_scale': 0.7}}
    by_name = sage_optax.recipe(name, _LR, **kwargs)
    by_function = getattr(sage_optax, name)(_LR, **kwargs)
    programs = [
      str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
      for tx in (by_name, by_function)
    ]
    self.assertEqual(*programs)

  def test_lion_and_adamw_are_optax(self):
    params = _tree(0)
    everywhere = {'weight_decay': 0.1, 'vector': {'weight_decay': 0.1}}
    for ours, theirs in (
      (
        sage_optax.adamw(_LR, b2=0.98, **everywhere),
        optax.adamw(_LR, b2=0.98, weight_decay=0.1),
      ),
      (
        sage_optax.lion(_LR, **everywhere),
        optax.lion(_LR, weight_decay=0.1),
      ),
    ):
      _assert_equal(_steps(ours, params), _steps(theirs, params))

  def test_hybrid_routes_each_role(self):
    params, grads = _tree(0), _tree(1)
    tx = sage_optax.sage_hybrid(_LR, matrix={'lr_scale': 0.5})
    updates, _ = tx.update(grads, tx.init(params), params)

    def alone(method, lr, *path):
      grad = grads
      for name in path:
        grad = grad[name]
      direction, _ = method.update(grad, method.init(grad))
      return -lr * direction

    sage = sage_optax.scale_by_sage
    expected = {
      'embed': {'embedding': alone(sage(), _LR, 'embed', 'embedding')},
      'layers': {
        'proj': {
          'kernel': alone(
            sage_optax.scale_by_sinkgd(), _LR * 0.5, 'layers', 'proj', 'kernel'
          )
        },
        'norm': {
          'scale': alone(sage(core_ndim=1), _LR, 'layers', 'norm', 'scale')
        },
      },
      'final_norm': {'scale': alone(sage(), _LR, 'final_norm', 'scale')},
      'lm_head': {'kernel': alone(sage(axis=-1), _LR, 'lm_head', 'kernel')},
    }
    _assert_equal(updates, expected)

  @parameterized.named_parameters(*_NAMES)
  @pytest.mark.nightly_except(
    'sage_hybrid', 'sinkgd', 'galore', 'muon', 'stable_spam', 'adafactor'
  )
  def test_stacked_equals_per_layer(self, name):
    # For every role: a stack of tables, heads, matrices and vectors.
    rng = np.random.default_rng(0)
    layers = 3
    leaves = {
      'embed/embedding': (16, 8),
      'lm_head/kernel': (8, 16),
      'proj/kernel': (8, 6),
      'norm/scale': (8,),
    }
    stacked = {
      k: jnp.asarray(rng.standard_t(3, (layers, *s)), jnp.float32)
      for k, s in leaves.items()
    }
    per_layer = {
      f'{i}/{k}': v[i] for k, v in stacked.items() for i in range(layers)
    }
    # Other leaves have other random projections, so none are taken.
    kwargs = {'projector': 'svd'} if name.startswith('apollo') else {}
    tx = sage_optax.recipe(name, _LR, weight_decay=0.1, **kwargs)
    states = tx.init(stacked), tx.init(per_layer)
    for _ in range(3):
      grads = {
        k: jnp.asarray(rng.standard_t(3, v.shape), jnp.float32)
        for k, v in stacked.items()
      }
      single = {
        f'{i}/{k}': v[i] for k, v in grads.items() for i in range(layers)
      }
      ours, state = tx.update(grads, states[0], stacked)
      expected, other = tx.update(single, states[1], per_layer)
      states = state, other
      for k, v in ours.items():
        for i in range(layers):
          np.testing.assert_allclose(
            v[i], expected[f'{i}/{k}'], rtol=1e-5, atol=1e-7
          )

  @parameterized.parameters(
    ('adamw', 'adamw', 'adamw', 'adamw', 'adamw'),
    ('lion', 'lion', 'lion', 'lion', 'lion'),
    ('sage', 'sage -2', 'sage -1', 'sage -1', 'sage'),
    ('sage_hybrid', 'sage -2', 'sage -1', 'sinkgd', 'sage'),
    ('lion_hybrid', 'lion', 'lion', 'sinkgd', 'adamw'),
    ('sinkgd', 'adamw', 'adamw', 'sinkgd', 'adamw'),
    ('sinkgd_pure', 'sinkgd', 'sinkgd', 'sinkgd', 'sinkgd'),
    ('stable_spam', 'stable_spam', 'stable_spam', 'stable_spam', 'stable_spam'),
    ('spam', 'spam', 'spam', 'spam', 'spam'),
    ('sgd_sai', 'sgd_sai', 'sgd_sai', 'sgd_sai', 'sgd_sai'),
    ('scale', 'scale', 'scale', 'scale', 'adamw'),
    ('apollo', 'adamw', 'adamw', 'apollo', 'adamw'),
    ('apollo_mini', 'adamw', 'adamw', 'apollo', 'adamw'),
    ('galore', 'adamw', 'adamw', 'galore', 'adamw'),
    ('fira', 'adamw', 'adamw', 'fira', 'adamw'),
    ('swan', 'adamw', 'adamw', 'swan', 'adamw'),
    ('soap', 'adamw', 'adamw', 'soap', 'adamw'),
    ('muon', 'adamw', 'adamw', 'muon', 'adamw'),
    ('muon_eq', 'adamw', 'adamw', 'muon', 'adamw'),
    ('normuon', 'adamw', 'adamw', 'muon', 'adamw'),
    ('adafactor', 'adafactor', 'adafactor', 'adafactor', 'adafactor'),
    ('adam_mini', 'adam_mini -1', 'adam_mini -2', 'adam_mini -2', 'adamw'),
    ('coupled_adam', 'adam_mini -2', 'adam_mini -1', 'adamw', 'adamw'),
    ('rmnp', 'adamw', 'adamw', 'scale', 'adamw'),
    ('rms_muon', 'adam_mini -1', 'adam_mini -2', 'muon', 'adamw'),
    ('symmetric', 'scale -1', 'scale', 'muon', 'adamw'),
    ('sage_muon', 'sage -2', 'sage -1', 'muon', 'sage'),
    ('sage_scale', 'sage -2', 'sage -1', 'scale', 'sage'),
  )
  def test_table(self, name, *expected):
    def described(part):
      axis = part.kwargs.get('axis')
      return part.method if axis is None else f'{part.method} {axis}'

    parts = recipes.resolve(name)
    self.assertEqual([described(p) for p in parts.values()], list(expected))

  def test_decay_is_decoupled_and_spares_vectors(self):
    params = _tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    schedule = optax.constant_schedule(_LR)
    tx = sage_optax.sage_hybrid(
      schedule, weight_decay=0.5, matrix={'lr_scale': 0.1}
    )
    updates, _ = tx.update(zeros, tx.init(params), params)
    # Times the learning rate, not times lr_scale.
    expected = jax.tree.map(lambda p: -_LR * 0.5 * p, params)
    expected['final_norm'] = zeros['final_norm']
    expected['layers']['norm'] = zeros['layers']['norm']
    _assert_equal(updates, expected)

  def test_paper_form(self):
    grads = _tree(1)
    tx = sage_optax.sage_hybrid(2e-3, paper=True)
    updates, _ = tx.update(grads, tx.init(grads), grads)
    # Unit norms over fan_out, times 10 times the learning rate.
    norms = np.linalg.norm(updates['layers']['proj']['kernel'], axis=-1)
    np.testing.assert_allclose(norms, 0.02, rtol=1e-5)
    # What is asked for by name wins.
    parts = recipes.resolve('sage_hybrid', paper=True, unit_norm=False)
    self.assertFalse(parts['matrix'].kwargs['unit_norm'])
    self.assertEqual(parts['matrix'].lr_scale, 10.0)

  def test_overrides_win_over_shared_arguments(self):
    parts = recipes.resolve(
      'sage_hybrid', b1=0.7, overrides={'embedding': {'b1': 0.8}}
    )
    self.assertEqual(parts['embedding'].kwargs['b1'], 0.8)
    self.assertEqual(parts['vector'].kwargs['b1'], 0.7)
    self.assertNotIn('b1', parts['matrix'].kwargs)

  @parameterized.parameters(
    ({'name': 'sgae'}, "Unknown recipe 'sgae': use one of adamw, lion"),
    ({'rank': 3}, "No method of recipe 'sage_hybrid' takes rank: use axis, b1"),
    ({'matrix': {'b1': 0.9}}, 'role matrix: sinkgd does not take b1: use eps'),
    ({'name': 'lion', 'paper': True}, "'lion' has no paper form"),
    ({'matrix': 0.5}, 'role matrix: overrides must be a dict, got 0.5'),
    ({'matrix': {'lr_scale': None}}, 'lr_scale must be a number, got None'),
    (
      {'matrix': {'lr_scale': abs}},
      'a number, .*: pass a schedule as',
    ),
    ({'state_dtype': 'foo'}, "state must be one of 'float32', .* got 'foo'"),
    (
      {'name': 'adafactor', 'state_dtype': 'foo'},
      "state must be one of 'float32', .* got 'foo'",
    ),
    ({'embeding': {}}, 'takes embeding: .*embedding.*weight_decay'),
  )
  def test_errors(self, kwargs, message):
    kwargs = {'name': 'sage_hybrid', 'learning_rate': 0.1, **kwargs}
    with self.assertRaisesRegex(ValueError, message):
      sage_optax.recipe(**kwargs)


class MemoryTest(parameterized.TestCase):
  def test_no_array_is_kept(self):
    params = {'dense': {'kernel': jnp.ones((19, 23))}}

    def shapes():
      gc.collect()
      return [a.shape for a in jax.live_arrays() if a.shape == (19, 23)]

    tx = sage_optax.sinkgd_pure(0.1)  # no state
    updates, _ = tx.update(params, tx.init(params), params)
    self.assertLen(shapes(), 2)
    del params, updates
    self.assertEmpty(shapes())

  def test_no_tracer_is_kept(self):
    params = {'dense': {'kernel': jnp.ones((6, 4))}}
    with jax.checking_leaks():
      jax.jit(sage_optax.sage_hybrid(0.1).init)(params)

  def test_complex_parameters_are_refused(self):
    kernel = {'kernel': jnp.ones((6, 4), jnp.complex64)}
    with self.assertRaisesRegex(ValueError, 'split_real_') as caught:
      sage_optax.muon(0.1).init(kernel)
    self.assertNotIn('rules=', str(caught.exception))  # They would not help.
    tx = sage_optax.scale_by_sinkgd()
    with self.assertRaisesRegex(ValueError, 'must be real, got complex64'):
      tx.update(kernel, tx.init(kernel))


class CompatibilityTest(parameterized.TestCase):
  """The numbers of the bare transformation, in everybody's training loop."""

  tx = sage_optax.sage_hybrid(_LR, weight_decay=0.1)

  @parameterized.named_parameters(*_NAMES)
  @pytest.mark.nightly_except('sage_hybrid', 'galore', 'stable_spam')
  def test_wrappers(self, name):
    params = _tree(0)
    factory = getattr(sage_optax, name)
    tx = factory(_LR, weight_decay=0.1)
    expected = _steps(tx, params)
    injected = optax.inject_hyperparams(factory)(
      learning_rate=_LR, weight_decay=0.1
    )
    for wrapped in (
      injected,
      optax.apply_if_finite(tx, 3),
      optax.chain(optax.clip_by_global_norm(1e9), tx),
      optax.MultiSteps(tx, 1),
    ):
      _assert_equal(_steps(wrapped, params), expected)

  def test_multi_steps_averages(self):
    params = _tree(0)
    multi = optax.MultiSteps(self.tx, 2)
    state = multi.init(params)
    for t in (1, 2):
      updates, state = multi.update(_tree(t), state, params)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, _tree(1), _tree(2))
    expected, _ = self.tx.update(mean, self.tx.init(params), params)
    _assert_equal(updates, expected)

  def test_injected_hyperparameters_can_be_changed(self):
    params = _tree(0)
    tx = optax.inject_hyperparams(sage_optax.sage_hybrid)(
      learning_rate=_LR, b1=0.5
    )
    state = tx.init(params)
    self.assertEqual(
      set(state.hyperparams), {'learning_rate', 'weight_decay', 'b1'}
    )
    state.hyperparams['learning_rate'] = 2 * _LR
    updates, _ = jax.jit(tx.update)(_tree(1), state, params)
    bare = sage_optax.sage_hybrid(2 * _LR, b1=0.5)
    expected, _ = bare.update(_tree(1), bare.init(params), params)
    _assert_equal(updates, expected)

  def test_linen_train_state(self):
    model = nn.Dense(6)
    params = model.init(jax.random.key(0), jnp.ones((1, 4)))['params']
    grads = jax.tree.map(jnp.cos, params)
    state = train_state.TrainState.create(
      apply_fn=model.apply, params=params, tx=self.tx
    )
    state = jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, grads)
    updates, _ = self.tx.update(grads, self.tx.init(params), params)
    _assert_equal(state.params, optax.apply_updates(params, updates))

  def test_nnx_optimizer(self):
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, self.tx, wrt=nnx.Param)
    params = {'kernel': model.kernel[...], 'bias': model.bias[...]}
    grads = jax.tree.map(jnp.cos, params)

    @nnx.jit
    def step(model, optimizer):
      state = jax.tree.map(jnp.cos, nnx.state(model, nnx.Param))
      optimizer.update(model, state)

    step(model, optimizer)
    updates, _ = self.tx.update(grads, self.tx.init(params), params)
    expected = optax.apply_updates(params, updates)
    _assert_equal(
      {'kernel': model.kernel[...], 'bias': model.bias[...]}, expected
    )

  def test_equinox_module_with_none_leaves(self):
    class Model(eqx.Module):
      kernel: jax.Array
      bias: jax.Array | None
      activation: object = jax.nn.relu

    model = Model(_tree(0)['layers']['proj']['kernel'][0], None)
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = jax.tree.map(jnp.cos, params)
    updates, _ = self.tx.update(grads, self.tx.init(params), params)
    model = eqx.apply_updates(model, updates)
    bare = {'kernel': params.kernel}
    expected, _ = self.tx.update(
      {'kernel': grads.kernel}, self.tx.init(bare), bare
    )
    _assert_equal(model.kernel, optax.apply_updates(bare, expected)['kernel'])
    self.assertIsNone(model.bias)

  def test_equinox_module_that_is_not_filtered(self):
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    tx = sage_optax.sage_hybrid(0.1)
    state = tx.init(params)
    for call in (
      lambda: tx.init(model),
      lambda: tx.update(params, state, model),
      lambda: sage_optax.explain('sage_hybrid', model),
    ):
      with self.assertRaisesRegex(ValueError, 'activation is not an array'):
        call()
    grads = eqx.tree_at(lambda tree: tree.layers[0].bias, params, None)
    with self.assertRaisesRegex(ValueError, '4 parameters, but 3 gradients'):
      tx.update(grads, state, params)

  def test_haiku(self):
    model = hk.transform(lambda x: hk.Linear(6)(x))
    params = model.init(jax.random.key(0), jnp.ones((1, 4)))
    grads = jax.tree.map(jnp.cos, params)
    updates, _ = self.tx.update(grads, self.tx.init(params), params)
    bare = {'kernel': params['linear']['w'], 'bias': params['linear']['b']}
    expected, _ = self.tx.update(
      {'kernel': grads['linear']['w'], 'bias': grads['linear']['b']},
      self.tx.init(bare),
      bare,
    )
    _assert_equal(updates['linear']['w'], expected['kernel'])
    _assert_equal(updates['linear']['b'], expected['bias'])
