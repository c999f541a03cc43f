"""Hyperball: steps that keep the norm of every matrix."""

import jax
import jax.numpy as jnp
import optax

from sage_optax.core import linalg
from sage_optax.leaves import arguments


def hyperball(
  tx: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  *,
  core_ndim: int | None = None,
) -> optax.GradientTransformation:
  r"""Keeps the norm of each matrix, and moves it in the direction of `tx`.

  With :math:`N(X) = X / \|X\|_2`, W a matrix and u the update of `tx` for it,

  .. math::

    W \leftarrow R \, N(W - \eta R \, N(u)), \quad R = \|W\|_2

  so the learning rate is approximately the angle of a step, and weight decay
  would have no effect. A matrix of zeros takes the step :math:`-\eta u` itself;
  a zero u leaves W unchanged.

  The paper fixes R at initialization. The released code computes it in each
  step, as this function does: the two differ only by rounding, and no state is
  needed.

  Whether this improves on tuned weight decay is disputed.

  Learning rates:
    As a starting point, from the released configurations: the root of (learning
    rate times weight decay) of a tuned Muon or Adam.

  Args:
    tx: computes the directions, such as `scale_by_muon()` or `scale_by_adam()`;
      it must not apply a learning rate or decay.
    learning_rate: a number or an Optax schedule.
    core_ndim: number of trailing axes that form one unit, whose norm is kept: 2
      for matrices, 1 for vectors; all axes before them are a batch. None:
      min(ndim, 2).

  Returns:
    A `GradientTransformation`, to be the last in a chain; its `update` needs
    `params`. Updates keep the dtype of the gradients. State: that of `tx`, and
    a count if the learning rate is a schedule.

  Raises:
    ValueError: `core_ndim` does not fit, or `learning_rate` is not a number or
      schedule; from `update`, no `params`.

  Example:
    >>> import jax.numpy as jnp, numpy as np, optax, sage_optax
    >>> tx = sage_optax.hyperball(optax.identity(), 1.0)
    >>> params, grads = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, -0.1]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> print(np.asarray(optax.apply_updates(params, updates)).round(3))
    [[2.121 2.121]]

  References:
    Wen et al., arXiv 2606.16899, 2026 (AdamH, MuonH).
  """
  linalg.check_static('core_ndim', core_ndim, (None, 1, 2))
  arguments.check_rate('learning_rate', learning_rate)

  def norm(x):
    return linalg.norm(x, linalg.unit_axes(x.ndim, core_ndim))

  def tangent(update, param):
    """R N(u), or u where the parameter has no radius."""
    update, radius = linalg.as_stat(update), norm(linalg.as_stat(param))
    size = norm(update)
    return update * jnp.where(
      radius > 0, radius / jnp.where(size > 0, size, 1), 1
    )

  def retract(step, param):
    """The step that keeps the norm."""
    old = linalg.as_stat(param)
    radius, moved = norm(old), old + step
    size = norm(moved)
    new = moved * jnp.where(size > 0, radius / jnp.where(size > 0, size, 1), 0)
    return jnp.where((radius > 0) & (norm(step) > 0), new - old, step)

  def on_units(function):
    def update_fn(updates, state, params=None):
      if params is None:
        raise ValueError(
          'hyperball needs the parameters: call update(grads, state, params).'
        )
      return jax.tree.map(function, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update_fn)

  chain = optax.with_extra_args_support(
    optax.chain(
      tx,
      on_units(tangent),
      optax.scale_by_learning_rate(learning_rate),
      on_units(retract),
    )
  )

  def update_fn(updates, state, params=None, **extra_args):
    steps, state = chain.update(updates, state, params, **extra_args)
    return optax.tree.cast_like(steps, updates), state

  return optax.GradientTransformationExtraArgs(chain.init, update_fn)
