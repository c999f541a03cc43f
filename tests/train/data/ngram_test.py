"""The n-gram baselines against slow forms of the same equations."""

import collections
import math

import numpy as np
import pytest
from absl.testing import parameterized

from train import errors
from train.data import ngram, shards


def _windows(seed, vocab_size, shape, used=None):
  """Tokens with Zipf-like frequencies and some structure."""
  rng = np.random.default_rng(seed)
  used = used or vocab_size
  p = 1 / np.arange(1, used + 1)
  tokens = rng.choice(used, size=shape, p=p / p.sum())
  repeats = rng.random(shape) < 0.3
  repeats[:, 0] = False
  return np.where(repeats, (np.roll(tokens, 1, 1) + 1) % used, tokens)


def _discount(counts):
  n = collections.Counter(counts)
  return n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.5


class _Oracle:
  """Dictionaries and loops, straight from the equations."""

  def __init__(self, windows, vocab_size):
    self.size = vocab_size
    pairs = [(w[i], w[i + 1]) for w in windows for i in range(len(w) - 1)]
    self.pair = collections.Counter(pairs)
    self.uni = collections.Counter(w for _, w in pairs)
    self.context = collections.Counter(u for u, _ in pairs)
    self.followers = collections.Counter(u for u, _ in self.pair)
    self.preceding = collections.Counter(w for _, w in self.pair)
    self.discount = _discount(self.pair.values())

  def _lower(self, counts, w):
    total = sum(counts.values())
    d = _discount(counts.values())
    return (max(counts[w] - d, 0) + d * len(counts) / self.size) / total

  def unigram(self, w):
    return self._lower(self.uni, w)

  def bigram(self, u, w):
    q = self._lower(self.preceding, w)
    if not self.context[u]:
      return q
    higher = max(self.pair[u, w] - self.discount, 0)
    return (higher + self.discount * self.followers[u] * q) / self.context[u]


def _perplexity(probabilities):
  logs = [math.log(p) for p in probabilities]
  return math.exp(-sum(logs) / len(logs))


class NgramTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_equals_the_oracle(self, seed):
    size = 23
    train = _windows(seed, size, (40, 9), used=20)  # Three never seen.
    held = _windows(seed + 9, size, (8, 9))
    oracle = _Oracle(train.tolist(), size)
    weights = np.ones((8, 8), np.float32)
    result = ngram.baselines([train[:13], train[13:]], size, [(held, weights)])
    pairs = [(w[i], w[i + 1]) for w in held.tolist() for i in range(8)]
    self.assertAlmostEqual(
      result.unigram, _perplexity(oracle.unigram(w) for _, w in pairs), 9
    )
    self.assertAlmostEqual(
      result.bigram, _perplexity(oracle.bigram(u, w) for u, w in pairs), 9
    )
    self.assertEqual(result.train_tokens, 40 * 8)
    self.assertEqual(result.eval_tokens, 64)

  @parameterized.parameters((1, 5), (30, 9), (300, 2))
  def test_probabilities_sum_to_one(self, rows, length):
    size = 17
    counts = ngram.Counts(size)
    counts.add(_windows(0, size, (rows, length), used=12))
    counts.merge()
    model = ngram.Bigram(counts)
    inputs, targets = (a.ravel() for a in np.indices((size, size)))
    table = model.probability(inputs, targets).reshape(size, size)
    np.testing.assert_allclose(table.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(model.unigram.sum(), 1, atol=1e-12)
    self.assertGreater(table.min(), 0)
    self.assertGreater(model.unigram.min(), 0)

  def test_merging_in_parts_changes_nothing(self):
    windows = _windows(3, 30, (50, 11))
    whole, parts = ngram.Counts(30), ngram.Counts(30)
    whole.add(windows)
    whole.merge()
    for i in range(0, 50, 7):
      parts.add(windows[i : i + 7])
      parts.merge()
    np.testing.assert_array_equal(whole.pairs, parts.pairs)
    np.testing.assert_array_equal(whole.counts, parts.counts)
    self.assertEqual(whole.counts.sum(), 500)

  def test_targets_of_weight_zero_are_left_out(self):
    train = _windows(0, 9, (30, 5))
    held = _windows(1, 9, (4, 5))
    weights = np.ones((4, 4), np.float32)
    weights[2:] = 0
    padded = ngram.baselines([train], 9, [(held, weights)])
    cut = ngram.baselines([train], 9, [(held[:2], weights[:2])])
    self.assertEqual(padded, cut)

  def test_structure_makes_the_bigram_better(self):
    # A cycle: each token has one successor, all are equally frequent.
    train = (np.arange(8)[:, None] + np.arange(33)) % 8
    weights = np.ones((8, 32), np.float32)
    result = ngram.baselines([train], 8, [(train, weights)])
    self.assertAlmostEqual(result.unigram, 8, places=6)
    self.assertLess(result.bigram, 1.1)

  def test_enough_tokens_are_enough(self):
    train = _windows(0, 9, (30, 5))
    held = [(_windows(1, 9, (4, 5)), np.ones((4, 4), np.float32))]
    arrays = iter(np.split(train, 10))
    # 12 targets an array: the third reaches 25.
    result = ngram.baselines(arrays, 9, held, max_tokens=25)
    self.assertEqual(result, ngram.baselines([train[:9]], 9, held))
    self.assertEqual(result.train_tokens, 36)
    self.assertLen(list(arrays), 7)

  def test_splits(self):
    train = _windows(0, 30, (1, 5000))[0]
    held = _windows(1, 30, (1, 700))[0]
    got = ngram.of_splits(
      shards.TokenStream([train[:1234], train[1234:]]),
      shards.TokenStream([held]),
      30,
      lambda: False,
    )
    # Every target once, each in the context of the token before it.
    wanted = ngram.baselines(
      [train[None]], 30, [(held[None], np.ones((1, 699), np.float32))]
    )
    self.assertEqual(got[2:], (4999, 699))
    np.testing.assert_allclose(got[:2], wanted[:2], rtol=1e-12)
    with self.assertRaises(errors.Interrupted):
      ngram.of_splits(
        shards.TokenStream([train]),
        shards.TokenStream([held]),
        30,
        lambda: True,
      )

  def test_no_training_text_is_uniform(self):
    held = _windows(1, 9, (4, 5))
    result = ngram.baselines([], 9, [(held, np.ones((4, 4), np.float32))])
    self.assertAlmostEqual(result.unigram, 9)
    self.assertAlmostEqual(result.bigram, 9)


def test_a_large_vocabulary_does_not_overflow():
  size = 128256
  windows = np.array([[size - 1, size - 2, size - 1, 5]], np.int32)
  counts = ngram.Counts(size)
  counts.add(windows)
  counts.merge()
  model = ngram.Bigram(counts)
  seen = model.probability(np.array([size - 2]), np.array([size - 1]))
  unseen = model.probability(np.array([size - 2]), np.array([0]))
  assert seen[0] > 1000 * unseen[0] > 0
  assert counts.pairs.max() == pytest.approx(size * size, rel=1e-4)
