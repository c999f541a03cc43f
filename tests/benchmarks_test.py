"""What the benchmarks count and print; benchmarks/ has how fast."""

import pathlib
import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sage_optax
from benchmarks import (
  muon_collectives,
  on_tpu,
  optimizers,
  optimizers_under_test,
  results,
  rounds,
  state_dtypes,
)
from configs import llama_1_3b
from tests.support import tiny_config
from train.plan import hlo


def _tiny():
  return optimizers_under_test.tree(tiny_config.get_config())


def _mesh():
  auto = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((1,), ('fsdp',), axis_types=auto)


class _Recorded:
  """An optimizer whose times are given."""

  def __init__(self, name, *timings):
    self.name = name
    self._timings = iter(timings)

  def time_steps(self, steps, seconds):
    del steps, seconds
    return next(self._timings)


def test_floor_counts_what_an_update_must_move():
  # SGD reads g, p and writes p; momentum is read and written, too.
  params = jax.ShapeDtypeStruct((8, 4), jnp.float32)
  for tx, units in ((optax.trace(0.9), 5), (optax.sgd(1.0), 3)):
    state = sage_optax.memory.state_bytes(tx, params)
    assert rounds.floor_bytes(128, state) == units * 128
  assert rounds.floor_bytes(128, 2 * 128) == 7 * 128


def test_ratios_are_those_of_the_same_round():
  # The machine is three times slower in the second round.
  timed = [_Recorded('a', [0.1], [0.3, 0.3]), _Recorded('b', [0.2, 0.2], [0.6])]
  found = rounds.summary(rounds.time_rounds(timed, 2), 'a')
  assert found['b'].ratio == pytest.approx(2.0)
  assert found['a'].ratio == 1.0
  assert found['b'].ms == 200.0
  assert found['b'].steps == 3


def test_slow_ones_have_fewer_turns_but_some():
  timed = [
    _Recorded('a', *[[0.1]] * 4),
    _Recorded('slow', *[[3.0]] * 2),
    _Recorded('slower', [30.0]),
  ]
  found = rounds.time_rounds(timed, 4)
  assert [len(found[optimizer.name]) for optimizer in timed] == [4, 2, 1]
  slower = rounds.summary(found, 'a')['slower']
  assert (slower.ratio, slower.low, slower.high) == (300, 30e3, 30e3)


def test_the_first_has_more_turns_in_a_round():
  timed = [_Recorded(name, [1.0], [1.0]) for name in 'bcdefg']
  found = rounds.time_rounds(
    [_Recorded('a', [2.0], [4.0], [6.0], [8.0]), *timed], 2
  )
  # Before the others, and after five of them.
  assert found['a'] == [[2.0, 4.0], [6.0, 8.0]]


@pytest.mark.nightly
@pytest.mark.parametrize('name', optimizers_under_test.names())
def test_everybody_updates_the_tree(name):
  to = _tiny()
  optimizer = optimizers_under_test.make(name, to, _mesh())
  tensors = rounds.Tensors(to)
  params, grads = tensors.params, tensors.grads
  if optimizer.unstacked:
    params, grads = map(optimizers_under_test.unstack, (params, grads))
  state = jax.eval_shape(optimizer.tx.init, params)
  updates, _ = jax.eval_shape(optimizer.tx.update, grads, state, params)
  shapes = (jax.tree.map(jnp.shape, tree) for tree in (updates, params))
  assert next(shapes) == next(shapes)


def test_peers_work_on_the_matrices_of_all_layers():
  # Left alone, Optax's muon and galore give stacked matrices to Adam.
  to = _tiny()
  kernels = jax.tree.leaves(to.roles).count('matrix')
  muon = optimizers_under_test.make('optax.muon', to, _mesh()).tx
  state = jax.eval_shape(muon.init, to.params)
  momenta = state.inner_states['muon'].inner_state[0].mu
  assert len(jax.tree.leaves(momenta)) == kernels
  params = jax.eval_shape(optimizers_under_test.unstack, to.params)
  galore = optimizers_under_test.make('optax.galore', to, _mesh()).tx
  projectors = jax.tree.leaves(jax.eval_shape(galore.init, params)[0].projector)
  projected = sum(leaf.size > 0 for leaf in projectors)
  assert projected == kernels * len(params['layers'])


