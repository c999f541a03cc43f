"""The order of records: seeded, resumable, blind to processes."""

import itertools

import chex
import numpy as np
import pytest
from absl.testing import parameterized

from train.data import loader
from train.data.shards import TokenStream
from train.errors import UserError

_SEQ = 4


def _stream(windows, extra=0):
  """Tokens 0, 1, 2, ...: a window's first token says which it is."""
  tokens = np.arange(windows * _SEQ + 1 + extra, dtype=np.uint32)
  return TokenStream(np.array_split(tokens, 3))


def _batches(count, *, windows=23, batch_size=4, seed=0, start=0, rows=None):
  iterator = loader.train_iterator(
    _stream(windows, extra=2),
    seq_len=_SEQ,
    batch_size=batch_size,
    seed=seed,
    start_step=start,
    rows=rows,
  )
  assert iterator.step == start
  batches = list(itertools.islice(iterator, count))
  assert iterator.step == start + count
  return np.stack(batches)


def test_a_batch_holds_windows_of_the_stream():
  batches = _batches(30)
  chex.assert_shape(batches, (30, 4, _SEQ + 1))
  chex.assert_type(batches, np.int32)
  np.testing.assert_array_equal(np.diff(batches, axis=-1), 1)
  assert not np.any(batches[..., 0] % _SEQ)


def test_each_epoch_has_every_record_once_in_a_new_order():
  # 23 windows in batches of 4: epochs end within batches.
  records = _batches(23)[..., 0].ravel() // _SEQ
  epochs = records.reshape(4, 23)
  for epoch in epochs:
    assert sorted(epoch) == list(range(23))
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert sorted(records[:23]) != list(records[:23])


class OrderTest(parameterized.TestCase):
  @parameterized.product(batch_size=[1, 4, 23], start=[1, 7, 30])
  def test_resuming_continues(self, batch_size, start):
    whole = _batches(start + 5, batch_size=batch_size)
    rest = _batches(5, batch_size=batch_size, start=start)
    np.testing.assert_array_equal(rest, whole[start:])

  @parameterized.product(n=[1, 2, 4, 8], start=[0, 9])
  def test_processes_read_slices_of_the_same_rows(self, n, start):
    whole = _batches(12, batch_size=8, start=start)
    slices = np.split(np.arange(8), n)
    parts = [_batches(12, batch_size=8, start=start, rows=s) for s in slices]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)

  def test_rows_need_not_be_neighbors(self):
    whole = _batches(12, batch_size=8, start=3)
    rows = [1, 2, 6]
    some = _batches(12, batch_size=8, start=3, rows=rows)
    np.testing.assert_array_equal(some, whole[:, rows])

  @parameterized.parameters(1, 2, 8)
  def test_the_order_of_records_does_not_know_the_batch(self, batch_size):
    expected = _batches(4, batch_size=16).reshape(64, -1)
    records = _batches(64 // batch_size, batch_size=batch_size)
    np.testing.assert_array_equal(records.reshape(64, -1), expected)

  @parameterized.parameters(0, 1, 5, 6, 50)
  def test_seen_windows(self, steps):
    options = {'seq_len': _SEQ, 'batch_size': 4, 'seed': 3}
    seen = list(loader.seen_windows(_stream(23), steps=steps, **options))
    seen = [int(w[0]) for batch in seen for w in batch]
    run = _batches(steps, seed=3)[..., 0] if steps else np.zeros(0)
    self.assertLen(set(seen), len(seen))
    self.assertEqual(set(seen), {int(w) for w in run.ravel()})


def test_seeds_differ_and_repeat():
  first = _batches(5, seed=0)
  np.testing.assert_array_equal(first, _batches(5, seed=0))
  assert np.any(first != _batches(5, seed=12345))


def test_a_late_start_is_immediate():
  # Reaching it one by one would take years.
  chex.assert_shape(_batches(2, start=10**12), (2, 4, _SEQ + 1))


def test_windows_cross_shards_and_do_not_pass_the_end():
  assert loader.num_windows(_stream(5), _SEQ) == 5
  assert loader.num_windows(_stream(5, extra=_SEQ - 1), _SEQ) == 5
  assert loader.num_windows(_stream(5, extra=_SEQ), _SEQ) == 6
  assert loader.num_windows(TokenStream([]), _SEQ) == 0
  assert loader.num_windows(TokenStream([np.arange(_SEQ)]), _SEQ) == 0


def test_enough_is_enough():
  loader.check_enough(_stream(8), _SEQ, 8)
  with pytest.raises(UserError, match='7 windows of 4 tokens'):
    loader.check_enough(_stream(7), _SEQ, 8)


def test_bad_input_is_told():
  with pytest.raises(UserError, match='23 windows of 4 tokens'):
    _batches(1, batch_size=24)
  with pytest.raises(UserError, match='at least 2'):
    next(loader.eval_batches(TokenStream([]), seq_len=_SEQ, batch_size=2))


class EvalTest(parameterized.TestCase):
  @parameterized.product(
    windows=[1, 5, 6], extra=[0, 1, 3], batch_size=[1, 3, 8]
  )
  def test_every_target_counts_once(self, windows, extra, batch_size):
    stream = _stream(windows, extra)
    targets = []
    for tokens, weights in loader.eval_batches(
      stream, seq_len=_SEQ, batch_size=batch_size
    ):
      chex.assert_shape(tokens, (batch_size, _SEQ + 1))
      chex.assert_shape(weights, (batch_size, _SEQ))
      chex.assert_type(tokens, np.int32)
      chex.assert_type(weights, np.float32)
      inputs, target = tokens[:, :-1], tokens[:, 1:]
      # The context of each target is the token before it.
      np.testing.assert_array_equal(
        (target - inputs)[weights > 0], np.ones(int(weights.sum()))
      )
      targets.extend(target[weights > 0].tolist())
    self.assertEqual(targets, list(range(1, stream.num_tokens)))

  def test_fewer_tokens_than_a_window(self):
    stream = TokenStream([np.array([7, 8, 9])])
    ((tokens, weights),) = loader.eval_batches(stream, seq_len=4, batch_size=2)
    self.assertEqual(tokens.tolist(), [[7, 8, 9, 0, 0], [0] * 5])
    self.assertEqual(weights.tolist(), [[1, 1, 0, 0], [0] * 4])

  def test_a_few_windows_are_spread_evenly(self):
    batches = loader.eval_batches(
      _stream(100), seq_len=_SEQ, batch_size=3, max_windows=5
    )
    first = [
      int(t[0]) // _SEQ
      for tokens, weights in batches
      for t, w in zip(tokens, weights, strict=True)
      if w.any()
    ]
    self.assertEqual(first, [0, 20, 40, 60, 80])
