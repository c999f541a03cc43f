"""Under optax.inject_hyperparams, without static_args: right, or refused."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax
from sage_optax import recipes, roles
from sage_optax.leaves import arguments

_PARAMS = {
  'f': {'kernel': jnp.ones((4, 6))},
  'g_proj': {'weight': jnp.ones((6, 4))},
}
_TORCH = sage_optax.layout.TORCH


def _inject(factory, **kwargs):
  return optax.inject_hyperparams(factory)(learning_rate=0.1, **kwargs)


class InjectTest(parameterized.TestCase):
  @parameterized.parameters(
    {'matrix_axes': [('weight', ((1,), (0,)))]},
    {'preset': _TORCH},
    {'rules': [('kernel', 'head')], 'preset': _TORCH},
    {'roles': {'f': 'matrix', 'g_proj': 'head'}, 'preset': _TORCH},
    {'preset': _TORCH, 'default_role': 'auto', 'matrix': {'lr_scale': 0.5}},
    {'preset': _TORCH, 'scan_axis': None, 'num_iters': 2},
  )
  def test_right(self, **kwargs):
    factory = sage_optax.sage_hybrid
    got, _ = _first_step(_inject(factory, **kwargs))
    expected, _ = _first_step(factory(0.1, **kwargs))
    jax.tree.map(np.testing.assert_array_equal, got, expected)

  @parameterized.parameters(
    ({'roles': functools.partial(roles.assign)}, 'got a scalar'),
    ({'roles': lambda p: jax.tree.map(lambda _: 'matrix', p)}, 'the string'),
    ({'matrix_axes': lambda path: None}, r"static_args=\('matrix_axes',\)"),
    ({'weight_decay': '0.1'}, "weight_decay must be a number.* got '0.1'"),
    ({'b1': '0.9'}, "b1 must be a number, got the string '0.9'"),
  )
  def test_refused(self, kwargs, message):
    tx = _inject(sage_optax.sage_hybrid, **{'preset': _TORCH, **kwargs})
    with self.assertRaisesRegex(ValueError, message):
      tx.init(_PARAMS)

  def test_recipe_by_name_is_refused(self):
    tx = _inject(sage_optax.recipe, name='lion')
    with self.assertRaisesRegex(ValueError, 'use sage_optax.lion instead'):
      tx.init(_PARAMS)

  def test_traced_integers_are_refused(self):
    tx = _inject(sage_optax.galore, rank=2, preset=_TORCH)
    state = tx.init(_PARAMS)
    with self.assertRaisesRegex(ValueError, r"static_args=\('rank',\)"):
      jax.jit(tx.update)(_PARAMS, state, _PARAMS)

  def test_decays_that_are_rounded_to_one_are_refused(self):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), _PARAMS)
    tx = _inject(sage_optax.adamw, b2=0.999, preset=_TORCH)
    with self.assertRaisesRegex(ValueError, 'hyperparam_dtype=jnp.float32'):
      tx.init(params)
    _inject(sage_optax.adamw, preset=_TORCH).init(params)

  def test_dtypes_that_were_called_are_refused(self):
    tx = _inject(sage_optax.adamw, state_dtype=jnp.bfloat16, preset=_TORCH)
    with self.assertRaisesRegex(ValueError, "pass the name 'bfloat16'"):
      tx.init(_PARAMS)
    tx = _inject(sage_optax.adamw, state_dtype='bfloat16', preset=_TORCH)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(tx.init(_PARAMS))}
    self.assertIn('bfloat16', dtypes)

  @parameterized.parameters('adam', 'adam_mini', 'stable_spam', 'sage', 'lion')
  def test_a_method_with_such_decays_is_refused(self, name):
    params = jnp.ones((4, 4), jnp.bfloat16)
    factory = getattr(sage_optax, f'scale_by_{name}')
    tx = optax.inject_hyperparams(factory)()
    with self.assertRaisesRegex(ValueError, 'has the type bfloat16, in which'):
      tx.update(params, tx.init(params), params)
    tx = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)()
    updates, _ = tx.update(params, tx.init(params), params)
    self.assertTrue(jnp.isfinite(updates).all())

  @parameterized.parameters('0.1', None, True)
  def test_learning_rate(self, rate):
    with self.assertRaisesRegex(ValueError, 'learning_rate must be a number'):
      sage_optax.adamw(rate)

  def test_roles_of_one_string(self):
    with self.assertRaisesRegex(ValueError, "got the string 'matrix'"):
      sage_optax.adamw(0.1, roles='matrix').init(_PARAMS)

  def test_flat_parameters(self):
    flat, _ = jax.flatten_util.ravel_pytree(_PARAMS)
    with self.assertRaisesRegex(ValueError, 'ravel_pytree and optax.flatten'):
      sage_optax.muon(0.1).init(flat)
    with self.assertRaisesRegex(ValueError, 'ravel_pytree and optax.flatten'):
      optax.flatten(sage_optax.muon(0.1)).init(_PARAMS)
    sage_optax.lion(0.1).init(flat)


class SignatureTest(parameterized.TestCase):
  """The functions show the defaults of the table."""

  @parameterized.parameters(*sage_optax.recipe_names())
  def test_defaults(self, name):
    function = inspect.unwrap(getattr(sage_optax, name))
    own = inspect.signature(function, follow_wrapped=False).parameters
    shown = [n for n in own if n not in ('learning_rate', 'options')]
    self.assertCountEqual(shown, recipes.shared_names(recipes.RECIPES[name]))
    parts = recipes.resolve(name)
    for key in shown:
      values = []
      for part in parts.values():
        method = inspect.signature(recipes.METHODS[part.method]).parameters
        if key in method:
          values.append(part.kwargs.get(key, method[key].default))
      default = own[key].default
      if default is arguments.OWN:
        self.assertNotEmpty(values)
      elif key != 'paper':
        self.assertEqual({default}, set(values), key)

  @parameterized.parameters(*sage_optax.recipe_names())
  def test_each_is_a_function_with_words_of_its_own(self, name):
    function = getattr(sage_optax, name)
    source = inspect.getsource(function)
    self.assertIn(f'def {name}(', source)
    for key in ('learning_rate', 'rules', 'matrix_axes', 'weight_decay'):
      self.assertIn(key, inspect.signature(function).parameters)
    for key in inspect.signature(inspect.unwrap(function)).parameters:
      self.assertIn(f'{key}', function.__doc__)

  def test_adamw_has_the_order_of_optax(self):
    ours = list(inspect.signature(sage_optax.adamw).parameters)[:4]
    theirs = list(inspect.signature(optax.adamw).parameters)[:4]
    self.assertEqual(ours, theirs)
    with self.assertRaises(TypeError):
      sage_optax.adamw(0.1, 0.9, 0.999, 1e-8, 1e-4)


def _first_step(tx):
  grads = jax.tree.map(jnp.cos, _PARAMS)
  return tx.update(grads, tx.init(_PARAMS), _PARAMS)
