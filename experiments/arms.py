"""The arms of the studies: their optimizers, and where their search starts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax

import sage_optax
from experiments import rules
from train.optimizer import AXIS_ROLES

Transform: TypeAlias = optax.GradientTransformation
Options = Mapping[str, Any]

CLIP = 1.0  # largest global norm, in every arm
# AdamW's rate on vectors, in arms that differ only in the rule for the table.
VECTOR_RATE = 4e-3
_ADAM_B2 = 0.99


@dataclasses.dataclass(frozen=True)
class Arm:
  """One optimizer, with four options to tune.

  Attributes:
    name: name of the arm.
    start: start of the search: 'embedding_rate', 'matrix_rate', 'weight_decay'
      and, if the arm has one to tune, 'beta'.
    betas: values of 'beta' that the search tries, in order.
    table: beta -> the update rule of the embedding table [vocab, feature],
      which is also that of the head, if any. None for a whole recipe.
    recipe: name of a recipe of `sage_optax`, or of one of Optax's optimizers.
    beta_name: the recipe's name for 'beta'.
    fixed: other arguments of the recipe.
    one_rate: whether the table and the matrices have the same rate.
    vector_rate: rate of vectors in a recipe; None: that of the table.
  """

  name: str
  start: Options
  betas: tuple[float, ...] = ()
  table: Callable[[Any], Transform] | None = None
  recipe: str = ''
  beta_name: str = 'b2'
  fixed: Options = dataclasses.field(default_factory=dict)
  one_rate: bool = False
  vector_rate: float | None = None


def optimizer(
  arm: Arm, options: Options, schedule: optax.Schedule, logical_axes: Any = None
) -> Transform:
  """Builds the optimizer of an arm.

  Args:
    arm: The arm.
    options: Values of the options; they may be traced.
    schedule: Factor on the peak rate at a step.
    logical_axes: Tree of axis names, as from `models.llama.logical_axes`;
      without it, a recipe infers roles from the parameters' names.
  """

  def roles(params):
    return sage_optax.roles.assign(
      params, rules=AXIS_ROLES, logical_axes=logical_axes
    )

  if arm.table is not None:
    tx = _table_arm(arm, options, schedule, roles)
  elif arm.recipe.startswith('optax_'):
    tx = _optax_arm(arm, options, schedule, roles)
  else:
    known = None if logical_axes is None else roles
    tx = _recipe_arm(arm, options, schedule, known)
  return optax.chain(optax.clip_by_global_norm(CLIP), tx)


def _part(
  tx: Transform, rate: Any, schedule: optax.Schedule, weight_decay: Any = 0.0
) -> Transform:
  return optax.chain(
    tx,
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(lambda step: rate * schedule(step)),
  )


def _table_arm(arm, options, schedule, roles):
  """The arm's rule on the table, SinkGD on matrices, AdamW on vectors."""
  assert arm.table is not None
  rule = arm.table(options.get('beta'))
  decay = options['weight_decay']
  vector = sage_optax.scale_by_adam(b2=_ADAM_B2)
  matrix = sage_optax.scale_by_sinkgd(core_ndim=2)
  return optax.partition(
    {
      'embedding': _part(rule, options['embedding_rate'], schedule, decay),
      'head': _part(
        rules.turned(rule), options['embedding_rate'], schedule, decay
      ),
      'matrix': _part(matrix, options['matrix_rate'], schedule, decay),
      'vector': _part(vector, VECTOR_RATE, schedule),
    },
    roles,
  )


def _recipe_arm(arm, options, schedule, roles):
  """A recipe: its learning rate is the embedding's."""
  rate = options['embedding_rate']
  return sage_optax.recipe(
    arm.recipe,
    lambda step: rate * schedule(step),
    roles=roles,
    **recipe_arguments(arm, options),
  )


