"""Baselines for a language model: unigram and bigram perplexity.

The bigram is interpolated Kneser-Ney with absolute discounting (Ney, Essen and
Kneser 1994; Chen and Goodman 1999, eq. 19 and 20):

  p(w|u) = max(c(uw) - D, 0) / c(u) + D N(u.) / c(u) * q(w),

where N(u.) is the number of different followers of u and q is the share of
different tokens that w follows, itself discounted and interpolated with the
uniform distribution, so that no token has probability 0. The unigram is
discounted in the same way.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from train.data import loader
from train.data.shards import TokenStream
from train.distributed import signals

# Largest number of tokens to fit on; more would take minutes and change little.
MAX_TOKENS = 20_000_000
_WINDOW = 256
_MERGE_AT = 2**23  # Pairs collected before they are counted: 64 MiB.


class Baselines(NamedTuple):
  """Perplexities on the evaluation targets, and how they were obtained.

  Attributes:
    unigram: Perplexity of the model without context.
    bigram: Perplexity of the model of pairs.
    train_tokens: Targets that the models were fitted on.
    eval_tokens: Targets that they were evaluated on.
  """

  unigram: float
  bigram: float
  train_tokens: int
  eval_tokens: int


class Counts:
  """Counts of the pairs (input, target); memory grows with distinct pairs."""

  def __init__(self, vocab_size: int):
    self.vocab_size = vocab_size
    self.pairs = np.zeros(0, np.int64)  # input * vocab_size + target, sorted.
    self.counts = np.zeros(0, np.int64)
    self._waiting: list[np.ndarray] = []
    self._size = 0

  def add(self, windows: np.ndarray) -> None:
    """Counts windows [N, S + 1], each target in the context of its window."""
    keys = windows[:, :-1].astype(np.int64) * self.vocab_size + windows[:, 1:]
    self._waiting.append(keys.ravel())
    self._size += keys.size
    if self._size >= _MERGE_AT:
      self.merge()

  def merge(self) -> None:
    """Brings `pairs` and `counts` up to date."""
    new, counts = np.unique(
      np.concatenate([np.zeros(0, np.int64), *self._waiting]),
      return_counts=True,
    )
    self._waiting, self._size = [], 0
    keys = np.concatenate([self.pairs, new])
    self.pairs, inverse = np.unique(keys, return_inverse=True)
    totals = np.zeros(len(self.pairs), np.int64)
    np.add.at(totals, inverse, np.concatenate([self.counts, counts]))
    self.counts = totals


class Bigram:
  """The interpolated Kneser-Ney model of merged counts.

  Attributes:
    unigram: Probability of each token without context, float64 [V].
    continuation: The q(w) above, float64 [V].
  """

  def __init__(self, counts: Counts):
    size = counts.vocab_size
    inputs, targets = np.divmod(counts.pairs, size)
    weights = counts.counts.astype(np.float64)
    self.unigram = _discounted(np.bincount(targets, weights, size))
    self.continuation = _discounted(
      np.bincount(targets, minlength=size).astype(np.float64)
    )
    self._counts = counts
    self._discount = _discount(weights)
    self._context = np.bincount(inputs, weights, size)
    self._followers = np.bincount(inputs, minlength=size)

  def probability(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """p(target | input), float64, for integer arrays of one shape [N]."""
    pairs, counts = self._counts.pairs, self._counts.counts
    context = self._context[inputs]
    lower = self.continuation[targets]
    if not len(pairs):
      return lower
    keys = inputs.astype(np.int64) * self._counts.vocab_size + targets
    at = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
    count = np.where(pairs[at] == keys, counts[at], 0)
    mass = self._discount * self._followers[inputs]
    higher = np.maximum(count - self._discount, 0) + mass * lower
    # For an unseen context, the lower order has all the weight.
    return np.where(context > 0, higher / np.maximum(context, 1), lower)


def baselines(
  train: Iterable[np.ndarray],
  vocab_size: int,
  evaluation: Iterable[tuple[np.ndarray, np.ndarray]],
  *,
  max_tokens: int = MAX_TOKENS,
) -> Baselines:
  """Fits on windows of training tokens, evaluates on weighted targets.

  Args:
    train: Arrays of windows [N, S + 1], as from `loader.seen_windows`.
    vocab_size: Size of the vocabulary.
    evaluation: Tokens [N, S + 1] and weights [N, S], as from
      `loader.eval_batches`; targets with weight 0 are ignored.
    max_tokens: Reading of `train` stops after the array that reaches this many
      targets. Windows are shuffled, so this is a fair sample.

  Returns:
    The perplexities and the numbers of targets.
  """
  counts = Counts(vocab_size)
  train_tokens = 0
  for windows in train:
    counts.add(windows)
    train_tokens += windows[:, 1:].size
    if train_tokens >= max_tokens:
      break
  counts.merge()
  model = Bigram(counts)
  unigram = bigram = total = 0.0
  for tokens, weights in evaluation:
    kept = weights > 0
    inputs, targets = tokens[:, :-1][kept], tokens[:, 1:][kept]
    weight = weights[kept].astype(np.float64)
    unigram -= float(weight @ np.log(model.unigram[targets]))
    bigram -= float(weight @ np.log(model.probability(inputs, targets)))
    total += float(weight.sum())
  return Baselines(
    unigram=float(np.exp(unigram / total)),
    bigram=float(np.exp(bigram / total)),
    train_tokens=train_tokens,
    eval_tokens=round(total),
  )


def of_splits(
  train: TokenStream,
  validation: TokenStream,
  vocab_size: int,
  should_stop: Callable[[], bool],
) -> Baselines:
  """Fits on a training split, or on MAX_TOKENS spread evenly over it.

  Args:
    train: The training split; all of its tokens count, masked or not.
    validation: The validation split; at most MAX_TOKENS of it are used.
    vocab_size: Size of the vocabulary.
    should_stop: Polled.

  Returns:
    The perplexities and the numbers of targets.

  Raises:
    Interrupted: If should_stop returned True.
  """

  def windows(stream: TokenStream) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if stream.num_tokens > 1:
      yield from loader.eval_batches(
        stream,
        seq_len=_WINDOW,
        batch_size=512,
        max_windows=MAX_TOKENS // _WINDOW,
      )

  def whole() -> Iterator[np.ndarray]:
    stream = train.all_targets()
    for tokens, weights in signals.watch(windows(stream), should_stop):
      full = weights.all(axis=1)
      yield tokens[full]
      for row, weight in zip(tokens[~full], weights[~full], strict=True):
        if size := int(weight.sum()):
          yield row[None, : size + 1]

  return baselines(
    whole(), vocab_size, signals.watch(windows(validation), should_stop)
  )


def _discounted(counts: np.ndarray) -> np.ndarray:
  """Probabilities, discounted and interpolated with a uniform distribution."""
  total = counts.sum()
  if not total:
    return np.full(len(counts), 1 / len(counts))
  discount = _discount(counts)
  mass = discount * np.count_nonzero(counts)
  return (np.maximum(counts - discount, 0) + mass / len(counts)) / total


def _discount(counts: np.ndarray) -> float:
  """n1 / (n1 + 2 n2); a half if that is 0, 1 or undefined."""
  ones, twos = np.sum(counts == 1), np.sum(counts == 2)
  return float(ones / (ones + 2 * twos)) if ones and twos else 0.5
