"""The report: its statistics, and the same bytes for the same results."""

import dataclasses
import json
import math
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import sage_optax
from configs import quickstart
from experiments import (
  arms,
  outcome,
  report,
  run,
  schedule,
  studies,
  times,
  trial,
  tuning,
)
from experiments.arms import ARMS, RECIPE_ARMS, TABLE_ARMS
from experiments.evidence import analysis, choice, figures, tables, verdicts
from experiments.evidence.rule_names import RULES
from sage_optax import recipe_table
from tests.support import runs

_STUDY = studies.STUDIES['small_tied']
_OPTIMA = {'adamw': 3.0, 'sage': 3.1, 'sinkgd': 3.4}


def _line(one):
  """A made-up result: a bowl in the rates, and noise that seeds share."""
  options = dict(one.options)
  distance = sum(
    math.log2(options[name] / 4e-3) ** 2
    for name in ('embedding_rate', 'matrix_rate')
  )
  shared = np.random.default_rng(one.seed).normal(0, 0.1)
  own = np.random.default_rng([one.seed, len(one.arm)]).normal(0, 0.01)
  loss = _OPTIMA[one.arm] + 0.01 * distance + shared + own
  return {
    'cell': one.cell,
    'arm': one.arm,
    'options': options,
    'seed': one.seed,
    'loss': loss,
    'bits_per_byte': loss / 2,
    'by_decile': [loss + i for i in range(10)],
    'train_curve': [[10, loss + 1], [20, loss - 0.25]],
    'diverged': options['embedding_rate'] > 0.1,
    'state_bytes': {'adamw': 200_000, 'sage': 100_000, 'sinkgd': 8}[one.arm],
    'step_core_seconds': 0.1,
    'spikes': 0,
  }


def _write_results(root, most):
  """Made-up results of three arms, up to a number of runs."""
  path = trial.path_of(_STUDY.name, root)
  part = dataclasses.replace(
    _STUDY, blocks=(('small_tied', ('adamw', 'sage', 'sinkgd')),)
  )
  losses = {}
  for _ in range(300):
    ready = schedule.missing_trials(part, losses)
    if not ready or len(losses) > most:
      break
    line = _line(ready[0])
    trial.append(path, line)
    losses |= trial.losses([line])


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  root = tmp_path_factory.mktemp('results')
  _write_results(root, 45)  # The last arm is not finished.
  return root


def _summaries(results):
  return {s.arm: s for s in analysis.summarize(_STUDY, results)}


def _found(root):
  return {
    name: analysis.summarize(study, root)
    for name, study in studies.STUDIES.items()
  }


def test_paired_differences_agree_with_scipy(results):
  found = _summaries(results)
  a, b = found['sage'], found['adamw']
  gap = analysis.difference(a, b)
  pairs = np.array(
    [(a.losses[seed], b.losses[seed]) for seed in _STUDY.seeds]
  ).T
  test = stats.ttest_rel(*pairs)
  low, high = test.confidence_interval(0.95)
  assert gap.pairs == 5
  assert gap.p == pytest.approx(test.pvalue)
  assert gap.mean == pytest.approx((low + high) / 2)
  assert gap.half_width == pytest.approx((high - low) / 2)
  assert verdicts.answer(gap) == 'higher'
  # Seed 0, which tuned, is in no comparison.
  assert 0 not in a.losses


def _finished(cell, arm, losses, state_bytes=0):
  lines = {i + 1: {'loss': x, 'diverged': False} for i, x in enumerate(losses)}
  progress = schedule.ArmProgress(None, [], len(lines), 0)
  best = {'state_bytes': state_bytes}
  return analysis.Summary(cell, arm, progress, [], {}, lines, best)


