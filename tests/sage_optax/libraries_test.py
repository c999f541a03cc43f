"""A few steps in the loops of other libraries equal those on 2-D matrices."""

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
from sage_optax import layout
from sage_optax.leaves import metadata

_LR = 0.01
_EQUINOX = {'preset': layout.EQUINOX}
_HAIKU = {'preset': layout.HAIKU}
_STEPS = 2
_D, _HEADS, _DIM, _F, _LAYERS = 6, 2, 4, 10, 3


def _like(tree, seed):
  """Gradients or parameters with the shapes of `tree`."""
  leaves, treedef = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    treedef,
    [jnp.asarray(rng.standard_t(4, x.shape), jnp.float32) for x in leaves],
  )


class _Attention(nn.Module):
  """Flax's attention in a layer, boxed as Flax's examples box it."""

  @nn.compact
  def __call__(self, x):
    def boxed(*names):
      init = nn.initializers.normal()
      return nn.with_logical_partitioning(init, names)

    x = nn.LayerNorm(name='norm', use_bias=False)(x)
    x = nn.DenseGeneral(
      (_HEADS, _DIM), name='query', kernel_init=boxed('embed', 'heads', 'kv')
    )(x)
    x = nn.DenseGeneral(_D, axis=(-2, -1), name='out')(x)
    return nn.Dense(_F, kernel_init=boxed('embed', 'mlp'), name='up')(x)


def _linen():
  return jax.eval_shape(
    _Attention().init, jax.random.key(0), jnp.ones((1, _D))
  )['params']


# Leaf -> as NumPy makes matrices of it, and back.
_FLAT = {
  'query/kernel': (_D, _HEADS * _DIM),
  'query/bias': (_HEADS * _DIM,),
  'out/kernel': (_HEADS * _DIM, _D),
}


def _run(tx, params, count=_STEPS):
  state = tx.init(params)
  for t in range(count):
    updates, state = tx.update(_like(params, t + 1), state, params)
    params = optax.apply_updates(params, updates)
  return params


def _names(tree):
  return [
    metadata.leaf_path(key)[0] for key, _ in jax.tree.leaves_with_path(tree)
  ]


def _change(tree, change):
  """`change(path, leaf)` of all leaves, in the same boxes."""
  return jax.tree.unflatten(
    jax.tree.structure(tree),
    [
      change(path, leaf)
      for path, leaf in zip(_names(tree), jax.tree.leaves(tree), strict=True)
    ],
  )


def _flat(path, leaf):
  for name, shape in _FLAT.items():
    if path.endswith(name):
      return leaf.reshape(shape)
  return leaf


def _transposed(path, leaf):
  return leaf.T if path.endswith('weight') and leaf.ndim == 2 else leaf


def _front(path, leaf):
  return jnp.moveaxis(leaf, 1, 0) if leaf.ndim > 1 else leaf


def _plain(path):
  vector = path.endswith(('bias', 'scale', '/b', 'offset'))
  return ((), (-1,)) if vector else ((-2,), (-1,))


def _scanned():
  shapes = {
    'norm': {'scale': (_D, _LAYERS)},
    'up': {'kernel': (_D, _LAYERS, _F), 'bias': (_F, _LAYERS)},
    'down': {'kernel': (_F, _LAYERS, _D)},
  }
  leaf = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
  return {
    'layers': jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))
  }


class _EquinoxModel(eqx.Module):
  up_proj: eqx.nn.Linear
  norm: eqx.nn.LayerNorm
  down_proj: eqx.nn.Linear


def _equinox():
  keys = jax.random.split(jax.random.key(0))
  model = _EquinoxModel(
    eqx.nn.Linear(_D, _F, key=keys[0]),
    eqx.nn.LayerNorm(_D, use_bias=False),
    eqx.nn.Linear(_F, _D, use_bias=False, key=keys[1]),
  )
  return eqx.filter(model, eqx.is_inexact_array)


def _haiku():
  def model(x):
    x = hk.LayerNorm(-1, True, True)(x)
    return hk.Linear(_D, name='down')(jax.nn.relu(hk.Linear(_F, name='up')(x)))

  init = hk.transform(model).init
  return jax.eval_shape(init, jax.random.key(0), jnp.ones((1, _D)))


def _same(path, leaf):
  del path
  return leaf


def _nnx():
  return nnx.MultiHeadAttention(
    _HEADS, _D, _HEADS * _DIM, use_bias=False, rngs=nnx.Rngs(0)
  )


def _train_state(tx, params):
  create = train_state.TrainState.create
  state = create(apply_fn=None, params=params, tx=tx)
  for t in range(_STEPS):
    state = state.apply_gradients(grads=_like(params, t + 1))
  return state.params


def _nnx_optimizer(tx, params):
  # A copy, as the optimizer changes the variables of a model in place.
  copy = jax.tree.map(jnp.asarray, params)
  model = nnx.merge(nnx.graphdef(_nnx()), copy)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  for t in range(_STEPS):
    optimizer.update(model, _like(params, t + 1))
  return nnx.state(model)


def _flat_nnx(path, leaf):
  return leaf.reshape(-1, _D) if 'out' in path else leaf.reshape(_D, -1)


# Parameters, the loop that trains them, the matrices, the recipe's arguments.
_LOOPS = (
  (_linen, _train_state, _flat, {}),
  (lambda: nnx.state(_nnx()), _nnx_optimizer, _flat_nnx, {}),
  (_scanned, _run, _front, {}),
  (_equinox, _run, _transposed, _EQUINOX),
  (_haiku, _run, _same, _HAIKU),
)


class EqualTest(parameterized.TestCase):
  @parameterized.named_parameters(*((n, n) for n in sage_optax.recipe_names()))
  @pytest.mark.nightly_except('sage_hybrid', 'galore', 'adafactor')
  def test_recipe(self, name):
    def make(**kwargs):
      return sage_optax.recipe(name, _LR, weight_decay=0.1, **kwargs)

    @jax.jit
    def everything(trees):
      ours, matrices = [], []
      for tree, (_, loop, change, options) in zip(trees, _LOOPS, strict=True):
        ours.append(_change(loop(make(**options), tree), change))
        matrices.append(self._reference(make, tree, change))
      return ours, matrices

    ours, matrices = everything([_like(tree(), 0) for tree, *_ in _LOOPS])
    for a, b in zip(
      jax.tree.leaves(ours), jax.tree.leaves(matrices), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)

  def _reference(self, make, tree, change):
    """Steps on matrices, with roles and axes given."""
    paths = _names(tree)
    said = [
      'vector' if _plain(path) == ((), (-1,)) or leaf.ndim == 1 else 'matrix'
      for path, leaf in zip(paths, jax.tree.leaves(tree), strict=True)
    ]
    roles = jax.tree.unflatten(jax.tree.structure(tree), said)
    axes = {
      path: ((), (-1,)) if role == 'vector' else ((-2,), (-1,))
      for path, role in zip(paths, said, strict=True)
    }
    tx = make(roles=roles, matrix_axes=axes.get)
    params = _change(tree, change)
    state = tx.init(params)
    for t in range(_STEPS):
      grads = _change(_like(tree, t + 1), change)
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return params
