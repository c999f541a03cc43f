"""Generates text: one window, compiled once, filled token by token."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from train.run import Run

_PROMPT_TOKENS = 24
_SAMPLE_TOKENS = 72
_LEAST_TOKENS = 8
_MAX_SAMPLES = 3

Logits = Callable[[Any, jax.Array], jax.Array]


class Generator:
  """Continues prompts.

  The whole window is recomputed for each token, which is simple and fast enough
  for a short sample.
  """

  def __init__(
    self,
    logits: Logits,
    *,
    window: int,
    vocab_size: int,
    temperature: float = 0.8,
    sharding: jax.sharding.Sharding | None = None,
  ):
    """Prepares the step; it is compiled when first used.

    Args:
      logits: (params, tokens [1, W]) -> logits [1, W, V].
      window: Number of last tokens that the model sees, W.
      vocab_size: Number of tokens to sample from; a model may have more
        entries than its tokenizer.
      temperature: Divides the logits; 0 means greedy decoding.
      sharding: Sharding of a token; with several processes, every process must
        hold it whole.
    """
    self._window = window

    @functools.partial(jax.jit, out_shardings=sharding)
    def draw(params, tokens, last, key):
      # Tokens after `last` are padding, which a causal model ignores.
      scores = jnp.take(logits(params, tokens)[0], last, axis=0)
      known = jnp.arange(scores.shape[0]) < vocab_size
      scores = jnp.where(known, scores, -jnp.inf)
      if temperature == 0:
        return jnp.argmax(scores)
      return jax.random.categorical(key, scores / temperature)

    self._draw = draw

  def __call__(
    self,
    params: Any,
    prompt: Sequence[int] | np.ndarray,
    *,
    key: jax.Array,
    num_tokens: int,
    stop_at: int | None = None,
    check: Callable[[], None] = lambda: None,
  ) -> list[int]:
    """Continues a prompt.

    Args:
      params: The parameters.
      prompt: At least one token.
      key: A PRNG key; the same key gives the same text.
      num_tokens: Largest number of tokens to add.
      stop_at: A token that ends the text and is not included.
      check: Called before each token; it may raise.

    Returns:
      The tokens added.
    """
    tokens = [int(token) for token in prompt]
    start = len(tokens)
    for i in range(num_tokens):
      check()
      seen = tokens[-self._window :]
      buffer = np.zeros((1, self._window), np.int32)
      buffer[0, : len(seen)] = seen
      key_i = jax.random.fold_in(key, i)
      token = int(self._draw(params, buffer, len(seen) - 1, key_i))
      if token == stop_at:
        break
      tokens.append(token)
    return tokens[start:]


def continue_validation(
  run: Run, params: Any, check: Callable[[], None]
) -> dict[str, str]:
  """Continues the beginning of the validation text of each subset.

  Args:
    run: The run.
    params: Its parameters.
    check: Called before each token; it may raise.

  Returns:
    Subset -> beginning and continuation, for a few subsets.
  """
  tokenizer = run.inputs.tokenizer
  window = _PROMPT_TOKENS + _SAMPLE_TOKENS
  # A token costs a forward pass over a window, a third of a training step on
  # it. All tokens together take at most a tenth of the training time, so that
  # a trial of a large model ends soon.
  affordable = 3 * run.tokens // (10 * _MAX_SAMPLES * window)
  num_tokens = min(max(affordable, _LEAST_TOKENS), _SAMPLE_TOKENS)
  generator = Generator(
    run.program.logits,
    window=window,
    vocab_size=tokenizer.vocab_size,
    sharding=NamedSharding(run.program.mesh, PartitionSpec()),
  )
  result: dict[str, str] = {}
  prompts = run.inputs.validation.beginnings(_PROMPT_TOKENS)
  for name, prompt in itertools.islice(prompts, _MAX_SAMPLES):
    added = generator(
      params,
      prompt,
      key=jax.random.key(run.config.train.seed),
      num_tokens=num_tokens,
      stop_at=tokenizer.eot_id,
      check=check,
    )
    beginning, end = tokenizer.decode(prompt), tokenizer.decode(added)
    result[name] = f'{beginning} >>> {end}'
  return result
