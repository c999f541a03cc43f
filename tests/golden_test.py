"""Trajectories of released code, reproduced step by step.

golden/<method>/<case>.json tells the source (the SAGE authors' code, in the
paper's order of the momentum update, and lion-pytorch), its commit, the
hyperparameters and what was patched; the .npz beside it has gradients and
parameters. Dense leaves are (out, in) there and are transposed here.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

import sage_optax

_GOLDEN = pathlib.Path(__file__).parent / 'golden'
_DENSE = ('w6x4', 'w8x8', 'w4x12')
_ALL = (*_DENSE, 'embed', 'vec8')
_ROLES = {
  **dict.fromkeys(_DENSE, 'matrix'),
  'embed': 'embedding',
  'vec8': 'vector',
}


def _betas(hyper):
  return {'b1': hyper['betas'][0], 'b2': hyper['betas'][1]}


def _decay(hyper):
  weight_decay = hyper['weight_decay']
  if hyper.get('decoupled_weight_decay'):
    weight_decay /= hyper['lr']
  return {
    'weight_decay': weight_decay,
    'vector': {'weight_decay': weight_decay},
  }


def _lion(hyper):
  return sage_optax.lion(
    hyper['lr'], roles=_ROLES, **_betas(hyper), **_decay(hyper)
  )


def _sage(hyper):
  return sage_optax.sage(
    hyper['lr'],
    roles=_ROLES,
    eps=hyper['eps'],
    **_betas(hyper),
    **_decay(hyper),
  )


def _sage_hybrid(hyper):
  assert hyper['sinkhorn_scale'] == 10  # what paper=True stands for
  return sage_optax.sage_hybrid(
    hyper['lr'],
    roles=_ROLES,
    paper=True,
    eps=hyper['eps'],
    num_iters=hyper['sinkhorn_iter'],
    **_betas(hyper),
    **_decay(hyper),
  )


def _sinkgd(hyper):
  return sage_optax.sinkgd(
    hyper['lr'],
    roles=_ROLES,
    eps=hyper['eps'],
    num_iters=hyper['sinkhorn_iter'],
    matrix={'lr_scale': hyper['linear_lr_scale']},
    **_betas(hyper),
    **_decay(hyper),
  )


def _sinkgd_pure(hyper):
  return sage_optax.sinkgd_pure(
    hyper['lr'] * hyper['sinkhorn_scale'],
    roles=_ROLES,
    eps=hyper['eps'],
    num_iters=hyper['L'],
  )


_CASES = (
  ('lion/lionpytorch_a_std', _lion, _ALL),
  ('lion/lionpytorch_b_std', _lion, _ALL),
  ('lion/lionpytorch_decoupledwd_std', _lion, _ALL),
  ('sage/paper_order_pure_a_std', _sage, _ALL),
  ('sage/paper_order_pure_a_edge', _sage, _ALL),
  ('sage/paper_order_hybrid_a_std', _sage_hybrid, _ALL),
  ('sage/paper_order_hybrid_a_edge', _sage_hybrid, _ALL),
  ('sinkgd/official_a_std', _sinkgd, _ALL),
  ('sinkgd/official_a_edge', _sinkgd, _ALL),
  # There the embedding's axes are taken in the other order.
  ('sinkgd/official_simple_L5_std', _sinkgd_pure, (*_DENSE, 'vec8')),
  ('sinkgd/official_simple_L5_edge', _sinkgd_pure, (*_DENSE, 'vec8')),
)


def _ours(leaf, array):
  """From PyTorch's layout to ours; the first axis may be time."""
  return np.swapaxes(array, -1, -2) if leaf in _DENSE else array


def _replay(case, make, dtype):
  """Largest difference per leaf between our trajectory and the recorded."""
  data = np.load(_GOLDEN / f'{case}.npz')
  hyper = json.loads((_GOLDEN / f'{case}.json').read_text())
  tx = make(hyper['hyperparameters'])

  def tree(prefix):
    return {leaf: _ours(leaf, data[f'{prefix}/{leaf}']) for leaf in _ALL}

  def step(carry, grads):
    params, state = carry
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree('param0'))
  grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree('grads'))
  _, ours = jax.jit(lambda c, g: jax.lax.scan(step, c, g))(
    (params, tx.init(params)), grads
  )
  recorded = tree('params')
  return {leaf: np.abs(ours[leaf] - recorded[leaf]).max() for leaf in _ALL}


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters(*_CASES)
  def test_float64(self, case, make, leaves):
    with jax.enable_x64(True):
      error = _replay(case, make, jnp.float64)
    for leaf in leaves:
      self.assertLess(error[leaf], 1e-9, leaf)

  @parameterized.parameters(*_CASES)
  def test_float32(self, case, make, leaves):
    error = _replay(case, make, jnp.float32)
    for leaf in leaves:
      self.assertLess(error[leaf], 1e-5, leaf)
