"""On a stacked 24-layer Llama each method gets the leaves it is meant for."""

import functools

import jax
import jax.numpy as jnp
import optax
from absl.testing import parameterized

import sage_optax
from models import llama
from sage_optax import recipes
from train import config as config_lib

_LAYERS = 24


@functools.cache
def _params():
  config = config_lib.Config()
  config.model.num_layers = _LAYERS
  model = config_lib.model_config(config, 'cpu')
  return jax.eval_shape(lambda: llama.init(jax.random.key(0), model))


class OursTest(parameterized.TestCase):
  @parameterized.parameters(*sage_optax.recipe_names())
  def test_every_leaf_has_its_method(self, name):
    rows = sage_optax.explain(name, _params()).rows
    roles = {row.path: row.role for row in rows}
    self.assertEqual(roles.pop('embed/embedding'), 'embedding')
    self.assertEqual(roles.pop('lm_head/kernel'), 'head')
    for path, role in roles.items():
      wanted = 'matrix' if path.endswith('kernel') else 'vector'
      self.assertEqual(role, wanted, path)
    for row in rows:
      self.assertEqual(
        row.method, getattr(recipes.RECIPES[name], row.role).method
      )
    kernels = [row for row in rows if row.role == 'matrix']
    self.assertLen(kernels, 7)
    for row in kernels:
      self.assertStartsWith(row.units, f'{_LAYERS} of ')

  def test_matrix_methods_see_one_matrix_per_layer(self):
    # The state has the rank's size per layer, not the matrix's.
    rows = sage_optax.explain('galore', _params(), rank=64).rows
    for row in rows:
      if row.role != 'matrix':
        continue
      layers, fan_in, fan_out = row.shape
      elements = 64 * (2 * max(fan_in, fan_out) + min(fan_in, fan_out))
      self.assertEqual(row.state_bytes, 4 * layers * elements, row.path)


class OptaxTest(parameterized.TestCase):
  """Why roles are not told from the number of axes."""

  def test_muon_trains_no_stacked_kernel(self):
    state = jax.eval_shape(optax.contrib.muon(1e-3).init, _params())
    muon = state.inner_states['muon'].inner_state[0].mu
    shapes = {leaf.shape for leaf in jax.tree.leaves(muon)}
    # Embedding and head, which are not for it, and norm scales of all layers.
    self.assertEqual(shapes, {(32000, 512), (512, 32000), (_LAYERS, 512)})

  def test_galore_projects_no_stacked_kernel(self):
    galore = optax.contrib.galore
    kernel = jax.ShapeDtypeStruct((_LAYERS, 64, 32), jnp.float32)
    state = jax.eval_shape(galore(1e-3, rank=4).init, kernel)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    self.assertEqual(sizes.count(kernel.size), 2)  # Adam's, of full size
    # Axes can be named, but none of them can be a batch of matrices.
    axes = optax.contrib.GaLoreDimensionNumbers(-2, -1)
    with self.assertRaisesRegex(ValueError, 'dimensions'):
      jax.eval_shape(
        galore(1e-3, rank=4, weight_dimension_numbers=axes).init, kernel
      )