def test_answers_about_recipes_by_cell():
  def answers(*medium):
    found = [
      _finished(cell, 'recipe_adamw', (3.0, 3.1, 3.2), 1000)
      for cell in ('small_tied', 'medium_tied')
    ]
    found += [
      _finished('small_tied', 'row_rms', (2.99, 3.092, 3.191), 10),
      _finished('small_tied', 'lion', (2.9, 3.0, 3.1), 500),
      _finished('small_tied', 'sinkgd', (3.3, 3.4, 3.5), 0),
      _finished('small_tied', 'recipe_sage_hybrid', (2.9, 2.999, 3.1), 500),
      *medium,
    ]
    return verdicts._prize(found), verdicts._hybrid(found)

  prize, hybrid = answers()
  # `lion` has too much state. sd 0.001, t(0.975, 2) 4.303, 3 pairs.
  half = 4.303 * 0.001 / 3**0.5
  assert prize == (
    'Yes in `small_tied`: `row_rms` is the best with so little state (2 '
    'finished, recipes and rules); its loss minus that of `recipe_adamw` is '
    f'-0.0090 ± {half:.4f}. `medium_tied` is not measured yet.'
  )
  assert hybrid.startswith('Its loss in `small_tied` is lower (-0.1003 ± ')
  prize, hybrid = answers(
    _finished('medium_tied', 'row_rms', (3.02, 3.121, 3.219), 10),
    _finished('medium_tied', 'recipe_sage_hybrid', (3.1, 3.0, 3.2), 500),
  )
  assert 'Yes in `small_tied`' in prize
  assert 'No in `medium_tied`: `row_rms` is the best' in prize
  assert '`medium_tied` is no difference seen' in hybrid


def test_sage_against_others_by_cell():
  # In the order of V, how far SAGE is below SinkGD.
  cells = {'toy_v512': 0.4, 'toy_v1024': 0.6, 'toy_v2048': 0.5}
  rules = [
    _finished(cell, arm, losses)
    for cell, gap in cells.items()
    for arm, losses in (
      ('sage', (3.0, 3.1, 3.2)),
      ('sinkgd', (3.0 + gap, 3.101 + gap, 3.199 + gap)),
    )
  ]
  absent = schedule.ArmProgress(None, [], 0, 1)
  # The second one has more than a token a row, and is not in the rule.
  for cell in ('toy_v1024_t0.125', 'toy_v1024_t2'):
    for arm in ('sage', 'sinkgd'):
      one = _finished(cell, arm, ())
      rules.append(dataclasses.replace(one, progress=absent))
  recipes = [
    _finished(cell, 'recipe_adamw', (3.0, 3.1))
    for cell in ('small_tied', 'medium_tied')
  ]
  text = verdicts.text({'toy': rules, 'small_recipes': recipes})
  assert 'Against `sinkgd`: lower in 3, not measured in 1 of 4 cells.' in text
  assert (
    'for V 512, 1024, 2048: 0.40, 0.60, 0.50, not growing at every step.'
  ) in text
  text = verdicts.text({'toy': rules[:4], 'small_recipes': recipes})
  assert 'for V 512, 1024: 0.40, 0.60, growing at every step.' in text


def test_a_difference_is_worth_tokens():
  arm = 'recipe_adamw'
  cells = {'small_recipes': ['small_tied']}
  cells['small_tokens'] = ['small_tied_x0.5', 'small_tied_x2']
  losses = {'small_tied_x0.5': (4.2, 4.4), 'small_tied_x2': (4.0, 4.2)}
  losses['small_tied'] = (4.1, 4.3, 9.9)  # Only two seeds are common.
  found = {
    study: [_finished(cell, arm, losses[cell]) for cell in names]
    for study, names in cells.items()
  }
  found['small_recipes'].append(_finished('small_tied', 'recipe_sage', (1, 2)))
  (text,) = verdicts.worth(found)
  assert '4.3000, 4.2000 and 4.1000' in text
  # 0.1 nats a doubling: 0.01 nats are 2 ** 0.1 - 1 = 7 % of the tokens.
  assert 'A doubling lowers it by 0.1000 nats' in text
  assert 'about 7% of the tokens' in text
  assert not verdicts.worth({**found, 'small_tokens': []})


def test_rates_of_two_widths_side_by_side():
  def tuned(cell, arm, embedding, matrix):
    rates = {'embedding_rate': embedding, 'matrix_rate': matrix}
    result = _finished(cell, arm, (1.0, 2.0))
    found = tuning.Tuned(rates, [], True)
    progress = dataclasses.replace(result.progress, tuned=found)
    return dataclasses.replace(result, progress=progress)

  small = [tuned('small_tied', name, 0.064, 0.016) for name in ('a', 'b')]
  medium = [tuned('medium_tied', 'a', 0.032, 0.004)]
  text = '\n'.join(tables.widths(small, medium))
  assert '| table, width 64 | width 128 | ratio | matrices, width 64' in text
  assert '| `a` | 0.064 | 0.032 | 0.5 | 0.016 | 0.004 | 0.25 |' in text
  assert '`b`' not in text
  assert not tables.widths(small, [_finished('medium_tied', 'a', (1.0,))])


