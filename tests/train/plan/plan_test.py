"""Planning: what is lowered, what is counted, what is said."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import tempfile

import jax
import pytest
from absl.testing import parameterized
from jax.sharding import PartitionSpec as P

import sage_optax
from train import config as config_lib
from train import files as files_lib
from train import program as program_lib
from train import state as state_lib
from train.errors import UserError
from train.plan import __main__ as plan
from train.plan import (
  chart,
  measure,
  optimizer_collectives,
  sweep,
  table,
  targets,
)

_ROOT = pathlib.Path(__file__).parents[3]
_CONFIGS = sorted(p.stem for p in (_ROOT / 'configs').glob('[a-z]*.py'))
_TINY = str(_ROOT / 'tests' / 'support' / 'tiny_config.py')
_RATE = 'optimizer.learning_rate=0.001'
_MIB = 2**20

tpu = pytest.mark.tpu
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='needs the extra tpu-plan'
)


def _load(path, *overrides):
  return config_lib.load(str(path), _RATE, 'eval.batch_size=0', *overrides)


def _config(name, *overrides):
  path = _TINY if name == 'tiny' else _ROOT / 'configs' / f'{name}.py'
  return _load(path, *overrides)


def _build(config, topology='cpu:8'):
  target = targets.parse(topology)
  return program_lib.build(
    config, targets.devices(target), target.chip.platform
  )


def _num_leaves(tree):
  return len(jax.tree.leaves(tree))


class LoweringTest(parameterized.TestCase):
  """The trainer's own step, from shapes alone."""

  def _check(self, config):
    program = _build(config)
    text = program.lower_train_step(
      config.train.batch_size, config.train.seq_len
    ).as_text()
    head = text[: text.index('{\n', text.index('@main'))]
    # All of the state is donated, and nothing else.
    donated = re.findall(r'tf\.aliasing_output|jax\.buffer_donor', head)
    self.assertLen(donated, _num_leaves(program.abstract))
    # The step of a run is made from the same parts, and is the same.
    self.assertIn('stablehlo.while', text)
    # The column of the state is the recipe's formula, shared out by the specs.
    tx, whole = program.optimizer.tx, state_lib.abstract_params(program.model)
    specs = state_lib.state_specs(
      tx,
      whole,
      jax.tree.map(lambda x: x.sharding.spec, program.abstract.params),
      program.mesh,
    ).opt_state
    self.assertEqual(
      measure.sharded_bytes(program.abstract.opt_state),
      sum(
        leaf.size
        * leaf.dtype.itemsize
        // math.prod(program.mesh.shape[axis] for axis in spec if axis)
        for leaf, spec in zip(
          jax.tree.leaves(program.abstract.opt_state),
          jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)),
          strict=True,
        )
      ),
    )
    return program

  @parameterized.named_parameters((name, name) for name in _CONFIGS)
  @pytest.mark.nightly_except('llama_60m')
  def test_every_config(self, name):
    batch = ['train.microbatch=8'] if name == 'quickstart' else []
    self._check(_config(name, *batch))

  @parameterized.named_parameters((n, n) for n in sage_optax.recipe_names())
  @pytest.mark.nightly
  def test_every_recipe(self, name):
    program = self._check(_config('llama_60m', f'optimizer.recipe={name}'))
    state = measure.sharded_bytes(program.abstract.opt_state)
    whole = program.explanation.totals['all'].state_bytes
    formula = sage_optax.memory.state_bytes(
      program.optimizer.tx, state_lib.abstract_params(program.model)
    )
    # The schedule has a counter in every part.
    self.assertBetween(formula - whole, 0, 4 * 4)
    # A rank of one cannot be shared out.
    if name != 'apollo_mini' and whole > _MIB:
      # Averages along an axis are shared out along the other one only.
      reduced = [
        x for x in jax.tree.leaves(program.abstract.opt_state) if 1 in x.shape
      ]
      state -= measure.sharded_bytes(reduced)
      whole -= sum(x.size * x.dtype.itemsize for x in reduced)
      self.assertAlmostEqual(8 * state / whole, 1, delta=0.01)

  def test_platform_is_told_not_asked(self):
    config = _config('tiny')
    devices = jax.devices()
    for platform, dtype, attention in (
      ('cpu', 'float32', 'chunked'),
      ('gpu', 'bfloat16', 'dot_product'),
    ):
      model = program_lib.build(config, devices, platform).model
      self.assertEqual(
        (model.compute_dtype, model.attention), (dtype, attention)
      )

  def test_cudnn_wants_its_key_heads_divided(self):
    config = _config(
      'tiny',
      'model.attention=cudnn',
      'model.num_heads=4',
      'model.num_kv_heads=1',
      'mesh.fsdp=4',
      'mesh.tensor=2',
    )
    with pytest.raises(UserError, match='the 1 key heads'):
      program_lib.build(config, jax.devices(), 'gpu')

  def test_without_devices_the_ones_there_are(self):
    program = program_lib.build(_config('tiny'))
    self.assertEqual(program.mesh.size, len(jax.devices()))
    self.assertEqual(program.model.attention, 'chunked')


