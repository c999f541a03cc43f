"""The kernels of SinkGD for GPUs, against the plain form and the compiler."""

import collections
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.sharding import PartitionSpec as P

import sage_optax
from sage_optax.core import sinkhorn as sinkhorn_lib
from sage_optax.kernels import sinkhorn_gpu as gpu
from tests.support import sinkhorn
from train.plan import targets

_PLANS = (gpu.Plan('rows', 8), gpu.Plan('columns', 16), gpu.Plan('rows', 64))


class InterpretedTest(parameterized.TestCase):
  """The kernels as they are, run on CPU."""

  def _check(self, x, *options, **kwargs):
    sinkhorn.check(gpu.scales, _PLANS, x, *options, **kwargs)

  @parameterized.product(
    # Neither sides nor chunks are multiples of a block; more than one chunk.
    shape=((130, 257), (3, 600, 70), (2, 1, 4, 5), (9, 1)),
    dtype=(jnp.float32, jnp.bfloat16),
  )
  def test_shapes(self, shape, dtype):
    self._check(sinkhorn.gradient(shape, dtype))

  def test_more_iterations_of_unit_norm(self):
    self._check(sinkhorn.gradient((20, 30)), 7, 1e-3, unit_norm=True)

  @parameterized.parameters(1e-8, 0.0)
  def test_zero_slices_stay_zero(self, eps):
    self._check(sinkhorn.zero_slices(), 5, eps)

  @parameterized.parameters(1e-12, 1e-20, 1e15)
  def test_extreme_sizes(self, size):
    self._check(size * sinkhorn.gradient((30, 40)), 5)

  @parameterized.parameters(
    P(None, 'x', None), P(None, None, 'x'), P('x', None, None)
  )
  def test_shards(self, *spec):
    x = sinkhorn.gradient(tuple(8 * 3 if axis else 5 for axis in spec))
    _, in_name, out_name = spec
    names = [(name,) if name else () for name in (in_name, out_name)]
    (form, *_) = gpu.forms(*names)

    def local(x):
      return gpu.scales(
        x,
        sinkhorn_lib.Options(4, 1e-8),
        names,
        gpu.Plan(form, 16),
        interpret=True,
      )

    find = jax.shard_map(
      local,
      mesh=jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,)),
      in_specs=P(*spec),
      out_specs=(P(*spec[:2], None), P(spec[0], None, out_name)),
      check_vma=False,
    )
    want = sinkhorn.apply(
      x, sinkhorn_lib.plain(x, sinkhorn_lib.Options(4, 1e-8))
    )
    got = sinkhorn.apply(x, jax.jit(find)(x))
    np.testing.assert_allclose(got, want, 1e-5, 1e-6)


class PlanTest(parameterized.TestCase):
  @parameterized.parameters(
    # Columns need no read before the first iteration.
    ((2048, 5461), jnp.float32, gpu.Plan('columns', 32)),
    ((24, 2048, 5461), jnp.bfloat16, gpu.Plan('columns', 64)),
    ((4096, 11008), jnp.float32, gpu.Plan('columns', 16)),
    # Columns of 32000 fit no cache.
    ((32000, 1024), jnp.float32, gpu.Plan('rows', 64)),
    ((32000, 32000), jnp.float32, None),
    ((8, 8), jnp.float64, None),
    ((80, 8192, 28672), jnp.bfloat16, None),
  )
  def test_forms(self, shape, dtype, want):
    self.assertEqual(gpu.plan(shape, dtype), want)

  def test_the_other_axis_must_be_whole(self):
    self.assertEqual(gpu.forms(('a',), ()), ('rows',))
    self.assertEqual(gpu.forms((), ('b',)), ('columns',))
    self.assertEmpty(gpu.forms(('a',), ('b',)))

  def test_gpus_that_triton_knows(self):
    capability = collections.namedtuple('Device', 'compute_capability')
    self.assertFalse(gpu.supports(capability('7.5')))
    self.assertTrue(gpu.supports(capability('8.0')))
    self.assertTrue(gpu.supports(capability('10.0')))
    for unreadable in (object(), capability('gfx942'), capability(None)):
      self.assertFalse(gpu.supports(unreadable))


@pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda13_plugin') is None,
  reason='needs the extra gpu-plan',
)
@pytest.mark.usefixtures('uncached')
class CompiledTest(parameterized.TestCase):
  """Compiled for GPUs that are not there."""

  @parameterized.parameters(
    (1, (4, 2048, 5461), P()),
    (1, (32000, 1024), P()),
    (8, (4, 2048, 5461), P(None, 'fsdp', None)),
    (8, (4, 5461, 2048), P(None, None, 'fsdp')),
  )
  def test_step(self, devices, shape, spec):
    found = targets.devices(targets.parse('h100:8'))[:devices]
    mesh = jax.sharding.Mesh(np.array(found), ('fsdp',))
    tx = sage_optax.sharding.with_mesh(
      sage_optax.scale_by_sinkgd(kernels='pallas'), mesh, spec
    )
    sharding = jax.sharding.NamedSharding(mesh, spec)
    array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    state = jax.eval_shape(tx.init, array)

    def step(param, grad):
      update, _ = tx.update(grad, state)
      return optax.apply_updates(param, update)

    lowered = jax.jit(step, donate_argnums=0).lower(array, array)
    compiled = lowered.compile(compiler_options={'xla_gpu_autotune_level': 0})
    text = compiled.as_text()
    self.assertIn('sinkhorn_', text)
    self.assertNotRegex(text, r' all-(gather|to-all)(-start)?\(')
    # Partial sums.
    local = 4 * math.prod(sharding.shard_shape(shape))
    self.assertLess(compiled.memory_analysis().temp_size_in_bytes, local / 7)
