"""Trajectories of released code, reproduced step by step."""

import jax
import jax.numpy as jnp
from absl.testing import parameterized

from tests.support import replays


def _rows(deviates):
  return [
    (f'{r.case}_{"_".join(r.leaves)}', r)
    for r in replays.REPLAYS
    if bool(r.deviates) == deviates
  ]


class GoldenTest(parameterized.TestCase):
  @parameterized.named_parameters(*_rows(deviates=False))
  def test_float64(self, replay):
    with jax.enable_x64(True):
      error = replays.differences(replay, jnp.float64)
    for leaf in replay.leaves:
      self.assertLess(error[leaf], replay.tolerance, leaf)

  @parameterized.named_parameters(
    *{row[1].method: row for row in _rows(deviates=False)}.values()
  )
  def test_float32(self, replay):
    error = replays.differences(replay, jnp.float32)
    for leaf in replay.leaves:
      self.assertLess(error[leaf], max(replay.tolerance, 1e-5), leaf)

  @parameterized.named_parameters(*_rows(deviates=True))
  def test_deviations_are_real(self, replay):
    with jax.enable_x64(True):
      error = replays.differences(replay, jnp.float64)
    self.assertGreater(max(error.values()), 1e-6)

  def test_every_file_is_used(self):
    # A recorded case beside these would be one that nobody looks at.
    files = {
      str(path.relative_to(replays.GOLDEN).with_suffix(''))
      for path in replays.GOLDEN.glob('*/*.npz')
    }
    self.assertEqual(files, {replay.case for replay in replays.REPLAYS})