def test_the_recipe_to_use_depends_on_the_memory(monkeypatch):
  losses = {
    'adamw': (3.1, 3.2, 3.3),
    'rms_muon': (3.21, 3.31, 3.42),
    'lion': (3.11, 3.2, 3.3),  # not surely worse than AdamW
    'sage_hybrid': (3.3, 3.4, 3.51),
    'muon': (3.4, 3.5, 3.61),
  }
  states = {'rms_muon': 10, 'lion': 1005, 'sage_hybrid': 500, 'muon': 500}
  small = [
    _finished('small_tied', f'recipe_{name}', x, states.get(name, 1000))
    for name, x in losses.items()
  ]
  names = [s.arm.removeprefix('recipe_') for s in choice.front(small)]
  assert names == ['rms_muon', 'adamw']
  worse = [(a.arm, b.arm, gap) for a, b, gap in choice.beaten(small)]
  assert [pair[:2] for pair in worse] == [
    ('recipe_sage_hybrid', 'recipe_rms_muon'),
    ('recipe_muon', 'recipe_rms_muon'),
  ]
  assert worse[0][2].mean == pytest.approx(0.09)
  monkeypatch.setattr(choice, '_tuned_call', lambda summary: summary.arm)
  larger = [_finished('medium_tied', 'recipe_lion', (1.0, 2.0), 9)]
  text = choice.text(small, larger)  # The larger cell has no baseline yet.
  assert '| `rms_muon` | 1 | +0.1133 ± 0.0143 |  |' in text
  assert '| `adamw` | 100 | 0 | -0.1133 ± 0.0143 |' in text
  assert 'medium_tied' not in text
  larger.append(_finished('medium_tied', 'recipe_adamw', (1.1, 2.1), 9))
  text = choice.text(small, larger)
  assert "AdamW's, `small_tied` | `medium_tied` |" in text
  assert text.count('recipe_lion') == 2  # a call for each model
  assert not choice.text(small[1:], larger)


@pytest.mark.parametrize(
  ('name', 'matrix_rate'),
  # Equal rates need a factor of 1, since sage_hybrid has its own.
  [
    ('adamw', 0.016),
    ('sage_hybrid', 0.064),
    ('apollo', 0.016),
    ('scale', 0.016),
  ],
)
def test_calls_do_what_the_arms_did(name, matrix_rate):
  arm = ARMS[f'recipe_{name}']
  rates = {'embedding_rate': 0.064, 'matrix_rate': matrix_rate}
  options = {**arm.start, **rates, 'weight_decay': 0.1}
  call = choice.call_of(arm, options)
  rng = np.random.default_rng(0)
  params = {
    'embed': {'embedding': rng.normal(size=(24, 20))},
    'mlp': {'kernel': rng.normal(size=(20, 18))},
    'norm': {'scale': rng.normal(size=20)},
  }
  params = jax.tree.map(jnp.float32, params)
  grads = jax.tree.map(jnp.sin, params)
  updates = []
  for tx in (
    arms.optimizer(arm, options, lambda step: 1.0),
    optax.chain(
      optax.clip_by_global_norm(arms.CLIP),
      eval(call, {'sage_optax': sage_optax}),
    ),
  ):
    state = tx.init(params)
    _, state = tx.update(grads, state, params)
    found, _ = tx.update(params, state, params)
    updates.append(found)
  chex.assert_trees_all_close(*updates, rtol=1e-6)
  changed = choice.call_of(arm, {**options, 'weight_decay': 0.0})
  assert 'weight_decay' in call
  assert 'weight_decay' not in changed
  assert choice.call_of(ARMS['recipe_optax_muon'], options) is None
  assert choice.call_of(ARMS['adamw'], options) is None


def test_holm():
  # p times the number of larger or unknown ones and itself, never less than
  # one before.
  assert analysis.holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx(
    [0.04, None, 0.09, 0.09, 0.025]
  )