class ProjectorTest(parameterized.TestCase):
  @parameterized.product(recipe=('galore', 'fira'), projector=('none', 'svd'))
  def test_no_decomposition_is_planned_for_tpus(self, recipe, projector):
    config = _config(
      *('llama_60m', f'optimizer.recipe={recipe}'),
      f'optimizer.projector={projector}',
    )
    changed, notes = measure.plannable(config, targets.parse('v5e:2x2'))
    self.assertEqual(changed.optimizer.projector, 'subspace')
    self.assertIn('SVD', notes[0])
    self.assertNotEqual(config.optimizer.projector, 'subspace')
    # The state is what it would be.
    self.assertEqual(
      *(
        jax.tree.map(lambda x: (x.shape, x.dtype), _build(c).abstract.opt_state)
        for c in (config, changed)
      )
    )
    for other in ('cpu:8', 'h100:8'):
      self.assertEqual(
        measure.plannable(config, targets.parse(other)), (config, [])
      )

  def test_a_projector_that_is_state_stays_state(self):
    config = _config(
      *('llama_60m', 'optimizer.recipe=apollo', 'optimizer.projector=svd')
    )
    changed, notes = measure.plannable(config, targets.parse('v5e:2x2'))
    self.assertEqual(changed.optimizer.projector, 'subspace')
    self.assertIn('SVD', notes[0])

  @parameterized.parameters(
    ('galore', 'v5e:2x2', True),
    ('galore', 'cpu:8', False),
    ('swan', 'v5e:2x2', True),
    ('apollo', 'v5e:2x2', False),
    ('adamw', 'v5e:2x2', False),
  )
  def test_little_effort_is_for_long_products_on_tpus(
    self, recipe, name, little
  ):
    target = targets.parse(name)
    config = _config('llama_60m', f'optimizer.recipe={recipe}')
    config, _ = measure.plannable(config, target)
    self.assertEqual(bool(measure.compiler_options(config, target)), little)
    quick = measure.compiler_options(config, target, quick=True)
    self.assertEqual(bool(quick), name.startswith('v5e'))

  def test_what_little_effort_changes_is_left_out(self):
    found = measure.measure(_config('tiny'), targets.parse('cpu:8'))
    quick = dataclasses.replace(found, bytes=None)
    device = targets.parse('v5e:2x2').device
    headers = ['recipe', 'peak', 'bytes', 'time']
    for measured, left_out in ((found, False), (quick, True)):
      row = sweep.RecipePlan(measured, None, [], 0)
      cells = table.cells(row, device, headers)
      self.assertEqual([c == '-' for c in cells], [False] * 2 + [left_out] * 2)

  def test_option_that_the_recipe_does_not_take(self):
    config = _config('tiny', 'optimizer.recipe=adamw', 'optimizer.rank=8')
    with pytest.raises(UserError, match='takes rank'):
      measure.plannable(config, targets.parse('v5e:2x2'))

  def test_others_are_planned_as_they_are(self):
    for recipe in ('apollo', 'sage_hybrid'):
      config = _config('llama_60m', f'optimizer.recipe={recipe}')
      found = measure.plannable(config, targets.parse('v5e:2x2'))
      self.assertEqual(found, (config, []))


