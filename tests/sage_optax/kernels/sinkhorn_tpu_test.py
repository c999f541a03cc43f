"""The kernels of SinkGD for TPUs, against the plain form and the compiler."""

import itertools
import math
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from sage_optax.core import sinkhorn as sinkhorn_lib
from sage_optax.kernels import sinkhorn_tpu as tpu
from sage_optax.kernels import sinkhorn_tpu_pallas as kernels
from sage_optax.kernels.sinkhorn_tpu_tiles import TILE
from tests.support import sinkhorn
from train.plan import hbm_bytes, hlo, targets

_MIB = 2**20
_ORDERS = ((0, 1, 2), (0, 2, 1))
_BETWEEN = ((1, 0, 2), (2, 0, 1))  # Layers lie between the axes.


def _every_plan(shape):
  """Every form and order, in blocks of one tile."""
  orders = (*_ORDERS, *_BETWEEN) if len(shape) == 3 else _ORDERS
  for buffers, order in zip((2, 1, 2, 1), orders, strict=False):
    yield tpu.Plan('resident', order, 0, buffers)
  # Layers are a grid, whatever the order of the axes.
  orders = _ORDERS if len(shape) == 2 else _ORDERS[:1]
  for order, form in itertools.product(orders, ('columns', 'rows')):
    yield _tiled(form, shape, order)


def _some_plans(shape):
  yield tpu.Plan('resident', _ORDERS[1])
  yield _tiled('columns', shape, _ORDERS[1])
  yield _tiled('rows', shape, _ORDERS[0])


def _tiled(form, shape, order):
  length = shape[-1 if form == 'columns' else -2]
  return tpu.Plan(form, order, min(length, TILE))


class InterpretedTest(parameterized.TestCase):
  """The kernels as they are, run on CPU."""

  def _check(self, x, *options, plans=_some_plans, **kwargs):
    sinkhorn.check(tpu.scales, plans(x.shape), x, *options, **kwargs)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_odd_shapes(self, dtype):
    self._check(sinkhorn.gradient((130, 257), dtype), plans=_every_plan)

  @parameterized.parameters(
    ((1, 7),), ((9, 1),), ((12, 40),), ((4, 12, 130),), ((2, 1, 4, 5),)
  )
  @pytest.mark.nightly
  def test_small_and_stacked(self, shape):
    self._check(sinkhorn.gradient(shape), plans=_every_plan)

  def test_more_iterations_of_unit_norm(self):
    self._check(sinkhorn.gradient((20, 30)), 7, 1e-3, unit_norm=True)

  @parameterized.parameters(1e-8, 0.0)
  def test_zero_slices_stay_zero(self, eps):
    self._check(sinkhorn.zero_slices(), 5, eps)

  @parameterized.parameters(1e-12, 1e-20, 1e15)
  def test_extreme_sizes(self, size):
    self._check(size * sinkhorn.gradient((30, 40)), 5)

  def test_a_tiny_column_and_row(self):
    x = (
      sinkhorn.gradient((30, 40)).at[:, 3].multiply(1e-20).at[4].multiply(1e-20)
    )
    self._check(x, 5)


@pytest.mark.nightly
class MeshTest(parameterized.TestCase):
  """Local blocks inside shard_map."""

  @parameterized.product(
    spec=(P(None, 'x', None), P(None, None, 'x'), P('x', None, None)),
    turned=(False, True),
  )
  def test_shards(self, spec, turned):
    shape = tuple(8 * 3 if axis else 5 for axis in spec)
    x = sinkhorn.gradient(shape)
    how = None
    if spec[0] is None:
      how = tpu.Plan('rows' if spec[1] else 'columns', _ORDERS[turned], 3)

    def local(x):
      return tpu.scales(
        x,
        sinkhorn_lib.Options(4, 1e-8),
        (('x',) if spec[1] else (), ('x',) if spec[2] else ()),
        how,
        interpret=True,
      )

    find = jax.shard_map(
      local,
      mesh=jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,)),
      in_specs=spec,
      out_specs=(P(*spec[:2], None), P(spec[0], None, spec[2])),
      check_vma=False,
    )
    want = sinkhorn.apply(
      x, sinkhorn_lib.plain(x, sinkhorn_lib.Options(4, 1e-8))
    )
    np.testing.assert_allclose(
      sinkhorn.apply(x, jax.jit(find)(x)), want, 1e-5, 1e-6
    )
    # Vectors alone are sent.
    for line in jax.jit(find).lower(x).compile().as_text().splitlines():
      if ' all-reduce(' in line:
        self.assertRegex(line, r'f32\[5,1,5\]')
      self.assertNotRegex(line, r' all-(gather|to-all)\(')

  def test_both_axes_sharded(self):
    with self.assertRaisesRegex(ValueError, 'plain form'):
      tpu.scales(
        jnp.ones((2, 2)), sinkhorn_lib.Options(1, 0.0), (('a',), ('b',))
      )