def test_an_unfinished_arm_is_said_to_be(results):
  found = _summaries(results)
  assert found['adamw'].complete
  assert not found['sinkgd'].complete
  assert analysis.difference(found['lion'], found['adamw']) is None
  window = analysis.window(found['adamw'], 'embedding_rate')
  assert window == pytest.approx((2e-3, 8e-3))
  assert tables._good_rates(found['adamw']) == '≤ 0.002 to 0.008'
  lines = found['adamw'].tuning
  few = [x for x in lines if x['options']['embedding_rate'] < 0.01]
  one = dataclasses.replace(found['adamw'], tuning=few)
  assert tables._good_rates(one) == '≤ 0.002 to ≥ 0.008'


def test_the_page_is_the_same_to_the_byte(results, tmp_path):
  pages = []
  for name in ('a', 'b'):
    docs = tmp_path / name
    docs.mkdir()
    report.write(results, docs)
    pages.append(
      {p.relative_to(docs): p.read_bytes() for p in docs.rglob('*.*')}
    )
  assert pages[0] == pages[1]
  text = (tmp_path / 'a' / 'evidence.md').read_text()
  drawn = {path.name for path in (tmp_path / 'a' / 'evidence').iterdir()}
  assert drawn == set(re.findall(r'\]\(evidence/(.*?)\)', text))
  assert 'small_tied_deciles.png' in drawn
  assert 'Not measured yet: about' in text  # the other studies
  mean = _summaries(results)['sage'].mean()
  assert f'| `sage` | {mean:.4f} |' in text
  assert '| `sinkgd` (still tuning) | *' in text
  found = _summaries(results)
  gap = analysis.difference(found['sage'], found['adamw']).mean
  assert f'others: `sage` {gap:+.3f} and {gap:+.3f}.' in text


def test_step_times_come_from_their_own_measurement(tmp_path, monkeypatch):
  root = tmp_path / 'results'
  _write_results(root, 45)
  monkeypatch.setattr(
    times, 'measure', lambda cell, arms, rounds: {'adamw': 0.0854, 'lion': 1.0}
  )
  monkeypatch.setattr(run, 'commit_of', lambda allow_changes: 'abc')
  for _ in range(2):  # The second time replaces the first.
    assert times.main(['--results', str(root)]) == 0
  assert len(trial.times_of('small_tied', root).read_text().splitlines()) == 2
  found = _summaries(root)
  measured = analysis.step_times('small_tied', root)
  everything = list(found.values())
  rows = tables.table(everything, found['adamw'], measured).splitlines()
  assert sum('core-ms a step |' in row for row in rows) == 1
  (adamw,) = (r for r in rows if r.startswith('| `adamw` | 0.004'))
  assert adamw.endswith('| 85 |')
  (sage,) = (r for r in rows if r.startswith('| `sage` | 0.004'))
  assert sage.endswith('|  |')  # not measured
  assert 'core-ms' not in tables.table(everything, found['adamw'], {})


def test_arms_of_a_cell_are_those_of_all_its_studies():
  arms = times.arms_in('small_tied')
  assert len(arms) == len(set(arms))
  assert set(arms) == {arm.name for arm in (*TABLE_ARMS, *RECIPE_ARMS)}


def test_the_front_needs_three_finished_arms(results, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    figures, 'pareto', lambda found, *args: drawn.append((found, *args))
  )
  pictures = tmp_path / 'docs' / 'evidence'
  pictures.mkdir(parents=True)
  (pictures / 'state.png').write_bytes(b'of earlier results')
  report.write(results, tmp_path / 'docs')
  assert not drawn
  assert not (pictures / 'state.png').exists()
  _write_results(tmp_path / 'results', 100)
  report.write(tmp_path / 'results', tmp_path / 'docs')
  ((finished, baseline, about, path),) = drawn
  assert {s.arm for s in finished} == set(_OPTIMA)
  assert baseline.arm == 'adamw'
  assert '3 rules for the embedding table: a Llama, 2 layers' in about
  assert path == pictures / 'small_tied_state.png'


