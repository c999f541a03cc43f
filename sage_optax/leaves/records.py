"""Options of the user about leaves, and the record of each leaf."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from sage_optax.leaves import names, pairs
from sage_optax.leaves import rules as rules_lib
from sage_optax.leaves.axis_names import Axes


@dataclasses.dataclass(frozen=True)
class Routing:
  """Options about leaves; `sage_optax.recipe` describes them."""

  roles: Any = None
  rules: Sequence[rules_lib.Rule] | None = None
  logical_axes: Any = None
  matrix_axes: pairs.MatrixAxes = ()
  stacked: str | Sequence[str] = ()
  scan_axis: int | None = None
  preset: names.Preset | None = None
  default_role: str | None = None

  def __post_init__(self):
    axis = self.scan_axis
    if axis is not None and not (isinstance(axis, int) and axis >= 0):
      raise ValueError(
        'scan_axis must be None or an axis counted from 0, got '
        f'{axis!r}. For optax.inject_hyperparams pass static_args='
        "('scan_axis',)."
      )


class Leaf(NamedTuple):
  """A leaf with its role and axes.

  Attributes:
    path: names from the root to the leaf, joined by '/'.
    leaf: the array or `ShapeDtypeStruct`.
    role: one of `rules.ROLES`; None: refused.
    rule: the evidence for the role: the user's pattern, the axes' names, or
      the name of the rule that knows the leaf's name.
    axes: which axes are what; None: refused.
    evidence: for the axes.
    doubt: why the leaf is refused; '' if it is not.
    named: whether a name occurs in the path.
  """

  path: str
  leaf: Any
  role: str | None
  rule: str
  axes: Axes | None
  evidence: str
  doubt: str = ''
  named: bool = True