class PlanTest(parameterized.TestCase):
  @parameterized.parameters(
    ((2048, 5632), jnp.float32, 128, ('resident', 2)),
    ((2048, 5632), jnp.float32, 64, ('resident', 1)),
    ((2048, 5632), jnp.bfloat16, 64, ('resident', 2)),
    ((2048, 5632), jnp.float32, 16, ('columns', 2)),
    ((24, 2048, 5461), jnp.float32, 64, ('resident', 1)),
    ((8192, 8192), jnp.float32, 128, ('columns', 2)),
    ((128256, 2048), jnp.float32, 64, ('rows', 2)),
  )
  def test_forms(self, shape, dtype, vmem, want):
    how = tpu.plan(shape, dtype, kernels.Chip(vmem * _MIB))
    self.assertEqual((how.form, how.buffers), want)

  def test_none(self):
    self.assertIsNone(tpu.plan((10**6, 10**6), jnp.float32))
    self.assertIsNone(tpu.plan((8, 8), jnp.float64))
    with self.assertRaisesRegex(ValueError, 'plain form'):
      tpu.scales(jnp.ones((8, 8), jnp.float16), sinkhorn_lib.Options(1, 0.0))

  @parameterized.parameters('resident', 'columns', 'rows')
  def test_bytes_are_those_of_the_block_specs(self, form):
    shape, num_iters = (2, 300, 500), 5
    how = tpu.Plan(form, (0, 1, 2), 0 if form == 'resident' else 128)
    total, pallas_call = [], pl.pallas_call

    def count(kernel, **options):
      call = pallas_call(kernel, **options)

      def run(*args):
        out = options['out_shape']
        specs = [*options['in_specs'], *options['out_specs']]
        for spec, array in zip(specs, [*args, *out], strict=True):
          total.append(_moved(spec, array, options['grid']))
        return call(*args)

      return run

    with (
      mock.patch.object(pl, 'pallas_call', count),
      mock.patch.object(tpu, 'plan', return_value=how),
    ):
      jax.eval_shape(
        lambda x: tpu.scales(
          x, sinkhorn_lib.Options(num_iters, 1e-8), interpret=True
        ),
        jax.ShapeDtypeStruct(shape, jnp.float32),
      )
      want = tpu.hbm_bytes(shape, jnp.float32, num_iters)
    # The loop's body is traced once; rows begin with a read by XLA.
    got = sum(total) * (1 if form == 'resident' else num_iters)
    if form == 'rows':
      got += 4 * (math.prod(shape) + shape[0] * shape[2])
    self.assertEqual(got, want)


def _moved(spec, array, grid):
  """Bytes moved: a block is, when the grid comes to another one."""
  if spec.block_shape is None:
    # Scalars; or the matrices, each of which the kernel copies once.
    return 0 if array.ndim == 1 else array.size * array.dtype.itemsize
  steps = itertools.product(*map(range, grid))
  visits = [spec.index_map(*step) for step in steps]
  moved = 0
  for at, _ in itertools.groupby(visits):
    sides = (
      min(side or 1, length - i * (side or 1))
      for i, side, length in zip(at, spec.block_shape, array.shape, strict=True)
    )
    moved += math.prod(sides) * array.dtype.itemsize
  return moved