class MeasureTest(parameterized.TestCase):
  @pytest.mark.nightly
  def test_what_the_compiler_counts_and_what_is_said(self):
    config = _config('tiny', 'optimizer.recipe=adamw')
    found = measure.measure(config, targets.parse('cpu:8'))
    counters = 4  # The number of the step.
    self.assertEqual(
      found.arguments, found.params + found.state + found.batch + counters
    )
    self.assertEqual(found.batch, 33 * 4)
    self.assertGreater(found.peak, found.arguments)
    self.assertAlmostEqual(found.state / (2 * found.params), 1, delta=0.01)
    # The model's products; its convention counts no more, and CPUs skip some.
    self.assertBetween(found.flops / found.model_flops, 0.9, 1.1)
    self.assertTrue(found.fits)
    self.assertIn('all-gather', found.collectives)
    self.assertEqual(found.renewal, {})

  def test_out_of_memory_is_an_answer(self):
    temporaries = (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (154.5G) exceeds available HBM (15.75G).'
    )
    self.assertEqual(
      measure.needed_bytes(temporaries, 2**30), round(155.5 * 2**30)
    )
    used = (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M '
      'of 15.75G hbm. Exceeded hbm capacity by ...'
    )
    self.assertEqual(measure.needed_bytes(used, 2**30), round(512.5 * _MIB))
    self.assertIsNone(measure.needed_bytes('INTERNAL: Used 1G of 2G hbm', 0))
    self.assertIsNone(measure.needed_bytes('RESOURCE_EXHAUSTED: files', 0))


class CollectivesTest(parameterized.TestCase):
  """What optimizers alone communicate, on eight fake devices."""

  def _rows(self, recipe, **mesh):
    sizes = [f'mesh.{k}={v}' for k, v in mesh.items()]
    config = _config('tiny', f'optimizer.recipe={recipe}', *sizes)
    return optimizer_collectives.rows(config, targets.parse('cpu:8'))

  @parameterized.parameters('lion', 'sage', 'sage_hybrid', 'sage_scale')
  def test_vectors_only(self, recipe):
    _check_vectors(self, self._rows(recipe, fsdp=4, tensor=2))

  def test_lion_says_nothing_at_all(self):
    for row in self._rows('lion', fsdp=4, tensor=2):
      self.assertEqual((row.counts, row.largest), ({}, 0))

  def test_muon_moves_matrices(self):
    # So that the tests above are known to see them.
    rows = [
      r for r in self._rows('muon', fsdp=4, tensor=2) if r.role == 'matrix'
    ]
    self.assertNotEmpty(rows)
    for row in rows:
      self.assertFalse(row.only_vectors, row)


def _check_vectors(case, rows):
  case.assertNotEmpty([row for row in rows if row.role == 'matrix'])
  for row in rows:
    case.assertTrue(row.only_vectors, row)
    # The layers' vectors go together: their sum, and less than the matrices.
    case.assertLessEqual(row.largest, row.vectors, row)
    if row.role == 'matrix':
      case.assertLess(row.largest, row.shape[0] * row.matrix // 8, row)
    case.assertLessEqual(set(row.counts), {'all-reduce'}, row)


_G = targets.GIB


@tpu
def test_all_recipes_leave_out_soap_on_tpus():
  parse = plan._parser().parse_args
  args = ['--config', str(_TINY), '--recipes', 'all', '--topology']
  names = list(sage_optax.recipe_names())
  assert plan._recipes(parse([*args, 'cpu:2']), []) == names
  names.remove('soap')
  assert plan._recipes(parse([*args, 'v5e:2x2']), []) == names


@needs_libtpu
@pytest.mark.nightly
class TpuTest(parameterized.TestCase):
  """What libtpu makes of the step; no TPU is there."""

  def test_products_are_in_bfloat16_and_the_state_saved_is_memory_saved(self):
    recipes = ('adamw', 'sage_hybrid', 'lion_hybrid')
    sizes = ('hidden_size=512', 'intermediate_size=1376', 'num_layers=4')
    # Tokens enough for the peak to be where activations are, as in real steps,
    # and not where the optimizer works, which has temporaries of its own.
    changes = [f'model.{size}' for size in sizes]
    changes += ['train.seq_len=256', 'train.batch_size=256']
    found = sweep.Sweep(_TINY, changes, 'v5e:2x2', list(recipes))
    adamw, hybrid, lion = (
      found.row(name, find_batch=False, advise=False).measurement
      for name in recipes
    )
    for m in (adamw, hybrid, lion):
      self.assertEqual(m.product_types, {'bf16': m.flops})
      self.assertBetween(m.flops / m.model_flops, 1.0, 1.4)
    saved = adamw.state - hybrid.state
    self.assertGreater(saved, 4 * _MIB)
    self.assertAlmostEqual((adamw.peak - hybrid.peak) / saved, 1, delta=0.05)
    self.assertLess(hybrid.peak, 1.01 * lion.peak)
    self.assertAlmostEqual(
      adamw.arguments / (adamw.params + adamw.state), 1, delta=0.01
    )

  @parameterized.parameters('lion', 'sage', 'sage_hybrid', 'sage_scale')
  def test_vectors_only(self, recipe):
    found = sweep.Sweep(
      _TINY, ['mesh.fsdp=4', 'mesh.tensor=2'], 'v5e:2x4', [recipe]
    )
    _check_vectors(
      self,
      [
        optimizer_collectives.ParameterUpdate(**row)
        for row in found.collectives(recipe)
      ],
    )


class TargetsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('v9:2x2', 'unknown topology'),
    ('v5e', 'unknown topology'),
    ('v5e:2x2x2', '2 axes'),
    ('v5p:4x4', '3 axes'),
    ('cpu:0', '1 axis'),
  )
  def test_unknown(self, name, message):
    with pytest.raises(UserError, match=message):
      targets.parse(name)

  def test_devices_and_chips(self):
    # A chip of the seventh generation is two devices, which share it.
    target = targets.parse('tpu7x:2x2x1')
    self.assertEqual(target.num_devices, 8)
    self.assertEqual(target.device.memory, 96 * 2**30)
    self.assertEqual(targets.parse('v5p:2x2x4').num_devices, 16)
    self.assertIsNone(targets.parse('cpu:8').device.memory)

  @parameterized.parameters(
    ('v5e:2x2', 'v5e:2x4'),
    ('v5e:4x4', 'v5e:4x8'),
    ('v5p:2x2x1', 'v5p:2x2x2'),
    ('v5p:2x2x4', 'v5p:2x4x4'),
    ('h100:8', 'h100:16'),
  )
  def test_twice_as_many(self, name, expected):
    self.assertEqual(targets.parse(name).twice().name, expected)

  def test_the_extra_is_named(self):
    if importlib.util.find_spec('jax_cuda13_plugin'):
      self.skipTest('it is installed')
    with pytest.raises(UserError, match='gpu-plan'):
      targets.check_installed(targets.parse('h100:8'))


