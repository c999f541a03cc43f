"""Stops all processes of a run at the same step."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train import errors
from train.distributed import signals

# Its name among the values of a step.
_NAME = 'stop'


class Votes:
  """Agrees on a `signals.Stop` among processes; one alone just asks it.

  In a training loop each process casts its vote with every step, and counts
  the votes when it reads the step's values, one step late: that costs no
  waiting, and all of them find the same result at the same step.
  """

  def __init__(self, stop: signals.Stop):
    self._stop = stop
    self._agreed = 0
    self._ballots: dict[int, jax.Array] = {}
    self._several = jax.process_count() > 1
    if self._several:
      mesh = Mesh(np.asarray(jax.devices()), ('all',))
      self._split = NamedSharding(mesh, P('all'))
      self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

  def cast(self) -> dict[str, jax.Array]:
    """A value to fetch with those of a step; none from a single process."""
    if not self._several:
      return {}
    vote = self._stop.signum or 0
    if vote not in self._ballots:
      mine = np.full(jax.local_device_count(), vote, np.int32)
      self._ballots[vote] = jax.make_array_from_process_local_data(
        self._split, mine
      )
    return {_NAME: self._max(self._ballots[vote])}

  def count(self, values: dict[str, float]) -> None:
    """Takes the result of a vote out of the values that were fetched."""
    agreed = int(values.pop(_NAME, 0))
    if agreed and not self._agreed:
      self._agreed = self._stop.signum = agreed

  def obey(self) -> None:
    """Raises `Interrupted` if it is agreed to stop."""
    if self._agreed or (not self._several and self._stop()):
      raise errors.Interrupted

  def check(self) -> None:
    """Votes, waits for the result, and obeys it.

    All processes must come here equally often.
    """
    self.count({name: float(vote) for name, vote in self.cast().items()})
    self.obey()