@pytest.mark.tpu
@pytest.mark.nightly
@pytest.mark.usefixtures('uncached', 'libtpu')
class CompiledTest(parameterized.TestCase):
  """Compiled for chips that are not there."""

  def _compile(self, step, topology, *args, **options):
    target = targets.parse(topology)
    with mock.patch.dict(os.environ, targets.environment(target)):
      device = targets.devices(target)[0]
    mesh = jax.sharding.Mesh(np.array([device]), ('x',))
    sharding = jax.sharding.NamedSharding(mesh, P())
    args = [
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in args
    ]
    return jax.jit(step, **options).lower(*args).compile()

  @parameterized.product(
    chip=(('v5e:1x1', 128), ('v5p:1x1x1', 64), ('tpu7x:1x1x1', 64)),
    case=(
      ((2048, 5632), 'float32', 0.6),
      ((2048, 5632), 'bfloat16', 0.6),
      ((24, 2048, 5461), 'float32', 0.6),
      ((24, 5461, 2048), 'float32', 0.6),
      ((2, 4, 512, 1000), 'float32', 0.6),
      ((8192, 8192), 'float32', 1.25),
      ((4, 4096, 11008), 'float32', 1.25),
    ),
  )
  def test_step(self, chip, case):
    self._check_step(*chip, *case)

  @parameterized.parameters(
    ('v4:1x1x1', 16, (2048, 5632), 'float32', 1.25),
    ('v6e:1x1', 128, (24, 2048, 5461), 'float32', 0.6),
  )
  def test_step_on_other_chips(self, *case):
    self._check_step(*case)

  def _check_step(self, topology, vmem, shape, dtype, limit):
    """Main memory's traffic of update and apply, against AdamW's."""
    param = jax.ShapeDtypeStruct(shape, jnp.float32)
    grad = jax.ShapeDtypeStruct(shape, dtype)
    number = jax.ShapeDtypeStruct((), jnp.float32)

    def step(p, g, eps):
      in_scale, out_scale = tpu.scales(g, sinkhorn_lib.Options(5, eps))
      update = g.astype(jnp.float32) * in_scale * out_scale
      return p - 1e-3 * (update + 0.1 * p)

    compiled = self._compile(
      step, topology, param, grad, number, donate_argnums=0
    )
    size = math.prod(shape)
    # It reads the gradient, reads and writes parameters and two moments.
    adamw = (grad.dtype.itemsize + 6 * 4) * size
    # The compiler's count has what a kernel is given and returns in it.
    moved = hbm_bytes.accessed(hlo.parse(compiled.as_text()))
    self.assertLess(moved, limit * adamw)
    memory = compiled.memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 0.03 * 4 * size)
    # By hand: the rest reads g and p and writes p.
    by_hand = tpu.hbm_bytes(shape, dtype, 5, kernels.Chip(vmem * _MIB))
    by_hand += (grad.dtype.itemsize + 8) * size
    self.assertLess(by_hand, limit * adamw)
    self.assertAlmostEqual(moved / by_hand, 1, delta=0.02)

  def test_orders_are_the_compilers(self):
    arrays = [
      jax.ShapeDtypeStruct(shape, dtype)
      for dtype in ('float32', 'bfloat16')
      for shape in (
        *((2048, 5461), (5461, 2048), (300, 341), (341, 300), (768, 2000)),
        *((1000, 1001), (24, 768, 768), (24, 768, 2000), (24, 1368, 2048)),
        *((24, 2048, 461), (24, 461, 2048), (12, 2048, 461), (1, 2048, 461)),
        *((2, 2048, 461), (24, 1024, 2730), (6, 461, 461), (24, 461, 461)),
      )
    ]
    compiled = self._compile(lambda *x: [2 * y for y in x], 'v5e:1x1', *arrays)
    for array, form in zip(arrays, compiled.input_formats[0], strict=True):
      want = form.layout.major_to_minor
      got = tpu._order(array.shape, array.dtype)
      if len(want) == 2:
        want = (0, *(axis + 1 for axis in want))
      if array.dtype == jnp.bfloat16 and want[1] == 0:
        continue  # There two layers share a row of registers: copied.
      self.assertEqual(got, want, array)
