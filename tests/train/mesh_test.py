import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from models import llama
from train import mesh as mesh_lib
from train import state
from train.config import Config
from train.errors import UserError

_LLAMA = llama.LlamaConfig(
  vocab_size=96,
  hidden_size=48,
  intermediate_size=90,
  num_layers=2,
  num_heads=6,
  num_kv_heads=2,
)


def _mesh(data, fsdp, tensor, batch_size=8):
  config = Config()
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = data, fsdp, tensor
  config.train.batch_size = batch_size
  devices = jax.devices()
  if -1 not in (data, fsdp, tensor):
    devices = devices[: data * fsdp * tensor]
  return mesh_lib.make_mesh(config, devices)


def _specs(mesh, strict=False):
  return mesh_lib.param_specs(
    llama.logical_axes(_LLAMA),
    state.abstract_params(_LLAMA),
    mesh,
    strict=strict,
    units=mesh_lib.axis_units(_LLAMA),
  )


class MakeMeshTest(parameterized.TestCase):
  @parameterized.parameters(
    ((1, -1, 1), (1, 8, 1)),
    ((-1, 2, 2), (2, 2, 2)),
    ((2, 2, -1), (2, 2, 2)),
    ((1, 1, 1), (1, 1, 1)),
  )
  def test_the_rest_goes_to_the_axis_of_minus_one(self, sizes, expected):
    mesh = _mesh(*sizes)
    self.assertEqual(
      dict(mesh.shape), dict(zip(mesh_lib.AXES, expected, strict=True))
    )
    self.assertEqual(set(mesh.axis_types), {AxisType.Auto})

  def test_batch_that_the_mesh_does_not_divide(self):
    with pytest.raises(
      UserError, match=r'train\.batch_size=6 is not divisible'
    ):
      _mesh(2, 2, 2, batch_size=6)

  def test_platform_that_is_not_there(self):
    self.assertEqual(mesh_lib.resolve_platform('auto'), 'cpu')
    self.assertEqual(mesh_lib.resolve_platform('cpu'), 'cpu')
    with pytest.raises(UserError, match='tpu'):
      mesh_lib.resolve_platform('tpu')


class ParamSpecsTest(parameterized.TestCase):
  def test_every_axis_has_its_place(self):
    specs, replicated = _specs(_mesh(2, 2, 2))
    self.assertEqual(replicated, ())
    self.assertEqual(specs['embed']['embedding'], P('tensor', 'fsdp'))
    self.assertEqual(specs['lm_head']['kernel'], P('fsdp', 'tensor'))
    self.assertEqual(specs['final_norm']['scale'], P('fsdp'))
    layers = specs['layers']
    self.assertEqual(layers['mlp_norm']['scale'], P(None, 'fsdp'))
    self.assertEqual(
      layers['attention']['k_proj']['kernel'], P(None, 'fsdp', 'tensor')
    )
    self.assertEqual(
      layers['attention']['o_proj']['kernel'], P(None, 'tensor', 'fsdp')
    )
    self.assertEqual(
      layers['mlp']['down_proj']['kernel'], P(None, 'tensor', 'fsdp')
    )

  def test_axis_that_the_mesh_does_not_divide_is_replicated(self):
    # 90 hidden units do not split in 4, 6 heads and 2 key heads neither,
    # although their 48 columns would.
    specs, replicated = _specs(_mesh(1, 2, 4))
    self.assertEqual(
      specs['layers']['mlp']['up_proj']['kernel'], P(None, 'fsdp', None)
    )
    self.assertEqual(
      specs['layers']['attention']['q_proj']['kernel'], P(None, 'fsdp', None)
    )
    self.assertEqual(specs['embed']['embedding'], P('tensor', 'fsdp'))
    self.assertEqual(
      {(r.axis, r.size) for r in replicated},
      {('mlp', 90), ('heads', 6), ('kv_heads', 2)},
    )
    self.assertIn('layers/mlp/up_proj/kernel', ' '.join(map(str, replicated)))
    self.assertLen(replicated, 7)

  def test_strict_makes_it_an_error(self):
    with pytest.raises(
      UserError, match=re.escape('is not divisible by tensor=4')
    ):
      _specs(_mesh(1, 2, 4), strict=True)
    _specs(_mesh(2, 2, 2), strict=True)

  def test_wanted_specs_shard_everything(self):
    wanted = mesh_lib.wanted_specs(llama.logical_axes(_LLAMA))
    self.assertEqual(wanted, _specs(_mesh(2, 2, 2))[0])


class ActivationTest(parameterized.TestCase):
  def test_constrain_shards_what_divides(self):
    hook = mesh_lib.constrain(_mesh(2, 2, 2))

    def sharding(shape, axes):
      x = jnp.zeros(shape)
      return jax.jit(lambda x: hook(x, axes))(x).sharding.spec

    axes = ('batch', 'sequence', 'heads', None)
    self.assertEqual(
      sharding((8, 3, 4, 2), axes), P(('data', 'fsdp'), None, 'tensor')
    )
    self.assertEqual(sharding((8, 3, 5, 2), axes), P(('data', 'fsdp')))
    self.assertEqual(sharding((6, 3, 4, 2), axes), P(None, None, 'tensor'))

  def test_put_batch_gives_each_device_its_rows(self):
    batch = np.arange(8 * 3, dtype=np.int32).reshape(8, 3)
    placed = mesh_lib.put_batch(batch, _mesh(2, 2, 2))
    self.assertEqual(placed.sharding.spec, mesh_lib.batch_spec())
    self.assertEqual(
      {s.data.shape for s in placed.addressable_shards}, {(2, 3)}
    )
    np.testing.assert_array_equal(placed, batch)