_REST = {
  'state_all': 1,
  'batch': 1,
  'arguments': 1,
  'model_flops': 1e12,
  'renewal': {},
  'product_types': {'bf16': 1},
  'notes': [],
  'seconds': 1.0,
  'versions': {'jax': '1'},
}


def _fake_sweep(recipes=('adamw', 'lion'), *overrides, room=None, fixed=None):
  """A sweep whose compiler is a formula: fixed bytes and some per row."""

  class Fake(sweep.Sweep):
    runs = 0

    def _run(self, what, target, changes):
      Fake.runs += 1
      config = self._load(changes)
      train, recipe = config.train, config.optimizer.recipe
      rows = train.microbatch or train.batch_size
      parts = 16 / target.num_devices
      static = (fixed or {}).get(recipe, 0) * parts
      remat = 1 if config.model.remat == 'full' else 2
      peak = round(static + 0.011 * targets.GIB * rows * parts * remat)
      return {
        'recipe': recipe,
        'batch_size': train.batch_size,
        'microbatch': rows,
        'params': round(static / 3),
        'grads': round(static / 3),
        'state': round(static / 3),
        'peak': peak,
        'fits': peak <= 15.75 * targets.GIB,
        'flops': 2e12,
        'bytes': 10**9,
        'collectives': {'all-reduce': 10**9},
        'sent': 2e9,
        **_REST,
      }

  # Where libtpu is missing the formula does as well.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(targets, 'check_installed', lambda target: None)
    path = str(_ROOT / 'configs' / 'llama_1_3b.py')
    return Fake(path, list(overrides), 'v5e:4x4', list(recipes))