def test_embeddings_have_sparse_gradients():
  grads = rounds.Tensors(_tiny()).grads
  rows = np.any(grads['embed']['embedding'], axis=1)
  assert 0 < rows.sum() < len(rows)
  assert np.all(grads['layers']['mlp']['up_proj']['kernel'])


def test_steps_are_those_between_renewals():
  tx = sage_optax.scale_by_galore(rank=2)
  grads = jax.random.normal(jax.random.key(0), (6, 4))
  state = rounds.in_mid_run(tx.init(grads))
  kept = tx.update(grads, state)[1].projector
  np.testing.assert_array_equal(kept, state.projector)
  renewed = tx.update(grads, tx.init(grads))[1].projector
  assert np.any(renewed != state.projector)


def test_subjects_take_steps_with_what_all_share():
  tensors = rounds.Tensors(_tiny())
  names = ('optax.adamw', 'optax.galore', 'sage_hybrid')
  timed = [
    rounds.JaxOptimizer(
      optimizers_under_test.make(name, _tiny(), _mesh()), tensors
    )
    for name in names
  ]
  before = jax.device_get(tensors.params)
  found = rounds.time_rounds(timed, 1)
  assert all(1 <= len(found[name][0]) <= 10 for name in names)
  assert all(optimizer.first_step() > 0 for optimizer in timed)
  for old, new in zip(
    jax.tree.leaves(before), jax.tree.leaves(tensors.params), strict=True
  ):
    assert np.any(old != new)


def test_cycles_count_loops_as_often_as_they_run_and_fusions_once():
  module = hlo.parse(
    textwrap.dedent("""\
      %fused (p: f32[8]) -> f32[8] {
        %p = f32[8]{0} parameter(0)
        ROOT %n = f32[8]{0} negate(%p), backend_config={"estimated_cycles":"7"}
      }

      %body (t: (f32[8])) -> (f32[8]) {
        %t = (f32[8]{0}) parameter(0)
        %x = f32[8]{0} get-tuple-element(%t), index=0
        %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, \
      backend_config={"window_config":{},"estimated_cycles":"100"}
        ROOT %r = (f32[8]{0}) tuple(%f)
      }

      %cond (u: (f32[8])) -> pred[] {
        %u = (f32[8]{0}) parameter(0)
        ROOT %c = pred[] constant(true)
      }

      ENTRY %main (a: f32[8]) -> (f32[8]) {
        %a = f32[8]{0} parameter(0)
        %b = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"20"}
        %s = (f32[8]{0}) tuple(%b)
        ROOT %w = (f32[8]{0}) while(%s), condition=%cond, body=%body, \
      backend_config={"known_trip_count":{"n":"5"}}
      }
      """)
  )
  assert on_tpu.estimated_cycles(module) == 20 + 5 * 100


def _rows():
  def timing(ms):
    return rounds.Timing(ms, ms - 1, ms + 1, ms / 50, 20)

  tpu = on_tpu.Figures(bytes=2 * 10**9, temp_bytes=0, cycles=4 * 10**6)
  gone = on_tpu.Figures(note='not compiled within 240 s')
  return [
    optimizers.Row('optax.adamw', timing(50), 1.5, 7, 2**21, 0, 0.5, 0.1, tpu),
    optimizers.Row('optax.sgd', timing(10), 1.0, 3 * 10**8, 0, 0, 0.1, 0.1),
    optimizers.Row('galore', timing(200), 9.0, 7, 2**20, 0, 2.0, 6.4, gone),
    optimizers.Row('torch.AdamW', timing(30)),
  ]


