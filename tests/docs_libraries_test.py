"""The lines of docs/libraries.md run."""

import pathlib
import re

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state

import sage_optax
from tests.support import leaf_count, leaf_table

_PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'libraries.md'
_BLOCKS = dict(
  re.findall(
    r'^## (.*?)\n\n```python\n(.*?)```', _PAGE.read_text(), re.S | re.M
  )
)
_NAMES = {
  'jax': jax,
  'optax': optax,
  'sage_optax': sage_optax,
  'train_state': train_state,
  'nnx': nnx,
  'eqx': eqx,
  'hk': hk,
}


def _recorded(name):
  project = next(p for p in leaf_table.PROJECTS if p.name == name)
  small = project._replace(
    rows=[
      row._replace(shape=tuple(min(n, 5 + n % 7) for n in row.shape))
      for row in project.rows[:1]
    ]
  )
  params = jax.tree.map(
    lambda leaf: jnp.ones(leaf.shape), leaf_count.tree(small)
  )
  return {'params': params, 'grads': params}


def _flax():
  model = nn.Dense(3)
  params = model.init(jax.random.key(0), jnp.ones((1, 4)))['params']
  return {'model': model, 'inputs': jnp.ones((1, 4)), 'grads': params}


def _nnx():
  model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
  return {'model': model, 'grads': nnx.state(model, nnx.Param)}


def _equinox():
  model = eqx.nn.Linear(4, 3, key=jax.random.key(0))
  return {'model': model, 'grads': eqx.filter(model, eqx.is_inexact_array)}


def _haiku():
  def function(x):
    return hk.Linear(3)(x)

  inputs = jnp.ones((1, 4))
  grads = hk.transform(function).init(jax.random.key(0), inputs)
  return {'function': function, 'inputs': inputs, 'grads': grads}


_SCOPES = {
  'Flax Linen': _flax,
  'Flax NNX': _nnx,
  'Equinox': _equinox,
  'Haiku': _haiku,
  'MaxText': lambda: _recorded('MaxText, unboxed'),
  'Haliax and Levanter': lambda: _recorded('Levanter'),
  'PyTorch and Hugging Face names': lambda: _recorded('Hugging Face Llama'),
}


def test_every_block_has_a_tree():
  assert set(_BLOCKS) == set(_SCOPES)


@pytest.mark.parametrize('library', _SCOPES)
def test_block(library):
  assert len(_BLOCKS[library].splitlines()) <= 5
  exec(_BLOCKS[library], {**_NAMES, **_SCOPES[library]()})
