"""Which recorded trajectories each method has to reproduce, and which not.

golden/<method>/<case>.json tells the source, its commit, the hyperparameters
and what was patched; the .npz beside it has gradients and parameters. Dense
leaves are (out, in) there and are transposed here.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sage_optax

GOLDEN = pathlib.Path(__file__).parent / 'golden'
DENSE = ('w6x4', 'w8x8', 'w4x12')
ALL = (*DENSE, 'embed', 'vec8')
ROLES = {
  **dict.fromkeys(DENSE, 'matrix'),
  'embed': 'embedding',
  'vec8': 'vector',
}


@dataclasses.dataclass(frozen=True)
class Replay:
  """A recorded case and our optimizer for it.

  Attributes:
    case: '<method>/<case>' under golden/.
    make: the case's `Recording` -> our transformation.
    leaves: what is compared.
    decay_after: leaves that the source decays after the step, by
      lr * weight_decay, which the replay does in its place.
    deviates: why these leaves differ; empty: they must not.
    tolerance: largest difference in float64.
  """

  case: str
  make: Callable
  leaves: tuple[str, ...]
  decay_after: tuple[str, ...] = ()
  deviates: str = ''
  tolerance: float = 1e-9

  @property
  def method(self):
    """Key of `recipes.METHODS`."""
    folder = self.case.split('/')[0]
    return {'stablespam': 'stable_spam', 'sgdsai': 'sgd_sai'}.get(
      folder, folder
    )


class Recording:
  """One case as recorded: hyperparameters and arrays in our layout."""

  def __init__(self, case):
    self._data = np.load(GOLDEN / f'{case}.npz')
    self.about = json.loads((GOLDEN / f'{case}.json').read_text())
    self.hyper = self.about['hyperparameters']
    self.leaves = tuple(self.about['shapes'])

  def tree(self, prefix):
    """leaf -> array; the first axis may be time."""
    return {
      leaf: _ours(leaf, self._data[f'{prefix}/{leaf}']) for leaf in self.leaves
    }

  def projector(self, key, matrix, count):
    """The recorded projections, for the argument `projector` of a method."""
    del key
    leaf = {(4, 6): 'w6x4', (8, 8): 'w8x8', (12, 4): 'w4x12'}[matrix.shape]
    recorded = self._data[f'proj/{leaf}']
    if leaf == 'w4x12':  # there P multiplies from the left, and is (out, rank)
      recorded = recorded.swapaxes(-1, -2)
    steps = jnp.asarray(self._data[f'proj_steps/{leaf}'])
    index = jnp.sum(steps <= count) - 1
    return jnp.asarray(recorded, matrix.dtype)[index]


def differences(replay, dtype):
  """Largest difference per leaf between our trajectory and the recorded."""
  recording = Recording(replay.case)
  tx = replay.make(recording)

  def step(carry, grads):
    params, state = carry
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for leaf in replay.decay_after:
      factor = recording.hyper['lr'] * recording.hyper['weight_decay']
      params[leaf] = params[leaf] - factor * params[leaf]
    return (params, state), params

  params = jax.tree.map(
    lambda x: jnp.asarray(x, dtype), recording.tree('param0')
  )
  grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), recording.tree('grads'))
  _, ours = jax.jit(lambda c, g: jax.lax.scan(step, c, g))(
    (params, tx.init(params)), grads
  )
  recorded = recording.tree('params')
  return {
    leaf: float(np.abs(ours[leaf] - recorded[leaf]).max())
    for leaf in replay.leaves
  }


def _ours(leaf, array):
  """From PyTorch's layout to ours."""
  return np.swapaxes(array, -1, -2) if leaf in DENSE else array


def _roles(recording):
  return {leaf: ROLES[leaf] for leaf in recording.leaves}


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


def _adamw(recording):
  hyper = recording.hyper
  return sage_optax.adamw(
    hyper['lr'],
    roles=_roles(recording),
    eps=hyper['eps'],
    **_betas(hyper),
    **_decay(hyper),
  )


def _lion(recording):
  hyper = recording.hyper
  return sage_optax.lion(
    hyper['lr'], roles=_roles(recording), **_betas(hyper), **_decay(hyper)
  )


def _sage(recording):
  hyper = recording.hyper
  return sage_optax.sage(
    hyper['lr'],
    roles=_roles(recording),
    eps=hyper['eps'],
    **_betas(hyper),
    **_decay(hyper),
  )


