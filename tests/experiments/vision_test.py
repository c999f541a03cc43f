"""The study of the vision transformer: what a trial is, and its search."""

import dataclasses

import numpy as np
import pytest
from sklearn import datasets

from examples import vit
from experiments import schedule, studies, trial
from experiments.cells import CELLS
from experiments.vision import report, runner
from tests.support import runs

_STUDY = studies.STUDIES['vit']
_ARMS = {arm.name: arm for _, arm in studies.arms_of(_STUDY)}


def test_every_image_is_in_one_split():
  splits = vit.data()
  assert [len(labels) for _, labels in splits] == [1197, 300, 300]
  pixels, labels = datasets.load_digits(return_X_y=True)
  expected = np.column_stack([pixels, labels])
  found = np.concatenate(
    [
      np.column_stack([8 * (images.reshape(-1, 64) + 1), labels])
      for images, labels in splits
    ]
  )
  assert len(np.unique(expected, axis=0)) == len(expected)  # no two are equal
  np.testing.assert_array_equal(
    found[np.lexsort(found.T)], expected[np.lexsort(expected.T)]
  )
  for images, labels in splits:
    assert images.shape[1:] == (8, 8, 1)
    assert set(labels) == set(range(10))


def test_a_trial_depends_on_its_options_and_seed():
  cell = dataclasses.replace(CELLS['digits'], steps=10)
  runners = {name: runner.VitRunner(cell, arm) for name, arm in _ARMS.items()}

  def run(arm, seed, **changes):
    options = {**_ARMS[arm].start, **changes}
    (found,) = runners[arm].run([trial.make(cell.name, arm, options, seed)])
    return {k: v for k, v in found.items() if not k.endswith('_seconds')}

  arm = 'recipe_sage_hybrid'
  first = run(arm, 0)
  assert run(arm, 0) == first
  assert run(arm, 1) != first
  changes = ({'embedding_rate': 0.1}, {'matrix_rate': 0.1})
  changes = (*changes, {'weight_decay': 10.0})
  others = [run(arm, 0, **change)['loss'] for change in changes]
  assert len({first['loss'], *others}) == 4
  # All three were trained from the same weights on the same batches.
  still = {'embedding_rate': 1e-12, 'matrix_rate': 1e-12}
  losses = [run(a, 0, **still)['loss'] for a in _ARMS]
  assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_page_is_written_from_the_results():
  text = (runs.ROOT / report.PAGE).read_text()
  assert report.page(runs.ROOT / trial.RESULTS) == text


def test_both_recipes_have_the_same_search():
  assert sorted(_ARMS) == ['recipe_adamw', 'recipe_sage_hybrid']
  starts = [arm.start for arm in _ARMS.values()]
  assert all(set(start) == set(starts[0]) for start in starts)
  for arm in _ARMS.values():
    there = schedule.progress(_STUDY, 'digits', arm, {})
    assert there.left == _STUDY.budget + len(_STUDY.seeds)
