"""The optimizer of a run: schedule, roles, clipping and recipe."""

import dataclasses
import functools
import inspect
from typing import Any

import optax

import sage_optax
from sage_optax import recipe_table, recipes
from train import config as config_lib
from train.config import Config, fields
from train.errors import UserError

# Roles by the axes of a parameter; this is the only place that defines them.
AXIS_ROLES: tuple[tuple[tuple[str, ...], str], ...] = (
  (('vocab', 'embed'), 'embedding'),  # one row per token; tied: the head too
  (('embed', 'vocab'), 'head'),
  (('layers', '*', '*'), 'matrix'),  # [layers, fan_in, fan_out]
  (('layers', 'embed'), 'vector'),  # norm scales of all layers
  (('embed',), 'vector'),  # the last norm's scale
)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """A transformation and its properties.

  Attributes:
    tx: Clipping by global norm, if any, and the recipe.
    schedule: The learning rate of step 0, 1, ...
    roles: A tree with the role of every parameter.
    lr_scales: The factor on the learning rate, for each role that occurs.
    recipe: The recipe's name.
    options: Keyword arguments, including `roles`, for `sage_optax.recipe` and
      `sage_optax.explain`.
  """

  tx: optax.GradientTransformation
  schedule: optax.Schedule
  roles: Any
  lr_scales: dict[str, float]
  recipe: str
  options: dict[str, Any]


def schedule(config: Config) -> optax.Schedule:
  """Returns the learning rate as a function of the steps already taken.

  With T steps and w warm-up steps, it is peak * (t + 1) / w for t < w, so that
  the first step has an effect. It is the peak at t = w - 1 and t = w, and
  final_fraction * peak at t = T, after the last step.
  """
  peak, steps, options = (
    config_lib.learning_rate(config),
    config.train.steps,
    config.schedule,
  )
  warmup = round(options.warmup_fraction * steps)
  rest = max(steps - warmup, 1)
  final = options.final_fraction * peak
  kind = options.kind
  if kind == 'cosine':
    main = optax.cosine_decay_schedule(peak, rest, options.final_fraction)
  elif kind == 'linear':
    main = optax.linear_schedule(peak, final, rest)
  elif kind == 'wsd':
    decay = min(max(round(options.decay_fraction * steps), 1), rest)
    main = optax.linear_schedule(peak, final, decay, rest - decay)
  else:
    main = optax.constant_schedule(peak)
  if not warmup:
    return main
  # optax.linear_schedule does not accept zero steps.
  rise = (
    optax.linear_schedule(peak / warmup, peak, warmup - 1)
    if warmup > 1
    else optax.constant_schedule(peak)
  )
  return optax.join_schedules([rise, main], [warmup])


def recipe_options(config: Config) -> dict[str, Any]:
  """Returns the recipe's keyword arguments that the configuration sets."""
  options = config.optimizer
  result: dict[str, Any] = {}
  for declared in fields.walk(options):
    unset = declared.value is None or declared.value is False
    if declared.declaration.option and not unset:
      result[declared.path] = declared.value
  if options.recipe in options.b2s:
    result.setdefault('b2', options.b2s[options.recipe])
  for role in sage_optax.roles.ROLES:
    given = dataclasses.asdict(getattr(options, role))
    given = {k: v for k, v in given.items() if v is not None}
    if role == 'matrix' and options.recipe in options.matrix_lr_scales:
      scale = options.matrix_lr_scales[options.recipe]
      given = {'lr_scale': scale, **given}
    if given:
      result[role] = given
  return result


def resolved_parts(config: Config) -> dict[str, Any]:
  """Returns method and arguments of each role, including all defaults.

  Returns:
    For example {'recipe.matrix.method': 'sinkgd', 'recipe.matrix.num_iters':
    5}; empty if the recipe does not accept an option, which `make` reports.
  """
  options = recipe_options(config)
  overrides = {r: options.pop(r, None) for r in sage_optax.roles.ROLES}
  try:
    parts = recipes.resolve(
      config.optimizer.recipe, overrides=overrides, **options
    )
  except ValueError:
    return {}
  found: dict[str, Any] = {}
  for role, part in parts.items():
    parameters = inspect.signature(recipe_table.METHODS[part.method]).parameters
    arguments = {k: p.default for k, p in parameters.items()}
    arguments |= {**part.kwargs, **part._asdict()}
    del arguments['kwargs']
    found |= {f'recipe.{role}.{name}': v for name, v in arguments.items()}
  return found


def make(config: Config, params: Any, logical_axes: Any) -> Optimizer:
  """Returns the optimizer of a configuration.

  Args:
    config: The configuration.
    params: The parameters, or their ShapeDtypeStructs.
    logical_axes: A tree like `params` whose leaves are tuples of axis names.

  Raises:
    UserError: If the recipe does not accept one of the options.
  """
  assign = functools.partial(
    sage_optax.roles.assign, rules=AXIS_ROLES, logical_axes=logical_axes
  )
  options = {'roles': assign, **recipe_options(config)}
  name, rate = config.optimizer.recipe, schedule(config)
  try:
    tx = sage_optax.recipe(name, rate, **options)
    rows = sage_optax.explain(name, params, **options).rows
  except ValueError as error:
    raise UserError(f'config.optimizer: {error}') from error
  if config.train.grad_clip is not None:
    clip = optax.clip_by_global_norm(config.train.grad_clip)
    tx = optax.chain(clip, tx)
  scales = {row.role: row.lr_scale for row in rows}
  return Optimizer(tx, rate, assign(params), scales, name, options)