def test_what_is_printed():
  text = optimizers.markdown({'60M': _rows()}, results.machine())
  lines = text.splitlines()
  assert '58,073,600 parameters' in text
  assert 'memory at 30.0 GB/s' in text
  cells = ['50.0', '49.0 – 51.0', '1.00', '1.50', '2.0', '0.0', '0.5']
  row = ' | '.join(['optax.adamw', *cells, '2.00', '1.00', '0.0', '4.00'])
  assert f'| {row} |' in lines
  row = ' | '.join(['torch.AdamW', '30.0', '29.0 – 31.0', '0.60', *['-'] * 8])
  assert f'| {row} |' in lines
  # What failed, and what is left out of the times, is said.
  assert 'galore for TPU: not compiled within 240 s.' in lines
  assert any(line.startswith('galore: ') and '6.4 s' in line for line in lines)
  assert not any(line.startswith('optax.adamw: ') for line in lines)


def test_tables_are_put_in_their_places(tmp_path):
  document = tmp_path / 'README.md'
  document.write_text('# Title\n')
  results.put(document, 'one', 'first')
  results.put(document, 'two', 'second')
  results.put(document, 'one', 'third')
  lines = [line for line in document.read_text().splitlines() if line]
  assert lines == [
    '# Title',
    '<!-- benchmark: one -->',
    'third',
    '<!-- end of benchmark -->',
    '<!-- benchmark: two -->',
    'second',
    '<!-- end of benchmark -->',
  ]


def test_the_readme_quotes_what_was_printed():
  root = pathlib.Path(__file__).parent.parent
  readme = (root / 'README.md').read_text()
  quoted = re.findall(r'^\| `(.+?)` \|.* \| ([\d.]+) \|$', readme, re.MULTILINE)
  assert quoted
  printed = (root / 'benchmarks' / 'README.md').read_text()
  for name, ratio in quoted:
    row = rf'^\| {re.escape(name)} \| [^|]+ \| [^|]+ \| {ratio} \|'
    assert re.search(row, printed, re.MULTILINE), name


def _cells(printed):
  """The body of a Markdown table."""
  rows = [line.strip('| ').split(' | ') for line in printed.splitlines()]
  return rows[2:]


def test_state_dtypes(monkeypatch, capsys):
  monkeypatch.setattr(state_dtypes, '_TIMED', (2, 8, 64))
  monkeypatch.setattr(state_dtypes, '_STEPS', 20)
  methods = {'adamw': state_dtypes._METHODS['adamw']}
  monkeypatch.setattr(state_dtypes, '_METHODS', methods)
  state_dtypes.main()
  rows = _cells(capsys.readouterr().out)
  dtypes = ['float32', 'bfloat16', 'int8']
  assert [row[:2] for row in rows] == [['adamw', dtype] for dtype in dtypes]
  adamw = np.array([row[2:5] for row in rows], float)
  # Two moments in 4, 2 and 1 bytes, and 8 scales for 256 numbers.
  np.testing.assert_allclose(adamw[:, 0], [8, 4, 2.25], atol=5e-3)
  assert adamw[0, 2] == 0
  assert 0 < adamw[1, 2] < adamw[2, 2] < 0.2


def test_muon_collectives(monkeypatch, capsys):
  sent = []

  def counted(*args):
    sent.append(count(*args))
    return sent[-1]

  count = muon_collectives._bytes
  monkeypatch.setattr(muon_collectives, '_bytes', counted)
  meshes = muon_collectives._MESHES[1:]
  monkeypatch.setattr(muon_collectives, '_MESHES', meshes)
  monkeypatch.setattr(llama_1_3b, 'get_config', tiny_config.get_config)
  muon_collectives.main()
  rows = _cells(capsys.readouterr().out)
  names = ['optax.contrib.muon', 'scale_by_muon', 'with_mesh']
  assert [row[1] for row in rows] == names
  # Whole matrices go there and back, once each, if the devices are known.
  assert [kinds.get('all-to-all', 0) > 0 for kinds in sent] == [0, 0, 1]
  assert sum(sent[2].values()) < sum(sent[1].values())


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--params=1T'], "'1T'"),
    (['--methods=adamw,sgdw'], "'sgdw'"),
    ([], '8 cpu devices'),
  ],
)
def test_bad_input_is_one_line(args, message, capsys):
  assert optimizers.main(args) == 2
  line = capsys.readouterr().err
  assert message in line
  assert line.count('\n') == 1
