"""The study of the vision transformer: what a trial is, and its search."""

import pytest

from examples import vit
from experiments import studies, trial
from experiments.vision import report, study
from tests.support import runs

_STEPS = 10


def test_the_splits_are_apart():
  splits = vit.data()
  assert [len(labels) for _, labels in splits] == [1197, 300, 300]
  seen = [images.tobytes() for images, _ in splits]
  assert len(set(seen)) == 3
  for images, labels in splits:
    assert images.shape[1:] == (8, 8, 1)
    assert set(labels) == set(range(10))


@pytest.mark.nightly
def test_a_trial_depends_on_its_options_and_seed():
  def run(arm, seed, **changes):
    options = {**study.VIT_ARMS[arm].start, **changes}
    one = trial.make(study.CELL, arm, options, seed)
    found = study.outcome(one, _STEPS)
    del found['core_seconds']
    return found

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
  losses = [run(a, 0, **still)['loss'] for a in study.VIT_ARMS]
  assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_page_is_written_from_the_results():
  text = (runs.ROOT / report.PAGE).read_text()
  assert report.page(runs.ROOT / trial.RESULTS) == text


def test_both_recipes_have_the_same_search():
  starts = [arm.start for arm in study.VIT_ARMS.values()]
  assert all(set(start) == set(starts[0]) for start in starts)
  for arm in study.VIT_ARMS.values():
    there = studies.progress(study.STUDY, study.CELL, arm, {})
    assert there.left == study.STUDY.budget + len(study.STUDY.seeds)
