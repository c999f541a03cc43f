"""Perplexity and bits per byte on the validation split."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train import errors
from train import mesh as mesh_lib
from train.data import loader, shards

SPLIT = 'validation'

# Approximate largest number of tokens of an evaluation. It determines the
# perplexity to a few per thousand; a whole split could take a third of the
# training time.
MAX_TOKENS = 10_000_000


@dataclasses.dataclass(frozen=True)
class Score:
  """Sums over targets; scores of disjoint targets add up.

  Attributes:
    nats: Negative log-likelihood.
    tokens: Number of targets.
    bytes: Bytes of text of the targets; the end-of-text token has none, but is
      also a target.
  """

  nats: float = 0.0
  tokens: int = 0
  bytes: int = 0

  def __add__(self, other: 'Score') -> 'Score':
    return Score(
      self.nats + other.nats,
      self.tokens + other.tokens,
      self.bytes + other.bytes,
    )

  @property
  def loss(self) -> float:
    """Nats per token."""
    return self.nats / self.tokens

  @property
  def perplexity(self) -> float:
    # Overflows above 709 nats per token, which only a broken run reaches.
    return math.exp(self.loss) if self.loss < 700 else math.inf

  @property
  def bits_per_byte(self) -> float:
    """Bits per byte, which are comparable between tokenizers."""
    return self.nats / math.log(2) / max(self.bytes, 1)

  def as_dict(self) -> dict[str, float]:
    return {
      'loss': self.loss,
      'perplexity': self.perplexity,
      'bits_per_byte': self.bits_per_byte,
      'tokens': self.tokens,
      'bytes': self.bytes,
    }


def windows(
  max_windows: int | None, *, trained: int, seq_len: int
) -> tuple[int, int]:
  """Returns the largest number of windows to evaluate.

  Args:
    max_windows: The configuration's value, or None.
    trained: Windows that the whole run trains on. An evaluation uses at most as
      many, so that a trial of two steps ends soon.
    seq_len: Targets in a window.

  Returns:
    The number during the run, and the number at its end, which is MAX_TOKENS
    unless `max_windows` is larger.
  """
  limit = min(trained, -(-MAX_TOKENS // seq_len))
  if max_windows is None or max_windows >= trained:
    return limit, limit
  return max_windows, max(limit, max_windows)


class Validation:
  """The validation split of prepared data, subset by subset."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    seq_len: int,
    batch_size: int,
    token_bytes: np.ndarray,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
  ):
    """Opens the split.

    Args:
      directory: Directory of the shards.
      seq_len: Targets in a window.
      batch_size: Windows evaluated at a time.
      token_bytes: Bytes that each token stands for, [V].
      should_stop: Polled while the files are checked.
      say: Receives a line if this takes long.

    Raises:
      UserError: If the split is missing, empty or damaged.
      Interrupted: If should_stop returned True.
    """
    manifest = shards.read_manifest(directory)
    names = shards.subsets(manifest, SPLIT)
    # Raises an error if the split is empty.
    shards.open_split(directory, SPLIT, should_stop=should_stop, say=say)
    streams = {
      name: shards.open_split(directory, SPLIT, subset=name) for name in names
    }
    # A stream of one token has no target.
    self._streams = {k: s for k, s in streams.items() if s.num_tokens > 1}
    if not self._streams:
      raise errors.UserError(
        f'the validation split in {directory} has no text: prepare more'
      )
    self._seq_len = seq_len
    self._batch_size = batch_size
    self._token_bytes = token_bytes
    self._masked = manifest.get('masked', False)
    self._scales = shards.byte_scales(manifest, SPLIT)

  @property
  def num_targets(self) -> int:
    """Targets in the whole split; reads it if it has prompts."""
    if self._masked:
      return sum(int((weights > 0).sum()) for *_, weights in self.batches())
    return sum(stream.num_tokens - 1 for stream in self._streams.values())

  @property
  def num_windows(self) -> int:
    """Windows in the whole split, the last of each subset padded."""
    return sum(self._counts().values())

  def _counts(self) -> dict[str, int]:
    return {
      name: -(-(stream.num_tokens - 1) // self._seq_len)
      for name, stream in self._streams.items()
    }

  def batches(
    self, max_windows: int | None = None
  ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields subset, tokens [B, S + 1] and weights [B, S].

    Args:
      max_windows: Approximate largest number of windows, divided among the
        subsets by size, with at least one each; None for all.
    """
    count = self._counts()
    total = sum(count.values())
    for name, stream in self._streams.items():
      share = None
      if max_windows is not None and max_windows < total:
        share = max(1, round(max_windows * count[name] / total))
      for tokens, weights in loader.eval_batches(
        stream,
        seq_len=self._seq_len,
        batch_size=self._batch_size,
        max_windows=share,
      ):
        yield name, tokens, weights

  def beginnings(self, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each subset and its first tokens, at most `size`, no padding."""
    for name, stream in self._streams.items():
      yield name, stream.all_targets().read(0, size)

  def check(self, max_windows: int | None) -> None:
    """Raises UserError if the windows that are evaluated have no target."""
    batches = self.batches(max_windows)
    if not any((weights > 0).any() for _, _, weights in batches):
      raise _no_targets()

  def score(
    self,
    losses: Callable[[np.ndarray, np.ndarray], Any],
    max_windows: int | None = None,
    check: Callable[[], None] = lambda: None,
  ) -> dict[str, Score]:
    """Evaluates a model.

    Args:
      losses: Tokens [B, S + 1] and weights [B, S] -> weighted NLL [B, S].
      max_windows: As in `batches`.
      check: Called before each batch; it may raise.

    Returns:
      A score per subset that has targets, and 'total', their sum. A subset
      called 'total' becomes 'total (subset)'.

    Raises:
      UserError: If no window has a target.
    """
    scores: dict[str, Score] = {}
    for name, tokens, weights in self.batches(max_windows):
      check()
      nats = np.asarray(losses(tokens, weights), np.float64).sum()
      size = (self._token_bytes[tokens[:, 1:]] * (weights > 0)).sum()
      batch = Score(float(nats), int((weights > 0).sum()), int(size))
      scores[name] = scores.get(name, Score()) + batch
    scores = {
      # A subset may be called 'total', too.
      name + ' (subset)' * (name == 'total'): dataclasses.replace(
        s, bytes=round(s.bytes * self._scales[name])
      )
      for name, s in scores.items()
      if s.tokens  # All of a few windows may be prompts.
    }
    if not scores:
      raise _no_targets()
    return {'total': sum(scores.values(), Score()), **scores}


def _no_targets() -> errors.UserError:
  return errors.UserError(
    'the windows to evaluate contain only prompts, no completions: raise '
    '--config.eval.max_windows and --config.train.steps (evaluation uses at '
    'most as many windows as training), or shorten the prompts'
  )


def on_mesh(eval_step: Any, params: Any, mesh: Mesh) -> Callable[..., Any]:
  """Binds a jitted evaluation step to parameters, and places its batches.

  Args:
    eval_step: (params, tokens, weights) -> NLL; see `step.jit_eval_step`.
    params: The parameters.
    mesh: The mesh.

  Returns:
    The function that `Validation.score` takes; every process passes it the
    whole batch.
  """
  sharding = mesh_lib.batch_sharding(mesh)

  def put(array: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return lambda tokens, weights: eval_step(params, put(tokens), put(weights))


def flatten(scores: dict[str, Score]) -> dict[str, float]:
  """Scores as metrics: eval/loss, eval/bits_per_byte/code, ..."""
  result: dict[str, float] = {}
  for name, score in scores.items():
    for key in ('loss', 'perplexity', 'bits_per_byte', 'tokens'):
      suffix = '' if name == 'total' else f'/{name}'
      result[f'eval/{key}{suffix}'] = score.as_dict()[key]
  return result
