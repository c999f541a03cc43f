import math

import numpy as np
from absl.testing import parameterized

from train import optimizer
from train.config import Config


def _schedule(steps, **options):
  config = Config()
  config.train.steps = steps
  config.optimizer.learning_rate = 2e-3
  for name, value in options.items():
    setattr(config.schedule, name, value)
  return optimizer.schedule(config)


class ScheduleTest(parameterized.TestCase):
  @parameterized.parameters('cosine', 'linear', 'wsd', 'constant')
  def test_warm_up(self, kind):
    rate = _schedule(1000, kind=kind, warmup_fraction=0.1)
    for count in (0, 1, 49, 98, 99):
      np.testing.assert_allclose(rate(count), 2e-5 * (count + 1), 1e-5)
    np.testing.assert_allclose(rate(100), 2e-3, 1e-6)

  @parameterized.parameters(
    # Half of the decay is done in the middle of the steps after warm-up.
    ('cosine', 0.0, 550, 0.5),
    ('cosine', 0.1, 550, 0.55),
    ('cosine', 0.1, 325, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
    ('cosine', 0.1, 999, 0.1 + 0.9 * (1 + math.cos(math.pi * 899 / 900)) / 2),
    ('cosine', 0.1, 1000, 0.1),
    ('linear', 0.0, 550, 0.5),
    ('linear', 0.1, 550, 0.55),
    ('linear', 0.0, 999, 1 / 900),
    ('linear', 0.1, 1000, 0.1),
    ('wsd', 0.0, 550, 1.0),
    ('wsd', 0.0, 800, 1.0),
    ('wsd', 0.0, 900, 0.5),
    ('wsd', 0.1, 900, 0.55),
    ('wsd', 0.0, 999, 1 / 200),
    ('constant', 0.1, 550, 1.0),
    ('constant', 0.1, 999, 1.0),
  )
  def test_after_warm_up(self, kind, final, count, expected):
    rate = _schedule(
      1000,
      kind=kind,
      warmup_fraction=0.1,
      final_fraction=final,
      decay_fraction=0.2,
    )
    np.testing.assert_allclose(rate(count), 2e-3 * expected, 1e-5, 2e-9)

  @parameterized.parameters('cosine', 'linear', 'wsd', 'constant')
  def test_short_runs_learn_in_every_step(self, kind):
    for steps in (1, 2, 5):
      for warmup in (0.0, 0.1, 0.5):
        rate = _schedule(
          steps, kind=kind, warmup_fraction=warmup, final_fraction=0.0
        )
        values = [float(rate(count)) for count in range(steps)]
        self.assertGreater(min(values), 0.0)
        self.assertLessEqual(max(values), 2.001e-3)
        np.testing.assert_allclose(max(values), 2e-3, 1e-6)

  def test_all_warm_up(self):
    rate = _schedule(10, warmup_fraction=1.0)
    np.testing.assert_allclose(rate(9), 2e-3, 1e-6)
