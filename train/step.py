"""One training step and one evaluation step, as pure functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from models import llama
from train import telemetry
from train.mesh import batch_sharding
from train.optimizer import Optimizer
from train.state import TrainState

Constrain = Callable[[jax.Array, tuple], jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]


def _identity(x: jax.Array, axes: tuple) -> jax.Array:
  del axes
  return x


def make_train_step(
  model_config: llama.LlamaConfig,
  optimizer: Optimizer,
  *,
  microbatches: int = 1,
  constrain: Constrain = _identity,
  param_shardings: Any = None,
  log_embedding: bool = False,
) -> TrainStep:
  """Returns the function of one step.

  Args:
    model_config: The model.
    optimizer: The optimizer.
    microbatches: Number of parts of the batch that are differentiated one after
      another. More parts need less memory for activations, and more than one
      needs memory for a second gradient.
    constrain: The hook that shards activations.
    param_shardings: A tree of the shardings of the gradients.
    log_embedding: Whether to add the metrics of `telemetry.embedding`.

  Returns:
    train_step(state, tokens[B, S + 1] int32) -> (state, metrics). A token t
    that is not a target, such as one of a prompt, is encoded as ~t. The metrics
    are scalars: the loss in nats per target, learning rates, norms of gradients
    (before clipping) and of parameters (before the update), and norms of
    updates.
  """
  gradient = _gradient_fn(
    model_config, microbatches, constrain, param_shardings
  )

  def train_step(state, batch):
    loss, grads = gradient(state.params, batch)
    updates, opt_state = optimizer.tx.update(
      grads, state.opt_state, state.params
    )
    metrics = {'loss': loss, 'grad_norm': optax.tree.norm(grads)}
    for name, tree in (
      ('grad_norm', grads),
      ('param_norm', state.params),
      ('update_norm', updates),
    ):
      metrics |= _norms(name, tree, optimizer.roles)
    if log_embedding:
      metrics |= telemetry.embedding(grads, updates, opt_state, optimizer.roles)
    rate = optimizer.schedule(state.step)
    for role, scale in optimizer.lr_scales.items():
      metrics[f'lr/{role}'] = jnp.asarray(rate * scale)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics

  return train_step


def _gradient_fn(model_config, microbatches, constrain, param_shardings):
  """Returns (params, batch) -> mean loss per target and its gradient."""

  def loss_fn(params, rows):
    tokens = jnp.where(rows < 0, ~rows, rows)
    weights = (rows[:, 1:] >= 0).astype(jnp.float32)
    return llama.loss(
      params,
      tokens[:, :-1],
      tokens[:, 1:],
      weights,
      model_config,
      constrain=constrain,
    )

  def sums(params, rows):
    (loss, weight), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, rows
    )
    grads = jax.tree.map(_widen, grads)
    if param_shardings is not None:
      grads = jax.lax.with_sharding_constraint(grads, param_shardings)
    return loss, weight, grads

  def gradient(params, batch):
    if microbatches == 1:
      loss, weight, grads = sums(params, batch)
    else:
      parts = _split(batch, microbatches, constrain)
      shapes = jax.eval_shape(sums, params, parts[0])
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

      def add(total, rows):
        return jax.tree.map(jnp.add, total, sums(params, rows)), None

      (loss, weight, grads), _ = jax.lax.scan(add, zeros, parts)
    weight = jnp.maximum(weight, 1)  # A batch may have no targets.
    return loss / weight, jax.tree.map(lambda g: g / weight, grads)

  return gradient


def _split(batch: jax.Array, parts: int, constrain: Constrain) -> jax.Array:
  """Returns tokens[parts, rows, S + 1]; every device keeps its own rows.

  Part i has rows i, i + parts, ..., so the slow axis of the reshaped batch
  remains the sharded one. With contiguous parts, devices would have to exchange
  rows, or most of them would be idle during a part.
  """
  rows, width = batch.shape
  if rows % parts:
    raise ValueError(
      f'A batch of {rows} does not split into {parts} microbatches: make it a '
      'multiple.'
    )
  split = batch.reshape(rows // parts, parts, width).swapaxes(0, 1)
  return constrain(split, (None, 'batch', 'sequence'))


def _widen(x: jax.Array) -> jax.Array:
  """Converts a gradient to float32, or leaves it float64."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _norms(name: str, tree: Any, roles: Any) -> Metrics:
  """Returns the L2 norm of all leaves of each role."""
  groups: dict[str, list[jax.Array]] = {}
  for leaf, role in zip(
    jax.tree.leaves(tree), jax.tree.leaves(roles), strict=True
  ):
    groups.setdefault(role, []).append(leaf)
  return {
    f'{name}/{role}': optax.tree.norm(leaves) for role, leaves in groups.items()
  }


def make_eval_step(
  model_config: llama.LlamaConfig, constrain: Constrain = _identity
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
  """Returns eval_step(params, tokens[B, S + 1], weights[B, S]) -> NLL[B, S].

  The losses are in nats, multiplied by their weights.
  """

  def eval_step(params, tokens, weights):
    losses = llama.token_losses(
      params, tokens[:, :-1], tokens[:, 1:], model_config, constrain=constrain
    )
    return losses * weights

  return eval_step


def jit_train_step(
  train_step: TrainStep,
  shardings: TrainState,
  mesh: Mesh,
  compiler_options: dict[str, Any] | None = None,
) -> Any:
  """Jits a step that donates the state and keeps its shardings."""
  return jax.jit(
    train_step,
    donate_argnums=0,
    in_shardings=(shardings, batch_sharding(mesh)),
    out_shardings=(shardings, NamedSharding(mesh, P())),
    compiler_options=compiler_options,
  )


def jit_eval_step(eval_step: Any, shardings: TrainState, mesh: Mesh) -> Any:
  """Jits an evaluation step whose losses are replicated to every process."""
  batch = batch_sharding(mesh)
  return jax.jit(
    eval_step,
    in_shardings=(shardings.params, batch, batch),
    out_shardings=NamedSharding(mesh, P()),
  )
