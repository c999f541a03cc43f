"""The reader of compiled programs, against programs whose cost is known."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from train.plan import cost, hbm_bytes, hlo, hlo_walk

# As libtpu writes: loops say nothing, constants stand in other computations,
# one asynchronous collective is spread over fusions.
_TPU = textwrap.dedent(
  """\
  HloModule jit_step, is_scheduled=true

  %add (x: f32[], y: f32[]) -> f32[] {
    %x = f32[]{:T(128)} parameter(0)
    %y = f32[]{:T(128)} parameter(1)
    ROOT %sum = f32[]{:T(128)} add(%x, %y)
  }

  %started (p.0: bf16[4,128]) -> bf16[4,512] {
    %p.0 = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
    ROOT %all-gather.1 = bf16[4,512]{1,0:T(8,128)(2,1)} all-gather(%p.0), \
  channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
  }

  %ended (p.1: bf16[4,128]) -> bf16[4,512] {
    %p.1 = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
    ROOT %all-gather.2 = bf16[4,512]{1,0:T(8,128)(2,1)} all-gather(%p.1), \
  channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
  }

  %all-reduce-scatter.3 (p.2: f32[64,8]) -> f32[16,8] {
    %p.2 = f32[64,8]{1,0:T(8,128)} parameter(0)
    %all-reduce.3 = f32[64,8]{1,0:T(8,128)} all-reduce(%p.2), channel_id=9, \
  replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
    %zero.1 = s32[]{:T(128)} constant(0)
    ROOT %part = f32[16,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.3, %zero.1, \
  %zero.1), dynamic_slice_sizes={16,8}
  }

  %inner_body (t.1: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
    %t.1 = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}, s32[]{:T(128)}) parameter(0)
    %i.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
    %v.1 = f32[8]{0:T(128)S(1)} get-tuple-element(%t.1), index=1
    %n.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=2
    %two = s32[]{:T(128)} constant(2)
    %i.2 = s32[]{:T(128)S(6)} copy(%i.1)
    %next.1 = s32[]{:T(128)} add(%i.2, %two)
    %permute.1 = (f32[8]{0:T(128)}, f32[8]{0:T(128)}, u32[]{:S(2)}, \
  u32[]{:S(2)}) collective-permute-start(%v.1), channel_id=3, \
  source_target_pairs={{0,1},{1,0}}
    %permute.2 = f32[8]{0:T(128)} collective-permute-done(%permute.1)
    ROOT %r.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) \
  tuple(%next.1, %permute.2, %n.1)
  }

  %inner_cond (t.2: (s32[], f32[8], s32[])) -> pred[] {
    %t.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) parameter(0)
    %i.3 = s32[]{:T(128)} get-tuple-element(%t.2), index=0
    %n.2 = s32[]{:T(128)} get-tuple-element(%t.2), index=2
    ROOT %less.1 = pred[]{:T(512)} compare(%i.3, %n.2), direction=LT
  }

  %outer_body (t.3: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
    %t.3 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) parameter(0)
    %i.4 = s32[]{:T(128)} get-tuple-element(%t.3), index=0
    %v.2 = f32[8]{0:T(128)} get-tuple-element(%t.3), index=1
    %n.3 = s32[]{:T(128)} get-tuple-element(%t.3), index=2
    %one = s32[]{:T(128)} constant(1)
    %next.2 = s32[]{:T(128)} add(%one, %i.4)
    %first = s32[]{:T(128)} constant(1)
    %t.4 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) tuple(%first, \
  %v.2, %n.3)
    %loop.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) while(%t.4), \
  condition=%inner_cond, body=%inner_body
    %v.3 = f32[8]{0:T(128)} get-tuple-element(%loop.1), index=1
    ROOT %r.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) \
  tuple(%next.2, %v.3, %n.3)
  }

  %outer_cond (t.5: (s32[], f32[8], s32[])) -> pred[] {
    %t.5 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) parameter(0)
    %i.5 = s32[]{:T(128)} get-tuple-element(%t.5), index=0
    %limit = s32[]{:T(128)} constant(5)
    ROOT %less.2 = pred[]{:T(512)} compare(%i.5, %limit), direction=LE
  }

  ENTRY %main (a: bf16[4,128], b: f32[64,8], c: f32[8]) -> f32[16,8] {
    %a = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
    %b = f32[64,8]{1,0:T(8,128)} parameter(1)
    %c = f32[8]{0:T(128)} parameter(2)
    %fusion.1 = bf16[4,512]{1,0:T(8,128)(2,1)} fusion(%a), kind=kOutput, \
  calls=%started
    %fusion.2 = bf16[4,512]{1,0:T(8,128)(2,1)} fusion(%a), kind=kOutput, \
  calls=%ended
    %zero = s32[]{:T(128)} constant(0)
    %seven = s32[]{:T(128)} constant(7)
    %t.6 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) tuple(%zero, %c, \
  %seven)
    %loop.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}, s32[]{:T(128)}) while(%t.6), \
  condition=%outer_cond, body=%outer_body
    ROOT %fusion.3 = f32[16,8]{1,0:T(8,128)} fusion(%b), kind=kCustom, \
  calls=%all-reduce-scatter.3
  }
  """
)


def _compiled(function, *shapes, **options):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.jit(function, **options).lower(*args).compile()


def _scan(function, times):
  return lambda x: jax.lax.scan(
    lambda x, _: (function(x), None), x, None, times
  )


class WrittenTest(parameterized.TestCase):
  """A program written by hand, as TPUs' are."""

  def test_collectives_and_how_often(self):
    found = {c.kind: c for c in cost.find_collectives(hlo.parse(_TPU))}
    self.assertLen(found, 3)
    # Once, though two fusions name it: channel 7. Groups of 4.
    gather = found['all-gather']
    self.assertEqual((gather.times, gather.bytes), (1, 4 * 512 * 2))
    self.assertEqual((gather.group, gather.largest), (4, 4 * 512))
    self.assertEqual(gather.sent, 4 * 512 * 2 * 3 / 4)
    # A fusion of this name reduces and scatters.
    scatter = found['reduce-scatter']
    self.assertEqual((scatter.bytes, scatter.group), (64 * 8 * 4, 4))
    # i = 0 ... 5 outside; inside i = 1, 3, 5, up to the 7 given from outside.
    permute = found['collective-permute']
    self.assertEqual((permute.times, permute.bytes), (6 * 3, 8 * 4))
    self.assertEqual(permute.sent, 6 * 3 * 8 * 4)

  def test_collectives_that_share_a_channel(self):
    program = """\
ENTRY %main (p: f32[8,4], q: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[8,4]{1,0} parameter(1)
  %a = f32[8,4]{1,0} all-to-all(%p), channel_id=1, replica_groups={{0,1}}
  %b = f32[8,4]{1,0} all-to-all(%q), channel_id=1, replica_groups={{0,1}}
  ROOT %c = f32[8,4]{1,0} add(%a, %b)
}
"""
    found = cost.find_collectives(hlo.parse(program))
    self.assertEqual([c.name for c in found], ['a', 'b'])
    self.assertEqual(cost.bytes_by_kind(found), {'all-to-all': 2 * 8 * 4 * 4})

  def test_bytes_in_main_memory(self):
    # Two fusions gather, one scatters; the permutation reads S(1), so that
    # only its ends in main memory count.
    gathers = 2 * (4 * 128 + 4 * 512) * 2
    scatter = (64 * 8 + 16 * 8) * 4
    permutes = 18 * (8 * 4 + 8 * 4)
    # The counters: inside a copy to S(6) and a sum with one term from there.
    counters = 18 * (4 + 2 * 4) + 6 * 3 * 4
    self.assertEqual(
      hbm_bytes.accessed(hlo.parse(_TPU)),
      gathers + scatter + permutes + counters,
    )

  def test_loop_that_does_not_say(self):
    text = _TPU.replace(
      '%limit = s32[]{:T(128)} constant(5)',
      '%limit = s32[]{:T(128)} copy(%i.5)',
    )
    module = hlo.parse(text)
    names = [loop.name for loop in hlo_walk.unknown_loops(module)]
    self.assertEqual(names, ['loop.2'])
    found = {c.kind: c.times for c in cost.find_collectives(module)}
    self.assertEqual(found['collective-permute'], 3)
    self.assertEmpty(hlo_walk.unknown_loops(hlo.parse(_TPU)))

  def test_text_that_is_no_program(self):
    with pytest.raises(ValueError, match='ENTRY'):
      hlo.parse('nothing')

  @parameterized.parameters(
    # A matrix product as a convolution; one with a batch of 8 as a spatial
    # axis that meets one place each; one with a stride and holes.
    (
      'f32[16,512]',
      'f32[512,64]',
      'f32[16,64]',
      '',
      'bf_io->bf',
      16 * 512 * 64,
    ),
    (
      *('f32[8,16,32]', 'f32[8,32,64]', 'f32[8,16,64]'),
      'window={size=8 pad=0_0 stride=7 lhs_dilate=8}, ',
      '0bf_0io->0bf',
      8 * 16 * 32 * 64,
    ),
    (
      *('f32[2,8,3]', 'f32[3,3,4]', 'f32[2,8,4]'),
      'window={size=3 pad=1_1}, ',
      'b0f_0io->b0f',
      # Of 24 pairs of place and tap two lie outside.
      2 * 22 * 3 * 4,
    ),
  )
  def test_convolutions(self, left, right, out, window, labels, products):
    text = (
      f'ENTRY %main (a: {left}, b: {right}) -> {out} {{\n'
      f'  %a = {left}{{0}} parameter(0)\n'
      f'  %b = {right}{{0}} parameter(1)\n'
      f'  ROOT %c = {out}{{0}} convolution(%a, %b), {window}'
      f'dim_labels={labels}\n}}\n'
    )
    self.assertEqual(cost.product_flops(hlo.parse(text)), {'f32': 2 * products})


