"""Which recorded trajectories each method has to reproduce, and which not.

golden/<method>/<case>.json tells the source, its commit, the hyperparameters
and what was patched; the .npz beside it has gradients and parameters. Dense
leaves are (out, in) there and are transposed here.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sage_optax

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
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
    steps: how many of the recorded steps are compared; None: all.
  """

  case: str
  make: Callable
  leaves: tuple[str, ...]
  decay_after: tuple[str, ...] = ()
  deviates: str = ''
  tolerance: float = 1e-9
  steps: int | None = None

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
    with np.load(GOLDEN / f'{case}.npz') as data:
      self._data = dict(data)
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
  ours = _trajectory(replay.case, replay.make, replay.decay_after, dtype)
  recorded = Recording(replay.case).tree('params')
  return {
    leaf: float(np.abs(ours[leaf] - recorded[leaf])[: replay.steps].max())
    for leaf in replay.leaves
  }


@functools.cache  # Replays of one case compare other leaves.
def _trajectory(case, make, decay_after, dtype):
  """Parameters after each step, leaf -> [steps, ...]."""
  recording = Recording(case)
  tx = make(recording)

  def step(carry, grads):
    params, state = carry
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for leaf in decay_after:
      factor = recording.hyper['lr'] * recording.hyper['weight_decay']
      params[leaf] = params[leaf] - factor * params[leaf]
    return (params, state), params

  @jax.jit
  def run(params, grads):
    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

  trees = (recording.tree(prefix) for prefix in ('param0', 'grads'))
  ours = run(*jax.tree.map(lambda x: np.asarray(x, dtype), tuple(trees)))
  return jax.tree.map(np.asarray, ours)


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


def _common(recording):
  hyper = recording.hyper
  return {'roles': _roles(recording), **_betas(hyper), **_decay(hyper)}


def _adamw(recording):
  hyper = recording.hyper
  return sage_optax.adamw(hyper['lr'], eps=hyper['eps'], **_common(recording))


def _lion(recording):
  hyper = recording.hyper
  return sage_optax.lion(hyper['lr'], **_common(recording))


def _sage(recording):
  hyper = recording.hyper
  return sage_optax.sage(hyper['lr'], eps=hyper['eps'], **_common(recording))


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