def _sage_hybrid(recording):
  hyper = recording.hyper
  assert hyper['sinkhorn_scale'] == 10  # what paper=True stands for
  return sage_optax.sage_hybrid(
    hyper['lr'],
    roles=_roles(recording),
    paper=True,
    eps=hyper['eps'],
    num_iters=hyper['sinkhorn_iter'],
    **_betas(hyper),
    **_decay(hyper),
  )


def _sinkgd(recording):
  hyper = recording.hyper
  return sage_optax.sinkgd(
    hyper['lr'],
    roles=_roles(recording),
    eps=hyper['eps'],
    num_iters=hyper['sinkhorn_iter'],
    matrix={'lr_scale': hyper['linear_lr_scale']},
    **_betas(hyper),
    **_decay(hyper),
  )


def _sinkgd_pure(recording):
  hyper = recording.hyper
  return sage_optax.sinkgd_pure(
    hyper['lr'] * hyper['sinkhorn_scale'],
    roles=_roles(recording),
    eps=hyper['eps'],
    num_iters=hyper['L'],
  )


def _sinkgd_unnamed(recording):
  """The embedding is a matrix, too."""
  hyper = recording.hyper
  return sage_optax.sinkgd(
    hyper['lr'],
    roles={**_roles(recording), 'embed': 'matrix'},
    eps=hyper['eps'],
    num_iters=hyper['sinkhorn_iter'],
    matrix={'lr_scale': hyper['linear_lr_scale']},
    **_betas(hyper),
    **_decay(hyper),
  )


def _axolotl(recording):
  hyper = recording.hyper
  return sage_optax.sinkgd_pure(
    hyper['lr_times_scale'],
    roles=_roles(recording),
    eps=hyper['eps'],
    num_iters=hyper['iters'],
    weight_decay=hyper['weight_decay'],
  )


_MOMENTUM_FIRST = 'the code moves the momentum before it takes the sign'
_OTHER_AXES = "the code takes the embedding's axes in the other order"

REPLAYS = (
  Replay('adamw/torch_a_std', _adamw, ALL),
  Replay('adamw/torch_b_std', _adamw, ALL),
  Replay('adamw/torch_a_edge', _adamw, ALL),
  Replay('lion/lionpytorch_a_std', _lion, ALL),
  Replay('lion/lionpytorch_b_std', _lion, ALL),
  Replay('lion/lionpytorch_decoupledwd_std', _lion, ALL),
  Replay('sage/paper_order_pure_a_std', _sage, ALL),
  Replay('sage/paper_order_pure_a_edge', _sage, ALL),
  Replay('sage/paper_order_hybrid_a_std', _sage_hybrid, ALL),
  Replay('sage/paper_order_hybrid_a_edge', _sage_hybrid, ALL),
  Replay('sinkgd/official_a_std', _sinkgd, ALL),
  Replay('sinkgd/official_a_edge', _sinkgd, ALL),
  Replay('sinkgd/official_simple_L5_std', _sinkgd_pure, (*DENSE, 'vec8')),
  Replay('sinkgd/official_simple_L5_edge', _sinkgd_pure, (*DENSE, 'vec8')),
  Replay('sinkgd/official_unnamed_a_std', _sinkgd_unnamed, (*DENSE, 'vec8')),
  Replay(
    'sinkgd/official_unnamed_a_std',
    _sinkgd_unnamed,
    ('embed',),
    deviates=_OTHER_AXES,
  ),
  Replay('sinkgd/axolotl_f32_a_std', _axolotl, DENSE, tolerance=2e-6),
  Replay(
    'sinkgd/official_simple_L5_std',
    _sinkgd_pure,
    ('embed',),
    deviates=_OTHER_AXES,
  ),
  Replay('sage/official_pure_a_std', _sage, ALL, deviates=_MOMENTUM_FIRST),
  Replay('sage/official_pure_a_edge', _sage, ALL, deviates=_MOMENTUM_FIRST),
  Replay('sage/official_hybrid_a_std', _sage_hybrid, DENSE),
  Replay('sage/official_hybrid_a_edge', _sage_hybrid, DENSE),
  Replay(
    'sage/official_hybrid_a_std',
    _sage_hybrid,
    ('embed', 'vec8'),
    deviates=_MOMENTUM_FIRST,
  ),
  Replay(
    'sage/official_hybrid_a_edge',
    _sage_hybrid,
    ('embed', 'vec8'),
    deviates=_MOMENTUM_FIRST,
  ),
)
