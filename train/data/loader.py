"""Windows of tokens, in a global order independent of the processes.

Record i of a stream is tokens[i * S : i * S + S + 1]: inputs and targets
overlap in all but one token, and neighbors share one token, so each token
except the first is a target once. In data with a mask, a token t that is not a
target is ~t in a training batch.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from train.data.shards import TokenStream
from train.errors import UserError

# Far more records than any run reads, but not infinite: the length of a dataset
# with batch size one would overflow.
_MAX_RECORDS = 2**52
# Records come from memory-mapped files; more threads would only contend.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


def num_windows(stream: TokenStream, seq_len: int) -> int:
  """The number of full windows, each with a target for every input."""
  return max(0, stream.num_tokens - 1) // seq_len


def check_enough(stream: TokenStream, seq_len: int, batch_size: int) -> None:
  """Checks that a stream can be trained on, without reading it.

  Args:
    stream: The tokens of the training split.
    seq_len: Inputs per window.
    batch_size: Windows per step, over all processes.

  Raises:
    UserError: If the stream has fewer windows than a batch.
  """
  count = num_windows(stream, seq_len)
  if count < batch_size:
    raise UserError(
      f'The training data has {count} windows of {seq_len} tokens, fewer than '
      f'a batch of {batch_size}: prepare more text, or lower '
      '--config.train.batch_size or --config.train.seq_len.'
    )


class TrainIterator:
  """Yields int32 [rows, seq_len + 1] without end.

  Attributes:
    step: The step of the next batch; this is the whole state.
  """

  def __init__(self, dataset: grain.MapDataset, start_step: int):
    self.step = start_step
    # A slice, so that a later start does not read the previous records.
    steps = dataset[start_step:]
    self._batches = iter(steps.to_iter_dataset(_READ))

  def __iter__(self) -> 'TrainIterator':
    return self

  def __next__(self) -> np.ndarray:
    batch = next(self._batches)
    self.step += 1
    return batch


def train_iterator(
  stream: TokenStream,
  *,
  seq_len: int,
  batch_size: int,
  seed: int,
  start_step: int,
  rows: Sequence[int] | None = None,
) -> TrainIterator:
  """Returns batches of the shuffled windows, reshuffled in each epoch.

  Row r of step k is record k * batch_size + r of the order that the seed
  defines, independent of the number of processes and devices.

  Args:
    stream: The tokens of the training split.
    seq_len: Inputs per window.
    batch_size: Windows per step, over all processes.
    seed: Seed of the order, from 0 to 2**32 - 1.
    start_step: First step; a later start costs nothing.
    rows: Which rows of each batch to read; None for all.

  Returns:
    The iterator.

  Raises:
    UserError: See `check_enough`.
  """
  check_enough(stream, seq_len, batch_size)
  count = num_windows(stream, seq_len)
  records = _shuffled(stream, seq_len, seed).repeat(_MAX_RECORDS // count)
  rows = range(batch_size) if rows is None else rows
  steps = grain.MapDataset.source(_Steps(records, batch_size, rows))
  return TrainIterator(steps, start_step)


def seen_windows(
  stream: TokenStream, *, seq_len: int, batch_size: int, seed: int, steps: int
) -> Iterator[np.ndarray]:
  """The distinct windows of the first steps of `train_iterator`, each once.

  Args:
    stream: The tokens of the training split.
    seq_len: As in `train_iterator`.
    batch_size: As in `train_iterator`.
    seed: As in `train_iterator`.
    steps: Number of steps of the run.

  Yields:
    int32 [batch_size, seq_len + 1]; the last may have fewer rows.
  """
  # An epoch has no repetitions, so these are its first windows, or all.
  count = min(steps * batch_size, num_windows(stream, seq_len))
  dataset = _shuffled(stream, seq_len, seed)[:count].batch(batch_size)
  for i in range(len(dataset)):
    yield dataset[i]


def eval_batches(
  stream: TokenStream,
  *,
  seq_len: int,
  batch_size: int,
  max_windows: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Every window once and in order; every target counts exactly once.

  The tokens after the last full window form a padded window, so that a subset
  of a few tokens can also be evaluated.

  Args:
    stream: The tokens of a split or subset.
    seq_len: Inputs per window.
    batch_size: Windows per batch.
    max_windows: If there are more, take this many, evenly spaced.

  Yields:
    Tokens int32 [batch_size, seq_len + 1] and weights of the targets float32
    [batch_size, seq_len], which are 0 for padding and for tokens that are not
    targets.

  Raises:
    UserError: If the stream has no targets.
  """
  if stream.num_tokens < 2:
    raise UserError(
      f'The evaluation data has {stream.num_tokens} tokens, but needs at least '
      '2: prepare more text for validation.'
    )
  count = -(-(stream.num_tokens - 1) // seq_len)
  kept = min(count, max_windows or count)
  chosen = np.arange(kept) * count // kept
  for start in range(0, kept, batch_size):
    tokens = np.zeros((batch_size, seq_len + 1), np.int32)
    weights = np.zeros((batch_size, seq_len), np.float32)
    for row, i in enumerate(chosen[start : start + batch_size]):
      window = stream.read(int(i) * seq_len, (int(i) + 1) * seq_len + 1)
      tokens[row, : len(window)] = np.where(window < 0, ~window, window)
      weights[row, : len(window) - 1] = window[1:] >= 0
    yield tokens, weights


class _Windows:
  """Random access to the full windows of a stream, for Grain."""

  def __init__(self, stream: TokenStream, seq_len: int):
    self._stream = stream
    self._seq_len = seq_len

  def __len__(self) -> int:
    return num_windows(self._stream, self._seq_len)

  def __getitem__(self, index) -> np.ndarray:
    start = int(index) * self._seq_len
    return self._stream.read(start, start + self._seq_len + 1)


class _Steps:
  """Random access to some rows of each step's batch, for Grain."""

  def __init__(
    self, records: grain.MapDataset, batch_size: int, rows: Sequence[int]
  ):
    self._records = records
    self._batch_size = batch_size
    self._rows = rows

  def __len__(self) -> int:
    return len(self._records) // self._batch_size

  def __getitem__(self, index) -> np.ndarray:
    first = int(index) * self._batch_size
    return np.stack([self._records[first + int(row)] for row in self._rows])


def _shuffled(stream: TokenStream, seq_len: int, seed: int) -> grain.MapDataset:
  return grain.MapDataset.source(_Windows(stream, seq_len)).shuffle(seed=seed)