def test_options_that_the_search_missed_are_listed(results, tmp_path):
  root = tmp_path / 'results'
  shutil.copytree(results, root)
  assert 'can miss' not in tables.limits(_found(root))
  sage = _summaries(root)['sage']
  options = {**sage.progress.tuned.options, 'weight_decay': 1.0, 'beta': 0.8}
  tuned = _line(
    trial.make('small_tied', 'sage', sage.progress.tuned.options, 0)
  )
  for seed, loss in ((0, tuned['loss'] - 0.5), (1, 2.25), (2, 2.75)):
    line = _line(trial.make('small_tied', 'sage', options, seed))
    trial.append(trial.path_of('small_tied', root), {**line, 'loss': loss})
  text = tables.limits(_found(root))
  assert 'For 1 of 2 tuned optimizers' in text
  fresh = sage.mean()
  assert (
    f'| `small_tied` | `sage` | 0 | {tuned["loss"]:.4f} | {fresh:.4f} | 1 | '
    f'{tuned["loss"] - 0.5:.4f} | 2.5000 |'
  ) in text


def test_the_committed_page_is_that_of_the_results(tmp_path):
  report.write(runs.ROOT / trial.RESULTS, tmp_path)
  page = (runs.ROOT / report.DOCS / 'evidence.md').read_text()
  assert (tmp_path / 'evidence.md').read_text() == page
  for name in re.findall(r'\]\((evidence/.*?)\)', page):
    assert (runs.ROOT / report.DOCS / name).exists()


def _finished_in(name):
  """The finished arms of a study, as committed."""
  found = analysis.summarize(studies.STUDIES[name], runs.ROOT / trial.RESULTS)
  return {s.arm: s for s in found if s.complete}


def test_numbers_of_the_readme_are_those_of_the_results():
  readme = (runs.ROOT / 'README.md').read_text()
  section = readme.split('## What the study')[1].split('\n## ')[0]
  recipes, rules = _finished_in('small_recipes'), _finished_in('small_tied')
  medium = _finished_in('medium')
  shown = re.findall(r'([\d.]+)\s±\s([\d.]+)', section)
  expected = [
    analysis.difference(recipes['recipe_muon'], recipes['recipe_adamw']),
    analysis.difference(recipes['recipe_rms_muon'], recipes['recipe_adamw']),
    analysis.difference(medium['recipe_rms_muon'], medium['recipe_adamw']),
    analysis.difference(rules['sage'], rules['adamw']),
    analysis.difference(
      recipes['recipe_adamw_one_rate'], recipes['recipe_adamw']
    ),
  ]
  assert [gap.mean > 0 for gap in expected] == [False] * 3 + [True] * 2
  assert len(shown) == len(expected)
  for (mean, half), gap in zip(shown, expected, strict=True):
    off = 0.6 * 10 ** -len(mean.split('.')[1])  # rounded
    assert float(mean) == pytest.approx(abs(gap.mean), abs=off)
    assert float(half) == pytest.approx(gap.half_width, abs=off)
  ours, baseline = (
    recipes[f'recipe_{name}'].best['state_bytes']
    for name in ('rms_muon', 'adamw')
  )
  (percent,) = re.findall(r'with ([\d.]+) %\s+of\s+AdamW', section)
  assert float(percent) == pytest.approx(100 * ours / baseline, abs=0.06)


def test_no_neighbor_of_the_chosen_options_is_better():
  checked = 0
  for study in studies.STUDIES.values():
    for summary in analysis.summarize(study, runs.ROOT / trial.RESULTS):
      tuned = summary.progress.tuned
      if not summary.complete or len(tuned.visited) >= tuning.LONGEST:
        continue  # The search was cut, perhaps.
      arm, chosen = ARMS[summary.arm], tuned.options
      around = [
        {**chosen, **{name: factor * chosen[name] for name in names}}
        for names in ([tuning.RATES] if arm.one_rate else zip(tuning.RATES))
        for factor in (0.5, 2.0)
      ]
      lists = {'weight_decay': tuning.WEIGHT_DECAYS, 'beta': arm.betas}
      for name in study.again if study.after else lists.keys() & chosen:
        at = lists[name].index(chosen[name])
        around += [
          {**chosen, name: value}
          for value in lists[name][max(at - 1, 0) : at + 2]
        ]
      losses = {
        trial.point_of(line['options']): line['loss'] or math.inf
        for line in summary.tuning
      }
      best = losses[trial.point_of(chosen)]
      assert all(losses[trial.point_of(x)] >= best for x in around)
      checked += 1
  assert checked


