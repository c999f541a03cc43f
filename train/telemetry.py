"""Statistics of the embedding's gradient and update (config.log.embedding)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import sage_optax

Metrics = dict[str, jax.Array]


def embedding(grads: Any, updates: Any, opt_state: Any, roles: Any) -> Metrics:
  """Returns scalars for the metrics of a step.

  Args:
    grads: Gradients before clipping.
    updates: The updates of the parameters.
    opt_state: The optimizer's state after the step.
    roles: A tree with the role of every parameter.

  Returns:
    For the parameter [V, d] with role 'embedding':
    - embedding/absent_rows: share of rows whose gradient is zero.
    - embedding/row_norm_p50, row_norm_p99, row_norm_max_over_mean: statistics
      of the L2 norms of the gradient's rows.
    - embedding/feature_spread: standard deviation divided by mean of the
      features' mean |g|.
    - embedding/absent_update: share of the update's norm on rows whose
      gradient is zero.
    - embedding/h_mean, h_std: mean and standard deviation of SAGE's damper
      (without eps), if SAGE updates the embedding.
    For every role: update_rms/<role>.
  """
  leaves = list(
    zip(
      jax.tree.leaves(grads),
      jax.tree.leaves(updates),
      jax.tree.leaves(roles),
      strict=True,
    )
  )
  metrics = _update_rms(leaves)
  for grad, update, role in leaves:
    if role == 'embedding':
      metrics |= _table(grad, update)
      metrics |= _damper(grad, opt_state)
  return metrics


def _update_rms(leaves: Any) -> Metrics:
  groups: dict[str, list[jax.Array]] = {}
  for _, update, role in leaves:
    groups.setdefault(role, []).append(update)
  return {
    f'update_rms/{role}': optax.tree.norm(group)
    / sum(leaf.size for leaf in group) ** 0.5
    for role, group in groups.items()
  }


def _table(grad: jax.Array, update: jax.Array) -> Metrics:
  norms = jnp.linalg.norm(grad, axis=-1)
  absent = norms == 0
  median, high = jnp.quantile(norms, jnp.array([0.5, 0.99]))
  features = jnp.mean(jnp.abs(grad), axis=-2)
  on_absent = jnp.where(absent[:, None], update, 0)
  return {
    'embedding/absent_rows': jnp.mean(absent.astype(norms.dtype)),
    'embedding/row_norm_p50': median,
    'embedding/row_norm_p99': high,
    'embedding/row_norm_max_over_mean': _ratio(norms.max(), norms.mean()),
    'embedding/feature_spread': _ratio(features.std(), features.mean()),
    'embedding/absent_update': _ratio(
      jnp.linalg.norm(on_absent), jnp.linalg.norm(update)
    ),
  }


def _damper(grad: jax.Array, opt_state: Any) -> Metrics:
  """Statistics of SAGE's damper H, from its state and the gradient."""

  def is_sage(node):
    return isinstance(node, sage_optax.ScaleBySageState)

  for state in jax.tree.leaves(opt_state, is_leaf=is_sage):
    if not is_sage(state):
      continue
    for average in jax.tree.leaves(state.abs_mean):
      if average.shape == (1, grad.shape[1]):
        now = jnp.mean(jnp.abs(grad), axis=-2, keepdims=True)
        # Bias correction and clipping scale all features by the same factor.
        loud = jnp.minimum(_loudness(average), _loudness(now))
        damper = jnp.minimum(loud, 1.0)
        return {
          'embedding/h_mean': damper.mean(),
          'embedding/h_std': damper.std(),
        }
  return {}


def _loudness(stat: jax.Array) -> jax.Array:
  return _ratio(jnp.sqrt(jnp.mean(jnp.square(stat))), stat)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