class SweepTest(parameterized.TestCase):
  """Searches, with a formula for a compiler."""

  @parameterized.parameters(1.0, 4.0, 12.0, 15.0)
  def test_largest_batch(self, fixed):
    fake = _fake_sweep(fixed={'adamw': fixed * _G})
    row = fake.row('adamw', find_batch=True, advise=False)
    exact = (15.75 - fixed) / 0.011
    self.assertTrue(row.largest.fits)
    self.assertEqual(row.largest.batch_size % 16, 0)
    self.assertLessEqual(row.largest.batch_size, exact)
    # To a sixteenth, or to one sequence a device.
    self.assertGreaterEqual(
      row.largest.batch_size, exact - max(exact / 16 + 16, 16)
    )
    self.assertLessEqual(fake.runs, 9)

  def test_nothing_fits(self):
    fake = _fake_sweep(fixed={'adamw': 40 * _G})
    row = fake.row('adamw', find_batch=True, advise=True)
    self.assertIsNone(row.largest)
    # 40 GiB of state for 16 chips: four times as many, whatever the batch.
    self.assertLen(row.advice, 1)
    self.assertIn('--topology v5e:8x8', row.advice[0])

  def test_the_smallest_change_is_compiled(self):
    fake = _fake_sweep(('adamw',), 'train.batch_size=2048')
    row = fake.row('adamw', find_batch=False, advise=True)
    self.assertFalse(row.measurement.fits)
    # 22.5 GiB for 2048 sequences: half of them.
    self.assertStartsWith(row.advice[0], '--config.train.microbatch=1024 (11.2')
    self.assertLen(row.advice, 1)
    self.assertEqual(fake.runs, 2)

  def test_less_rematerialization_is_noticed(self):
    fake = _fake_sweep(
      *(('adamw',), 'train.batch_size=16', 'model.remat=dots'),
      fixed={'adamw': 15.5 * _G},
    )
    row = fake.row('adamw', find_batch=False, advise=True)
    self.assertStartsWith(row.advice[0], '--config.model.remat=full')

  def test_no_advice_is_wanted_or_needed(self):
    fake = _fake_sweep()
    self.assertEqual(
      fake.row('adamw', find_batch=False, advise=True).advice, []
    )
    self.assertEqual(fake.runs, 1)

  def test_next_batch_ends(self):
    for slope in (1, 7, 100):
      for start in (8, 64, 4096):
        tried, batch = {}, start
        while batch is not None:
          need = 50 + slope * batch + (batch > 500) * 3000
          tried[batch] = (need, need <= 5000)
          self.assertLess(len(tried), 30)
          batch = sweep.next_batch(tried, 5000, 8)
        good = [b for b, (_, fits) in tried.items() if fits]
        self.assertNotEmpty(good)
        step = max(8, max(good) // 16 // 8 * 8)
        above = max(good) + step
        need = 50 + slope * above + (above > 500) * 3000
        self.assertGreater(need, 5000)

  def test_next_batch_bears_uneven_needs(self):
    tried, batch = {}, 512
    while batch is not None:
      need = 0.1 * _G + 1e8 * batch * (1 + 0.03 * math.sin(batch))
      tried[batch] = (need, need <= 16 * _G)
      batch = sweep.next_batch(tried, 16 * _G, 4)
    self.assertLessEqual(len(tried), 8)
    self.assertGreater(max(b for b, (_, fits) in tried.items() if fits), 150)


class OutputTest(parameterized.TestCase):
  def _rows(self, **kwargs):
    fake = _fake_sweep(fixed={'adamw': 15 * _G, 'lion': 3 * _G}, **kwargs)
    rows = [
      fake.row(name, find_batch=True, advise=True) for name in ('adamw', 'lion')
    ]
    return rows, fake

  def test_text(self):
    rows, fake = self._rows()
    text = table.text(rows, fake)
    for line in text.splitlines():
      self.assertLessEqual(len(line), 120)
    head, *_ = text.split('recipe')
    self.assertIn('1,319,684,096 parameters', ' '.join(head.split()))
    # 2 GB at 200 GB/s take 10 ms, 2 TFLOP at 197 T/s 10.2.
    lion = next(x for x in text.splitlines() if x.startswith('lion '))
    self.assertRegex(lion, r' 10 c +\d+$')
    flat = ' '.join(text.split())
    self.assertIn('a lower bound', flat)
    self.assertIn('! adamw does not fit: it needs 17.82 GiB of 16.0', flat)
    self.assertIn(
      'These would fit: one of lion; --config.train.microbatch=', flat
    )

  def test_markdown_is_put_in_its_place(self):
    rows, fake = self._rows()
    block = table.markdown(rows, fake)
    lines = [x for x in block.splitlines() if x.startswith('|')]
    self.assertLen({x.count('|') for x in lines}, 1)
    self.assertLen(lines, 4)
    once = files_lib.replace_block(
      '# Scale\n\ntext\n', 'plan', 'x v5e:4x4', block
    )
    twice = files_lib.replace_block(
      once + 'after\n', 'plan', 'x v5e:4x4', 'new'
    )
    self.assertEqual(
      twice,
      '# Scale\n\ntext\n\n<!-- plan: x v5e:4x4 -->\nnew\n<!-- end of plan -->\n'
      'after\n',
    )
    both = files_lib.replace_block(twice, 'plan', 'y v5e:4x4', 'other')
    self.assertEqual(both.count('<!-- plan:'), 2)

  def test_json_has_everything(self):
    rows, fake = self._rows()
    found = json.loads(json.dumps(table.to_json(rows, fake, [])))
    fields = {field.name for field in dataclasses.fields(measure.Measurement)}
    for row in found['rows']:
      self.assertLessEqual(fields, set(row))
      self.assertEqual(
        row['peak'],
        row['params'] + row['grads'] + row['state'] + row['temporaries'],
      )
    self.assertEqual(found['mesh'], {'data': 1, 'fsdp': 16, 'tensor': 1})

  def test_collectives_have_their_notes_once(self):
    row = optimizer_collectives.ParameterUpdate(
      *('galore', 'layers/q/kernel', 'matrix', (2, 8, 8), (None, None, 'fsdp')),
      matrix=64,
      vectors=32,
      counts={'all-reduce': 1},
      bytes={'all-reduce': 2000},
      largest=8,
      notes=["planned with projector='subspace'"],
    )
    *_, parameter, note = table.collectives(
      2 * [dataclasses.asdict(row)]
    ).splitlines()
    self.assertRegex(parameter, r'^galore .* 1 all-reduce +2 +8 +yes$')
    self.assertEqual(note, "galore: planned with projector='subspace'.")

  def test_chart(self):
    rows, fake = self._rows()
    path = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory()), 'x.png'
    )
    chart.stacked_bars(rows, fake, path)
    self.assertEqual(path.read_bytes()[:4], b'\x89PNG')


