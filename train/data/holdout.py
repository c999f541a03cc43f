"""Which documents of the user's files are held out for validation."""

from typing import Any

from train.data.writer import Encoded

MAX_BYTES = 32 * 10**6  # About 8 million tokens, affordable to evaluate on.


class Holdout:
  """Chooses the split of each document; no text is in both splits.

  A document goes to validation if the hash of its text falls below `fraction`
  and it fits into the rest of MAX_BYTES. The choice depends on the previous
  texts, and equal texts always get the same split.

  Attributes:
    dropped: Documents left out because validation already has the same text.
  """

  def __init__(self, fraction: float):
    """Starts with nothing held out.

    Args:
      fraction: Share of the documents to hold out; 0 holds out only those that
        are added.
    """
    self.dropped = 0
    self._fraction = fraction
    self._left = MAX_BYTES
    self._keys: set[bytes] = set()

  def add(self, document: Encoded) -> None:
    """Holds a document out, independent of its hash and size."""
    self._keys.add(document.digest[:16])

  def split(self, document: Encoded) -> str | None:
    """Returns 'train', 'validation', or None for a copy to leave out."""
    key = document.digest[:16]
    if key in self._keys:
      self.dropped += 1
      return None
    share = int.from_bytes(key[:8], 'little') / 2**64
    if share >= self._fraction or document.num_bytes > self._left:
      return 'train'
    self._left -= document.num_bytes
    self._keys.add(key)
    return 'validation'

  def state(self) -> dict[str, Any]:
    """The argument of `restore`, as JSON."""
    keys = sorted(key.hex() for key in self._keys)
    return {'dropped': self.dropped, 'left': self._left, 'keys': keys}

  def restore(self, state: dict[str, Any]) -> None:
    """Restores a new object to the state when `state` was called."""
    self.dropped, self._left = state['dropped'], state['left']
    self._keys = {bytes.fromhex(key) for key in state['keys']}