def recipe_arguments(arm: Arm, options: Options) -> dict[str, Any]:
  """The arguments of an arm's recipe, without its learning rate."""
  scale = options['matrix_rate'] / options['embedding_rate']
  decay = options['weight_decay']
  result = {
    'weight_decay': decay,
    # The decay of a matrix follows its own rate, as in the other arms.
    'matrix': {'lr_scale': scale, 'weight_decay': decay * scale},
    **arm.fixed,
  }
  if arm.vector_rate is not None:
    scale = arm.vector_rate / options['embedding_rate']
    result['vector'] = {'lr_scale': scale}
  if 'beta' in options:
    result[arm.beta_name] = options['beta']
  return result


def _optax_arm(arm, options, schedule, roles):
  """Optax's own adafactor and muon, with a rate for each role."""
  beta, decay = options.get('beta'), options['weight_decay']
  adam = optax.scale_by_adam(b2=_ADAM_B2 if beta is None else beta)
  if arm.recipe == 'optax_muon':
    table = matrix = adam
    # Treat each matrix of a stack separately, unlike Optax's default.
    numbers = optax.contrib.MuonDimensionNumbers(-2, -1)
    matrix = optax.chain(
      optax.contrib.scale_by_muon(
        weight_dimension_numbers=lambda params: jax.tree.map(
          lambda _: numbers, params
        )
      ),
      # As optax.contrib.muon(consistent_rms=0.2).
      optax.stateless(
        lambda updates, _: jax.tree.map(
          lambda u: u * 0.2 * max(u.shape[-2:]) ** 0.5, updates
        )
      ),
    )
  else:
    # optax.adafactor without its rate, weight decay and schedule.
    table = matrix = optax.chain(
      optax.scale_by_factored_rms(min_dim_size_to_factor=32),
      optax.clip_by_block_rms(1.0),
      optax.scale_by_param_block_rms(),
    )
    adam = table
  embedding_rate = options['embedding_rate']
  return optax.partition(
    {
      'embedding': _part(table, embedding_rate, schedule, decay),
      'head': _part(table, embedding_rate, schedule, decay),
      'matrix': _part(matrix, options['matrix_rate'], schedule, decay),
      'vector': _part(adam, embedding_rate, schedule),
    },
    roles,
  )


_B2 = (0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)
_MOMENTUM = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
# Where the searches start.
_START = {_B2: 0.99, _MOMENTUM: 0.9, (): None}


def _start(embedding_rate, matrix_rate, beta=None):
  start = {
    'embedding_rate': embedding_rate,
    'matrix_rate': matrix_rate,
    'weight_decay': 0.0,
  }
  return start if beta is None else {**start, 'beta': beta}


def _table(name, rate, table, betas=()):
  start = _start(rate, 2e-3, _START[betas])
  return Arm(name, start, betas, table)


def _column_norm(axis, momentum=None):
  return sage_optax.scale_by_column_norm(momentum, axis=axis, core_ndim=2)


def _adam_mini(axis, b2, **kwargs):
  return sage_optax.scale_by_adam_mini(b2=b2, axis=axis, core_ndim=2, **kwargs)


def _damped(change):
  return lambda b2: rules.with_damper(change, b2)


# In the order in which the runner processes them.
TABLE_ARMS: tuple[Arm, ...] = (
  _table('adamw', 8e-3, lambda b: sage_optax.scale_by_adam(b2=b), _B2),
  _table('sage', 4e-3, lambda b: sage_optax.scale_by_sage(b2=b), _B2),
  _table('sinkgd', 4e-3, lambda _: sage_optax.scale_by_sinkgd(core_ndim=2)),
  _table('lion', 4e-3, lambda b: sage_optax.scale_by_lion(b2=b), _B2),
  _table('lion_mean_h', 4e-3, _damped(rules.averaged), _B2),
  _table('sage_shuffled', 4e-3, _damped(rules.shuffled), _B2),
  _table('row_rms', 4e-3, lambda b: _adam_mini(-1, b, b1=None), _B2),
  _table('row_momentum', 4e-3, lambda b: _column_norm(-1, b), _MOMENTUM),
  _table('coupled_adam', 8e-3, lambda b: _adam_mini(-2, b), _B2),
  _table('factored', 8e-3, rules.scale_by_factored, _B2),
  _table('row_norm', 4e-3, lambda _: _column_norm(-1)),
  _table('column_norm', 4e-3, lambda _: _column_norm(-2)),
  _table('column_momentum', 4e-3, lambda b: _column_norm(-2, b), _MOMENTUM),
  _table('adafactor', 8e-3, lambda _: sage_optax.scale_by_adafactor()),
  _table('adafactor_momentum', 8e-3, sage_optax.scale_by_adafactor, _MOMENTUM),
  _table('adam_mini', 8e-3, lambda b: _adam_mini(-1, b), _B2),
)


