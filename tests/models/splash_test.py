"""Attention by kernels for TPUs: numbers, mesh, and what is compiled."""

import functools
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from models import attention
from train import mesh as mesh_lib
from train.plan import cost, hbm_bytes, hlo, targets

_interpreted = functools.partial(attention.splash, interpret=True)


def _inputs(batch, seq_len, heads, key_heads, head_dim=8, dtype=jnp.float32):
  """Queries, keys, values, and a gradient of the result."""
  rng = np.random.default_rng(0)
  return tuple(
    jnp.asarray(rng.standard_normal((batch, seq_len, h, head_dim)), dtype)
    for h in (heads, key_heads, key_heads, heads)
  )


def _value_and_grads(attend, q, k, v, direction):
  out, vjp = jax.vjp(attend, q, k, v)
  return out, *vjp(direction)


def _check(found, expected):
  for x, y in zip(found, expected, strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


class InterpretedTest(parameterized.TestCase):
  # Five blocks along the sequence, two, one; groups of queries per key head.
  @parameterized.parameters((640, 2, 2), (1024, 2, 1), (384, 6, 2))
  def test_equals_dot_product(self, seq_len, heads, key_heads):
    args = _inputs(2, seq_len, heads, key_heads)
    _check(
      jax.jit(functools.partial(_value_and_grads, _interpreted))(*args),
      _value_and_grads(attention.dot_product, *args),
    )

  @parameterized.parameters(640, 1024)  # with a kernel for the queries or not
  def test_bfloat16_is_as_near_to_float32(self, seq_len):
    args = _inputs(1, seq_len, 2, 1, head_dim=24)
    narrow = [x.astype(jnp.bfloat16) for x in args]
    expected = _value_and_grads(attention.dot_product, *args)

    def errors(attend):
      found = jax.jit(functools.partial(_value_and_grads, attend))(*narrow)
      return np.array(
        [
          np.linalg.norm(x.astype(jnp.float32) - y) / np.linalg.norm(y)
          for x, y in zip(found, expected, strict=True)
        ]
      )

    ours, plain = errors(_interpreted), errors(attention.dot_product)
    np.testing.assert_array_less(ours, 1.5 * plain)

  @parameterized.parameters((100, jnp.float32), (128, jnp.float64))
  def test_what_the_kernels_do_not_take(self, seq_len, dtype):
    # Not interpreted: it would fail on CPU.
    with jax.enable_x64(dtype == jnp.float64):
      args = _inputs(1, seq_len, 2, 1, dtype=dtype)
      _check(
        _value_and_grads(attention.splash, *args),
        _value_and_grads(attention.dot_product, *args),
      )


class PerShardTest(parameterized.TestCase):
  @parameterized.parameters(
    (8, 4, 4, 2, P(('data', 'fsdp'), None, 'tensor')),
    (8, 4, 1, 2, P(('data', 'fsdp'), None, 'tensor')),  # repeated
    (1, 4, 2, 1, P(None, None, 'tensor')),  # a sample's batch
    (8, 3, 3, 3, P(('data', 'fsdp'))),
  )
  def test_each_device_attends_for_its_rows_and_heads(
    self, batch, heads, key_heads, local_keys, spec
  ):
    mesh = jax.make_mesh(
      (2, 2, 2), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3
    )
    shapes = []

    def attend(q, k, v):
      shapes.append((q.shape, k.shape, v.shape))
      return attention.chunked(q, k, v)

    args = _inputs(batch, 16, heads, key_heads)
    expected = _value_and_grads(attention.chunked, *args)
    per_shard = mesh_lib.attend_per_shard(mesh, attend)
    step = jax.jit(functools.partial(_value_and_grads, per_shard))
    sharding = NamedSharding(mesh, spec)
    found = step(*args)
    _check(found, expected)
    self.assertTrue(found[0].sharding.is_equivalent_to(sharding, 4))
    local = sharding.shard_shape(args[0].shape)
    keys = (*local[:2], local_keys, 8)
    self.assertEqual(set(shapes), {(local, keys, keys)})

  def test_kernels_on_shards(self):
    mesh = jax.make_mesh(
      (2, 2, 2), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3
    )
    args = _inputs(4, 256, 4, 2)
    attend = jax.checkpoint(mesh_lib.attend_per_shard(mesh, _interpreted))
    _check(
      jax.jit(functools.partial(_value_and_grads, attend))(*args),
      _value_and_grads(attention.dot_product, *args),
    )


@pytest.mark.tpu
@pytest.mark.nightly
@pytest.mark.usefixtures('uncached', 'libtpu')
class CompiledTest(parameterized.TestCase):
  """Compiled for a chip that is not there."""

  def _compile(self, attend, shapes):
    target = targets.parse('v5e:1x1')
    with mock.patch.dict(os.environ, targets.environment(target)):
      mesh = jax.sharding.Mesh(np.array(targets.devices(target)[:1]), ('x',))
    args = [
      jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=NamedSharding(mesh, P()))
      for s in shapes
    ]
    step = functools.partial(_value_and_grads, attend)
    return jax.jit(step).lower(*args).compile()

  @parameterized.parameters((512, 64, 1), (2048, 128, 4))
  def test_scores_stay_on_the_chip(self, seq_len, head_dim, blocks):
    # So many rows that no compiler would keep scores in VMEM.
    q, k = (16, seq_len, 16, head_dim), (16, seq_len, 8, head_dim)
    ours, plain = (
      self._compile(attend, (q, k, k, q))
      for attend in (attention.splash, attention.dot_product)
    )
    module = hlo.parse(ours.as_text())
    moved = hbm_bytes.accessed(module)
    self.assertLess(moved, 0.4 * hbm_bytes.accessed(hlo.parse(plain.as_text())))
    peaks = [x.memory_analysis().peak_memory_in_bytes for x in (ours, plain)]
    self.assertLess(peaks[0], peaks[1])
    # Two products forward and five backward, half of the blocks and the
    # diagonal.
    product = 2 * 16 * 16 * seq_len**2 * head_dim
    self.assertEqual(
      cost.product_flops(module),
      {'bf16': 7 * product * (blocks + 1) // (2 * blocks)},
    )