def test_rms_muon_has_the_options_that_were_tuned():
  arm = _finished_in('small_recipes')['recipe_rms_muon']
  tuned = arm.progress.tuned.options
  recipe = recipe_table.RECIPES['rms_muon']
  factor = tuned['matrix_rate'] / tuned['embedding_rate']
  assert recipe.matrix.lr_scale == pytest.approx(factor)
  for part in (recipe.embedding, recipe.head, recipe.vector):
    assert part.kwargs['b2'] == tuned['beta']
    assert part.lr_scale == 1.0


def test_rates_in_docstrings_are_those_of_the_study():
  found = _finished_in('small_recipes')
  shown = 0
  for path in (runs.ROOT / 'sage_optax' / 'methods').glob('*.py'):
    text = ' '.join(path.read_text().split())
    for part in re.findall(r'From our study at width 64(.*?)\.(?: |$)', text):
      for name, *rates in re.findall(
        r'`(\w+)` ([\de.-]+) and ([\de.-]+)', part
      ):
        options = found[f'recipe_{name}'].progress.tuned.options
        tuned = [options[rate] for rate in tuning.RATES]
        assert [float(x) for x in rates] == pytest.approx(tuned, rel=0.02), name
        shown += 1
  assert shown


def test_options_of_the_quickstart_are_those_of_the_study():
  found = _finished_in('small_recipes')
  given = quickstart.get_config().optimizer
  assert set(given.b2s) == set(given.matrix_lr_scales)
  finished = {name.removeprefix('recipe_') for name in found}
  assert set(given.b2s) == finished & set(sage_optax.recipe_names())
  for recipe, factor in given.matrix_lr_scales.items():
    tuned = found[f'recipe_{recipe}'].progress.tuned.options
    rate = given.learning_rates[recipe]
    assert rate == pytest.approx(tuned['embedding_rate'], rel=0.02), recipe
    assert factor * rate == pytest.approx(tuned['matrix_rate'], rel=0.02)
    assert given.b2s[recipe] == tuned['beta'], recipe


def test_every_rule_is_explained():
  assert set(RULES) == {arm.name for arm in TABLE_ARMS}


def test_deciles_have_equal_numbers_of_occurrences():
  counts = np.array([1, 50, 1, 10, 10, 10, 10, 2, 2, 4])
  decile = outcome.deciles(counts)
  assert decile[1] == 2  # the middle of its half of the text
  assert decile[0] == decile[2] == 9
  rng = np.random.default_rng(0)
  even = outcome.deciles(rng.integers(1, 100, 5000))
  shares = np.bincount(even, rng.integers(1, 100, 5000), 10)
  assert shares.min() > 0
  counts = rng.integers(1, 100, 5000)
  shares = np.bincount(outcome.deciles(counts), counts, 10) / counts.sum()
  np.testing.assert_allclose(shares, 0.1, atol=1e-3)


def test_deciles_of_an_arm_are_means_over_seeds():
  lines = {1: {'by_decile': [1.0, None]}, 2: {'by_decile': [2.0, 3.0]}}
  one = dataclasses.replace(_finished('toy_v512', 'sage', ()), final=lines)
  np.testing.assert_equal(one.by_decile, [1.5, math.nan])  # a diverged run


def test_losses_by_decile_are_means_over_targets():
  decile = np.array([0, 0, 3])
  found = outcome.by_decile(
    decile, np.array([6.0, 2.0, 5.0]), np.array([3, 1, 0])
  )
  assert found == [2.0, *[None] * 9]


def test_spikes_and_divergence():
  losses = np.full(100, 3.0)
  losses[[5, 50, 80]] = 3.6
  assert outcome.spikes(losses, 10) == 2
  assert not outcome.diverged(losses, 3.0, 4096)
  assert outcome.diverged(losses, 8.4, 4096)
  losses[99] = math.nan
  assert outcome.diverged(losses, 3.0, 4096)
  assert json.dumps(outcome.thinned(np.arange(40.0))[:2]) == (
    '[[2, 0.5], [4, 2.5]]'
  )