def _recipe(
  name, rate, matrix_rate, betas=(), beta_name='b2', recipe=None, **kw
):
  start = _start(rate, matrix_rate, _START[betas])
  return Arm(
    f'recipe_{name}', start, betas, None, recipe or name, beta_name, kw
  )


_LOW_RANK = {'rank': 16, 'update_proj_gap': 200}

# Rates of AdamW and of SAGE on the table as `small_tied` and `small_recipes`
# found them; the first three arms are older.
_ADAM, _SIGN = 64e-3, 8e-3

RECIPE_ARMS: tuple[Arm, ...] = (
  _recipe('adamw', 4e-3, 4e-3, _B2),
  _recipe('sage_hybrid', 4e-3, 2e-3, _B2),
  # A candidate for the prize; rates from trials of its parts.
  _recipe('rms_muon', 32e-3, 32e-3, _B2),
  # As AdamW is mostly used.
  dataclasses.replace(
    _recipe('adamw_one_rate', 8e-3, 8e-3, _B2, recipe='adamw'), one_rate=True
  ),
  # With the rate of vectors that all table arms have.
  dataclasses.replace(
    _recipe('adamw_vectors', _ADAM, 8e-3, _B2, recipe='adamw'),
    vector_rate=VECTOR_RATE,
  ),
  _recipe('lion_hybrid', _SIGN, 4e-3, _B2),
  _recipe('sinkgd', _ADAM, 4e-3, _B2),
  _recipe('muon', _ADAM, 32e-3, _B2),
  _recipe('sage_muon', _SIGN, 32e-3, _B2),
  _recipe('sage_scale', _SIGN, 4e-3, _B2),
  _recipe('sage', _SIGN, 2e-3, _B2),
  _recipe('lion', _SIGN, 2e-3, _B2),
  # As on a head, which the tied table also is.
  _recipe('scale', _SIGN, 4e-3, embedding={'momentum': 0.9}),
  _recipe('sinkgd_pure', _SIGN, 2e-3),
  _recipe('apollo', _ADAM, 16e-3, _B2, **_LOW_RANK),
  _recipe('apollo_mini', _ADAM, 16e-3, _B2),
  _recipe('galore', _ADAM, 32e-3, _B2, **_LOW_RANK),
  _recipe('fira', _ADAM, 32e-3, _B2, **_LOW_RANK),
  _recipe('adam_mini', _ADAM, 8e-3, _B2),
  _recipe('adafactor', _ADAM, 8e-3),
  _recipe('swan', _ADAM, 4e-3, _B2),
  _recipe('muon_eq', _ADAM, 16e-3, _B2),
  _recipe('stable_spam', _ADAM, 8e-3, _B2),
  _recipe('spam', _ADAM, 8e-3, _B2),
  _recipe('coupled_adam', _ADAM, 8e-3, _B2),
  _recipe('sgd_sai', 8e-3, 8e-3, _MOMENTUM, 'momentum'),
  _recipe('optax_adafactor', 16e-3, 16e-3),
  _recipe('optax_muon', _ADAM, 16e-3, _B2),
)

ARMS = {arm.name: arm for arm in (*TABLE_ARMS, *RECIPE_ARMS)}
