"""Computes the numbers of a line of results from the losses of a run."""

from typing import Any

import numpy as np

DECILES = 10
# A spike is a training loss this far above the mean of the losses before it.
_SPIKE_NATS = 0.5
_SPIKE_WINDOW = 20


def deciles(counts: np.ndarray) -> np.ndarray:
  """The decile of frequency of each token: 0 for the most frequent ones.

  Deciles have equal numbers of occurrences, not of tokens: with tokens ranked
  by frequency, decile i contains those whose occurrences are the i-th tenth of
  the text. A token that spans several tenths belongs to the one of its middle.

  Args:
    counts: Occurrences of each token in the training text, [V].
  """
  order = np.argsort(-counts, kind='stable')
  ranked = counts[order].astype(np.float64)
  middle = (np.cumsum(ranked) - ranked / 2) / max(ranked.sum(), 1.0)
  result = np.empty(len(counts), np.int64)
  result[order] = np.minimum((middle * DECILES).astype(np.int64), DECILES - 1)
  return result


def by_decile(
  decile: np.ndarray, nats: np.ndarray, weights: np.ndarray
) -> list[float | None]:
  """Mean loss of the targets of each decile; None without targets.

  Args:
    decile: Decile of each token, [V].
    nats: Summed losses of each token as a target, [V].
    weights: Summed weights of each token as a target, [V].
  """
  total = np.bincount(decile, nats, DECILES)
  weight = np.bincount(decile, weights, DECILES)
  return [
    float(t / w) if w > 0 else None for t, w in zip(total, weight, strict=True)
  ]


def spikes(train_losses: np.ndarray, first: int) -> int:
  """Steps, from `first` on, whose loss jumps above those before it."""
  losses = np.asarray(train_losses, np.float64)
  count = 0
  for i in range(max(first, _SPIKE_WINDOW), len(losses)):
    before = losses[i - _SPIKE_WINDOW : i].mean()
    count += int(losses[i] > before + _SPIKE_NATS)
  return count


def diverged(train_losses: np.ndarray, final: float, vocab_size: int) -> bool:
  """Whether a loss was not finite, or the final one no better than chance."""
  finite = bool(np.all(np.isfinite(train_losses))) and np.isfinite(final)
  return not finite or final >= float(np.log(vocab_size))


def thinned(train_losses: np.ndarray, points: int = 20) -> list[list[Any]]:
  """Means of the training loss over equal parts of the run: [step, loss]."""
  parts = np.array_split(np.asarray(train_losses, np.float64), points)
  ends = np.cumsum([len(part) for part in parts])
  return [
    [int(end), round(float(part.mean()), 4)]
    for end, part in zip(ends, parts, strict=True)
    if len(part)
  ]