class CommandTest(parameterized.TestCase):
  @parameterized.parameters(
    (('--topology', 'v9:1'), 'unknown topology'),
    (('--topology', 'cpu:8', '--mesh', 'fsdp=4'), 'there are 8 devices'),
    (('--topology', 'cpu:8', '--mesh', 'heads=8'), 'data, fsdp and tensor'),
    (('--topology', 'cpu:8', '--recipes', 'adam'), "recipe is 'adam'"),
    (('--topology', 'cpu:8', '--batch', '9'), 'not divisible by the 8'),
    (('--topology', 'cpu:8', '--config.train.stepz=9'), 'config.train.steps'),
    (('--topology', 'cpu:8', '--steps=9'), 'unexpected argument'),
  )
  def test_bad_input_is_one_line(self, args, message):
    with pytest.MonkeyPatch.context() as patch:
      lines = []
      patch.setattr('builtins.print', lambda line, **_: lines.append(line))
      self.assertEqual(plan.main(['--config', _TINY, *args]), 2)
    self.assertLen(lines, 1)
    self.assertStartsWith(lines[0], 'error: ')
    self.assertIn(message, lines[0])
    self.assertNotIn('\n', lines[0])

  @pytest.mark.slow
  def test_a_plan_from_the_command_line(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    files = {x: folder / f'plan.{x}' for x in ('json', 'png', 'markdown')}
    lines = []
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr('builtins.print', lambda text, **_: lines.append(text))
      status = plan.main(
        [
          *(
            '--config',
            _TINY,
            '--topology',
            'cpu:4',
            '--recipes',
            'adamw,lion',
          ),
          *('--mesh', 'fsdp=2,tensor=2', '--batch', '4'),
          *(
            x for name, path in files.items() for x in (f'--{name}', str(path))
          ),
        ]
      )
    self.assertEqual(status, 0)
    self.assertIn('4 devices', lines[0])
    rows = json.loads(files['json'].read_text())['rows']
    adamw, lion = rows
    self.assertEqual(adamw['batch_size'], 4)
    self.assertAlmostEqual(adamw['state'] / lion['state'], 2, delta=0.01)
    # What the compiler finds in the arguments is the state's difference.
    self.assertEqual(
      adamw['arguments'] - lion['arguments'], adamw['state'] - lion['state']
    )
    for row in rows:
      self.assertTrue(math.isfinite(row['peak']))
    for path in files.values():
      self.assertGreater(path.stat().st_size, 100)