@pytest.mark.nightly
class CompiledTest(parameterized.TestCase):
  """Programs that the compiler at hand has made."""

  def test_products_are_counted_as_often_as_they_run(self):
    w = np.ones((64, 64), np.float32)
    for times in (1, 7):
      compiled = _compiled(_scan(lambda x: jnp.tanh(x @ w), times), (32, 64))
      self.assertEqual(
        cost.product_flops(hlo.parse(compiled.as_text())),
        {'f32': times * 2 * 32 * 64 * 64},
      )

  def test_agrees_with_the_compiler_where_there_is_no_loop(self):
    compiled = _compiled(
      lambda x, y, z: jnp.tanh(x @ y) @ z, (128, 256), (256, 512), (512, 384)
    )
    module, known = hlo.parse(compiled.as_text()), compiled.cost_analysis()
    flops = cost.product_flops(module)['f32']
    self.assertEqual(flops, 2 * 128 * 512 * (256 + 384))
    self.assertAlmostEqual(known['flops'] / flops, 1, delta=0.01)
    self.assertAlmostEqual(
      hbm_bytes.accessed(module) / known['bytes accessed'], 1, delta=0.05
    )

  def test_slices_of_a_stack_are_read_once(self):
    # 50 layers of 1 MB, each used once: a reader that counted the whole stack
    # in every iteration would find 50 times as much.
    def function(x, stack):
      return jax.lax.scan(lambda x, w: (jnp.sin(x + w), None), x, stack)[0]

    compiled = _compiled(function, (512, 512), (50, 512, 512))
    accessed = hbm_bytes.accessed(hlo.parse(compiled.as_text()))
    megabyte = 512 * 512 * 4
    self.assertBetween(accessed / megabyte, 3 * 50 - 1, 5 * 50)

  def test_branches(self):
    w = np.ones((64, 64), np.float32)

    def function(x):
      return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x, x)

    module = hlo.parse(_compiled(function, (64, 64)).as_text())
    self.assertEqual(cost.product_flops(module), {})
    self.assertEqual(
      cost.product_flops(module, dearest=True), {'f32': 4 * 64**3}
    )

  def test_collectives_in_a_loop(self):
    mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, P('x', None))

    def function(x):
      def body(total, _):
        return jnp.sin(jnp.sum(x * total, axis=0)), None

      return jax.lax.scan(body, jnp.ones(96), None, 5)[0]

    with jax.numpy_rank_promotion('allow'):
      compiled = _compiled(function, (64, 96), in_shardings=rows)
    found = cost.find_collectives(hlo.parse(compiled.as_text()))
    self.assertEqual([c.kind for c in found], ['all-reduce'])
    self.assertEqual((found[0].times, found[0].bytes), (5, 96 * 4))
    self.assertEqual((found[0].group, found[0].largest), (8, 96))
    self.assertEqual(cost.bytes_by_kind(found), {'all-reduce': 5 * 96 * 4})
    self.assertEqual(found[0].sent, 2 * 7 / 8 * 5 * 96 * 4)