def _sinkgd(recording, embedding='embedding'):
  hyper = recording.hyper
  return sage_optax.sinkgd(
    hyper['lr'],
    roles={**_roles(recording), 'embed': embedding},
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


_sinkgd_unnamed = functools.partial(_sinkgd, embedding='matrix')


def _axolotl(recording):
  hyper = recording.hyper
  return sage_optax.sinkgd_pure(
    hyper['lr_times_scale'],
    roles=_roles(recording),
    eps=hyper['eps'],
    num_iters=hyper['iters'],
    weight_decay=hyper['weight_decay'],
  )


def _scale(recording):
  hyper = recording.hyper
  roles = {**_roles(recording), **dict.fromkeys(hyper['secondary'], 'head')}
  return sage_optax.scale(
    hyper['lr'],
    roles=roles,
    weight_decay=hyper['wd'],
    head={'momentum': hyper['momentum']},
    vector={
      'lr_scale': (hyper['adam_lr'] or hyper['lr']) / hyper['lr'],
      'b1': hyper['adamw_betas'][0],
      'b2': hyper['adamw_betas'][1],
      'eps': hyper['adamw_eps'],
      'weight_decay': hyper['wd'],
    },
  )


def _swan(recording):
  hyper = recording.hyper
  return sage_optax.swan(
    hyper['lr'],
    roles=dict.fromkeys(recording.leaves, 'matrix'),
    ns_steps=hyper['ns_steps'],
    rescale=hyper['post_norm'],
    weight_decay=hyper['weight_decay'],
  )


def _muon(recording, **matrix):
  hyper = recording.hyper
  adam = {}
  if 'aux_adam' in hyper:
    aux = hyper['aux_adam']
    adam = {
      'lr_scale': aux['lr'] / hyper['lr'],
      'eps': aux['eps'],
      **_betas(aux),
    }
  return sage_optax.muon(
    hyper['lr'],
    roles=_roles(recording),
    momentum=hyper['momentum'],
    nesterov=hyper['nesterov'],
    ns_steps=hyper['ns_steps'],
    weight_decay=hyper['weight_decay'],
    matrix=matrix,
    embedding=adam,
    vector=adam,
  )


def _soap(recording):
  hyper = recording.hyper
  return sage_optax.soap(
    hyper['lr'],
    roles=_roles(recording),
    eps=hyper['eps'],
    update_proj_gap=hyper['precondition_frequency'],
    max_side=hyper['max_precond_dim'],
    **_betas(hyper),
  )


def _adam_mini(recording):
  hyper = recording.hyper
  return sage_optax.adam_mini(
    hyper['lr'],
    roles=_roles(recording),
    eps=hyper['eps'],
    weight_decay=hyper['weight_decay'],
    **_betas(hyper),
  )


def _normuon(recording):
  return _muon(recording, unit_decay=recording.hyper['beta2'])


def _rmnp(recording):
  hyper = recording.hyper
  return sage_optax.rmnp(
    hyper['lr'],
    roles=_roles(recording),
    momentum=hyper['momentum'],
    weight_decay=hyper['weight_decay'],
  )


def _symmetric(recording):
  hyper = recording.hyper
  return sage_optax.symmetric(
    hyper['lr'],
    # The square matrix is taken for a head.
    roles={'w8x8': 'head', 'embed': 'embedding'},
    eps=hyper['eps'],
    weight_decay=hyper['weight_decay'],
    embedding={'lr_scale': 1.0, 'momentum': hyper['beta']},
    head={'lr_scale': 1.0, 'momentum': hyper['beta']},
  )


def _stable_spam(recording):
  hyper = recording.hyper
  return sage_optax.stable_spam(
    hyper['lr'],
    roles=_roles(recording),
    eps=hyper['eps'],
    gamma1=hyper['gamma1'],
    gamma2=hyper['gamma2'],
    gamma3=hyper['gamma3'],
    reset_interval=hyper['update_proj_gap'] or None,
    total_steps=hyper['total_T'],
    min_scale=hyper['eta_min'],
    **_betas(hyper),
    **_decay(hyper),
  )


def _spam(recording):
  hyper = recording.hyper
  return sage_optax.spam(
    hyper['lr'],
    roles=_roles(recording),
    eps=hyper['eps'],
    threshold=hyper['threshold'],
    reset_interval=hyper['DeltaT'],
    warmup_steps=hyper['warmup_steps'],
    grace_steps=hyper['grad_accu_steps'],
    density=hyper['density'] or 1.0,
    **_betas(hyper),
  )


def _sgd_sai(recording):
  hyper = recording.hyper
  return sage_optax.sgd_sai(
    hyper['lr'],
    roles=_roles(recording),
    momentum=hyper['momentum'],
    eps=hyper['eps'],
    **_decay(hyper),
  )


def _low_rank(recording, **names):
  """Arguments that APOLLO, GaLore and Fira share; `names`: ours -> theirs."""
  hyper = recording.hyper
  group = hyper['lowrank_group']
  return {
    'learning_rate': hyper['lr'],
    'roles': _roles(recording),
    'matrix': {
      'rank': group['rank'],
      'update_proj_gap': group['update_proj_gap'],
      'eps': hyper['eps'],
      'projector': recording.projector,
      **{ours: group[theirs] for ours, theirs in names.items()},
    },
    **_betas(hyper),
  }


def _apollo(recording):
  kwargs = _low_rank(recording, scale='scale')
  kwargs['matrix']['per_unit'] = (
    recording.hyper['lowrank_group']['scale_type'] == 'channel'
  )
  if recording.hyper.get('disable_nl'):
    kwargs['matrix']['norm_growth_limit'] = None
  return sage_optax.apollo(**kwargs)


def _galore(recording):
  return sage_optax.galore(**_low_rank(recording, scale='scale'))


def _fira(recording):
  return sage_optax.fira(**_low_rank(recording, alpha='alpha'))


_MOMENTUM_FIRST = 'the code updates the momentum before it takes the sign'
_OTHER_AXES = "the code uses the embedding's axes in the other order"
_EPS_FIRST = 'the code adds eps before it corrects the bias'
_TRACE = (
  'the code divides the Gram matrix by its trace, so that its iteration '
  'converges more slowly'
)
_BFLOAT16 = 'Newton-Schulz in bfloat16, as here on accelerators only'

_FROZEN = 'the code freezes entries that had no gradient in the grace period'
_STALE = (
  'the code uses the old moments at a reset, with the bias correction of step 1'
)
_RESTARTED = 'the code restarts the count of the averages at a reset'
_STUCK = (
  'after a zero gradient, the residual in the code grows from a norm of 1e-8 '
  'by 1 % per step'
)
_UNCLIPPED = (*DENSE, 'vec8')  # each entry has had a gradient before the clip

_TABLES = ('w8x8', 'embed')
_SKIPPED = 'the code skips the first step of vectors, too'
_ONE_MOMENT = 'the code gives a norm scale one second moment'

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
  Replay('scale/official_a_std', _scale, (*DENSE, 'embed')),
  Replay('scale/official_a_edge', _scale, (*DENSE, 'embed')),
  Replay('scale/official_b_std', _scale, (*DENSE, 'embed')),
  Replay('scale/official_b_std', _scale, ('vec8',), deviates=_EPS_FIRST),
  Replay('scale/official_noname_std', _scale, DENSE),
  Replay('scale/official_noname_std', _scale, ('embed',), deviates=_OTHER_AXES),
  Replay('swan/ethansmith_ns10_wd_std', _swan, ('w6x4', 'w4x12')),
  Replay('swan/ethansmith_ns10_wd_std', _swan, ('w8x8',), deviates=_TRACE),
  Replay('swan/ethansmith_default_std', _swan, DENSE, deviates=_TRACE),
  Replay('swan/ethansmith_nopost_std', _swan, DENSE, deviates=_TRACE),
  Replay(
    'swan/ethansmith_ns10_wd_std', _swan, ('embed',), deviates=_OTHER_AXES
  ),
  Replay('muon/kj_f64_a_std', _muon, ALL),
  Replay('muon/torch_f64_a_original_std', _muon, DENSE, tolerance=1e-5),
  Replay('muon/torch_f64_c_nonesterov_std', _muon, DENSE, tolerance=1e-5),
  Replay('muon/kj_bf16_a_std', _muon, ('embed', 'vec8')),
  Replay('muon/kj_bf16_a_std', _muon, DENSE, deviates=_BFLOAT16),
  Replay('muon/normuon_f64_std', _normuon, DENSE),
  Replay('scale/rmnp_std', _rmnp, DENSE),
  Replay('scale/rmnp_edge', _rmnp, DENSE),
  Replay('scale/rownorm_std', _symmetric, _TABLES, tolerance=1e-5),
  Replay('scale/rownorm_edge', _symmetric, _TABLES, tolerance=1e-5),
  Replay('adam_mini/official_a_std', _adam_mini, (*DENSE, 'embed')),
  Replay('adam_mini/official_a_edge', _adam_mini, (*DENSE, 'embed')),
  Replay(
    'adam_mini/official_a_std', _adam_mini, ('vec8',), deviates=_ONE_MOMENT
  ),
  Replay('soap/official_side4_std', _soap, DENSE),
  Replay('soap/official_side8_std', _soap, ('w8x8',)),
  Replay('soap/official_side8_long', _soap, ('w8x8',)),
  Replay('soap/official_side8_long', _soap, ('vec8',), deviates=_SKIPPED),
  Replay('stablespam/official_default_std', _stable_spam, ALL),
  Replay('stablespam/official_totalT30_gap0_long', _stable_spam, ALL),
  Replay('stablespam/patched_reset10_equations_long', _stable_spam, ALL),
  Replay(
    'stablespam/official_reset10_long', _stable_spam, ALL, deviates=_STALE
  ),
  Replay(
    'stablespam/patched_reset10_buffers_long',
    _stable_spam,
    ALL,
    deviates=_RESTARTED,
  ),
  Replay('spam/official_default_long', _spam, _UNCLIPPED),
  Replay('spam/official_clip_nodelta_long', _spam, _UNCLIPPED),
  Replay(
    'spam/official_thr50_reset10_long', _spam, _UNCLIPPED, decay_after=ALL
  ),
  Replay(
    'spam/official_density1_reset10_long',
    _spam,
    _UNCLIPPED,
    decay_after=('embed', 'vec8'),
  ),
  Replay(
    'spam/official_default_long',
    _spam,
    ('embed',),
    deviates=_FROZEN,
  ),
  Replay(
    'spam/official_clip_nodelta_long',
    _spam,
    ('embed',),
    deviates=_FROZEN,
  ),
  Replay(
    'spam/official_thr50_reset10_long',
    _spam,
    ('embed',),
    decay_after=ALL,
    deviates=_FROZEN,
  ),
  Replay(
    'spam/official_density1_reset10_long',
    _spam,
    ('embed',),
    decay_after=('embed', 'vec8'),
    deviates=_FROZEN,
  ),
  Replay('sgdsai/pypi_a_std', _sgd_sai, ALL),
  Replay('sgdsai/pypi_a_edge', _sgd_sai, ALL),
  Replay('apollo/official_apollo_channel_r2_gap5', _apollo, DENSE),
  Replay('apollo/official_apollo_channel_r2_nonl', _apollo, DENSE),
  Replay(
    'apollo/official_apollo_channel_r3_gap200_wd',
    _apollo,
    DENSE,
    decay_after=DENSE,
  ),
  Replay('apollo/official_apollo_svd_r2_gap5', _apollo, DENSE),
  Replay('apollo/official_mini_tensor_r1_gap5', _apollo, DENSE),
  Replay('apollo/official_mini_tensor_r1_gap10_long', _apollo, DENSE),
  Replay('galore/official_r2_gap5', _galore, DENSE),
  Replay('galore/official_r2_gap4_edge', _galore, DENSE, decay_after=DENSE),
  Replay('fira/official_r2_gap5', _fira, DENSE),
  Replay(
    'fira/official_r2_gap4_edge',
    _fira,
    ('w6x4', 'w4x12'),
    decay_after=DENSE,
  ),
  Replay(
    'fira/official_r2_gap4_edge',
    _fira,
    ('w8x8',),
    decay_after=DENSE,
    steps=7,
  ),
  Replay(
    'fira/official_r2_gap4_edge',
    _fira,
    ('w8x8',),
    decay_after=DENSE,
    deviates=_STUCK,
  ),
)
