"""A few steps in the loops of other libraries equal those on 2-D matrices."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
from flax.training import train_state

import sage_optax
from sage_optax import layout
from sage_optax.leaves import metadata

_LR = 0.01
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


class _Equinox(eqx.Module):
  up_proj: eqx.nn.Linear
  norm: eqx.nn.LayerNorm
  down_proj: eqx.nn.Linear


def _equinox():
  keys = jax.random.split(jax.random.key(0))
  model = _Equinox(
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


class EqualTest(parameterized.TestCase):
  @parameterized.named_parameters(*((n, n) for n in sage_optax.recipe_names()))
  def test_recipe(self, name):
    def make(**kwargs):
      return sage_optax.recipe(name, _LR, weight_decay=0.1, **kwargs)

    boxed, stacked, module, haiku = (
      _like(tree, 0) for tree in (_linen(), _scanned(), _equinox(), _haiku())
    )

    @jax.jit
    def everything(boxed, stacked, module, haiku):
      state = train_state.TrainState.create(
        apply_fn=None, params=boxed, tx=make()
      )
      for t in range(_STEPS):
        state = state.apply_gradients(grads=_like(boxed, t + 1))
      ours = (
        state.params,
        _run(make(), stacked),
        _run(make(preset=layout.EQUINOX), module),
        _run(make(preset=layout.HAIKU), haiku),
      )
      matrices = []
      for tree, change in (
        (boxed, _flat),
        (stacked, _front),
        (module, _transposed),
        (haiku, lambda path, leaf: leaf),
      ):
        matrices.append(self._reference(make, tree, change))
      return ours, matrices

    ours, matrices = everything(boxed, stacked, module, haiku)
    for got, wanted, change in zip(
      ours,
      matrices,
      (_flat, _front, _transposed, lambda path, leaf: leaf),
      strict=True,
    ):
      for a, b in zip(
        jax.tree.leaves(_change(got, change)),
        jax.tree.leaves(wanted),
        strict=True,
      ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)

  def _reference(self, make, tree, change):
    """Steps on matrices, with the roles said aloud."""
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


class NnxTest(parameterized.TestCase):
  def test_optimizer(self):
    model = nnx.MultiHeadAttention(_HEADS, _D, _HEADS * _DIM, rngs=nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, sage_optax.sage(_LR), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
      grads = jax.tree.map(jnp.cos, nnx.state(model, nnx.Param))
      optimizer.update(model, grads)

    step(model, optimizer)
    flat = _change(before, _flat_nnx)
    tx = sage_optax.sage(_LR, matrix_axes=_plain)
    updates, _ = tx.update(jax.tree.map(jnp.cos, flat), tx.init(flat), flat)
    got = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    wanted = optax.apply_updates(flat, updates)
    for a, b in zip(
      jax.tree.leaves(_change(got, _flat_nnx)),
      jax.tree.leaves(wanted),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def _flat_nnx(path, leaf):
  if path.endswith('bias'):
    return leaf.reshape(-1)
  return leaf.reshape(-1, _D) if 'out' in path else leaf.reshape(_D, -1)
