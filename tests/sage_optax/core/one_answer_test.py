"""One answer for gradients of any size: eager, jitted, on 1 and 8 devices."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import sage_optax
from sage_optax import recipe_table, sharding
from sage_optax.core import blocks, sinkhorn_blocks
from tests.support import oracles

# Layers of one array, so that a method is compiled once for all of them.
_SCALES = 10.0 ** np.array([-22.0, -19, -15, -10, -4, 0, 8, 15])
_ARGUMENTS = {
  'apollo': {'rank': 2, 'projector': oracles.projection},
  'fira': {'rank': 2, 'projector': oracles.projection},
  'galore': {'rank': 2, 'projector': oracles.projection},
  'scale': {'momentum': 0.9},
  'soap': {'one_sided': True},
  'spam': {'threshold': 4.0, 'grace_steps': 1},
}
_GAP = {'update_proj_gap': 200}
_ORACLES = {
  'apollo': functools.partial(oracles.apollo, **_GAP),
  'fira': functools.partial(oracles.fira, **_GAP),
  'galore': functools.partial(oracles.galore, **_GAP),
  'scale': functools.partial(oracles.scale, momentum=0.9),
  'soap': functools.partial(oracles.soap, one_sided=True),
  'spam': functools.partial(oracles.spam, threshold=4.0, grace_steps=1),
}


def _mesh(shape):
  auto = (jax.sharding.AxisType.Auto,) * 2
  devices = jax.devices()[: shape[0] * shape[1]]
  return jax.make_mesh(shape, ('a', 'b'), auto, devices=devices)


def _steps(tx, grads, update):
  state, seen = tx.init(grads[0]), []
  for grad in grads:
    scaled, state = update(grad, state)
    seen.append(np.asarray(scaled, np.float64))
  return np.stack(seen)


_MESHES = {'1 device': (1, 1), '8 devices': (4, 2)}


def answers(tx, grads, ways=('eager', 'jitted', *_MESHES)):
  """The updates [steps, ...] of `grads`, computed in several ways."""
  found = {}
  if 'eager' in ways:
    found['eager'] = _steps(tx, grads, tx.update)
  if 'jitted' in ways:
    found['jitted'] = _steps(tx, grads, jax.jit(tx.update))
  for name in set(ways) & set(_MESHES):
    mesh = _mesh(_MESHES[name])
    spec = jax.P(*(None,) * (grads[0].ndim - 2), 'a', 'b')
    on_mesh = sharding.with_mesh(tx, mesh, spec)
    sharded = [
      jax.device_put(g, jax.sharding.NamedSharding(mesh, spec)) for g in grads
    ]
    found[name] = _steps(on_mesh, sharded, jax.jit(on_mesh.update))
  return found


class AnyMethodTest(parameterized.TestCase):
  @parameterized.parameters(*sorted(recipe_table.METHODS))
  def test_gradients_of_any_size(self, name):
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((2, len(_SCALES), 8, 12))
    drawn *= _SCALES[:, None, None]
    grads = [jnp.asarray(g, jnp.float32) for g in drawn]
    tx = recipe_table.METHODS[name](**_ARGUMENTS.get(name, {}))
    oracle = _ORACLES.get(name) or getattr(oracles, name)
    wide = np.asarray(grads, np.float64)
    expected = [oracle(list(wide[:, i])) for i in range(len(_SCALES))]
    expected = np.stack(expected, 1)
    size = np.abs(expected).max((0, 2, 3), keepdims=True)
    for way, found in answers(tx, grads).items():
      error = (np.abs(found - expected) / size).max((0, 2, 3))
      # SPAM's limit is a second moment, which is 0 in float32 for gradients
      # below 1e-17: nothing is clipped there.
      known = error[2 if name == 'spam' else 0 :]
      self.assertLess(known.max(), 1e-4, f'{way}: {error}')


class SinkgdTest(parameterized.TestCase):
  @parameterized.parameters('float32', 'bfloat16')
  def test_slices_of_any_size(self, dtype):
    drawn = np.random.default_rng(0).standard_normal((16, 24))
    matrices, oracle = [], oracles.sinkgd
    for exponent in (-30, -20, -10, 10, 20, 30):
      for loud in (np.s_[3], np.s_[:, 5], np.s_[:]):
        matrices.append(drawn.copy())
        matrices[-1][loud] *= 10.0**exponent
    both = 10.0 ** np.linspace(-15, 15, 24)
    matrices += [drawn * both[:16, None] * both[::-1], 0 * drawn]
    matrices += [np.eye(16, 24) * 10.0 ** np.linspace(-30, 0, 24)]
    grad = jnp.asarray(np.stack(matrices), dtype)
    wide = np.asarray(grad.astype(jnp.float32), np.float64)
    with np.errstate(invalid='ignore'):  # the oracle of zeros
      expected = np.stack([np.nan_to_num(oracle([g])[0]) for g in wide])
    tx = sage_optax.scale_by_sinkgd()
    found = answers(tx, [grad])
    with (
      mock.patch.object(blocks, '_BLOCK_BYTES', 64),
      mock.patch.object(sinkhorn_blocks, '_RESIDENT_BYTES', 0),
    ):
      found['blocks'] = answers(tx, [grad], ['1 device'])['1 device']
    rtol = 1e-5 if dtype == 'float32' else 8e-3  # of the result
    for way, updates in found.items():
      np.testing.assert_allclose(updates[0], expected, rtol, 2e-6, err_msg=way)

  def test_in_a_users_shard_map_the_block_is_the_matrix(self):
    # As docs/fast_paths.md says: XLA reduces nothing between shards there.
    mesh = jax.make_mesh(
      (2,), ('b',), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )
    tx, spec = sage_optax.scale_by_sinkgd(), jax.P(None, 'b')
    grad = jnp.asarray(np.random.default_rng(0).standard_normal((8, 12)))
    update = jax.shard_map(
      lambda g: tx.update(g, tx.init(g))[0],
      mesh=mesh,
      in_specs=spec,
      out_specs=spec,
    )
    halves = np.split(np.asarray(grad, np.float64), 2, axis=1)
    expected = np.hstack([oracles.sinkgd([half])[0] for half in halves])
    np.testing.assert_allclose(jax.jit(update)(grad), expected, 1e-5)

  def test_a_range_beyond_that_of_float32(self):
    # A row or column below 1e-38 of the largest may count as zero: it does so
    # in all forms, and nothing becomes infinite.
    drawn = np.random.default_rng(0).standard_normal((16, 24))
    sizes = 10.0 ** np.linspace(-30, 30, 24)
    grad = jnp.asarray(np.stack([drawn * sizes[:16, None], drawn * sizes]))
    found = answers(sage_optax.scale_by_sinkgd(), [grad.astype(jnp.float32)])
    for way, updates in found.items():
      np.testing.assert_allclose(
        updates, found['eager'], 1e-4, 1e-5, err_msg=way
      )
