"""Options of the user about leaves, and the record of each leaf."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from sage_optax.leaves import pairs, presets
from sage_optax.leaves import rules as rules_lib
from sage_optax.leaves.axis_names import Axes, Reading


@dataclasses.dataclass(frozen=True)
class Routing:
  """Options about leaves; `sage_optax.recipe` describes them."""

  roles: Any = None
  rules: Sequence[rules_lib.Rule] | None = None
  logical_axes: Any = None
  matrix_axes: pairs.MatrixAxes = ()
  stacked: str | Sequence[str] = ()
  scan_axis: int | None = None
  preset: presets.Preset | None = None
  default_role: str | None = None

  def __post_init__(self):
    axis = self.scan_axis
    if axis is not None and not (isinstance(axis, int) and axis >= 0):
      raise ValueError(
        'scan_axis must be None or an axis counted from 0, got '
        f'{axis!r}. For optax.inject_hyperparams pass static_args='
        "('scan_axis',)."
      )


class Role(NamedTuple):
  """The role of a leaf, and what it is known by.

  Attributes:
    role: one of `rules.ROLES`; None: it is not clear.
    rule: the evidence: the user's pattern, the axes' names, or the name of the
      rule that knows the leaf's name.
    by_name: whether it is the meaning of a name, which other leaves may refute.
    doubt: why it is not clear; '' if it is.
    likely: the role to suggest where it is not clear; None: any.
  """

  role: str | None
  rule: str = ''
  by_name: bool = False
  doubt: str = ''
  likely: str | None = None


class Leaf(NamedTuple):
  """A leaf with its role and axes.

  Attributes:
    path: names from the root to the leaf, joined by '/'.
    leaf: the array or `ShapeDtypeStruct`.
    role: one of `rules.ROLES`; None: refused.
    rule: as of `Role`.
    axes: which axes are what; None: refused.
    evidence: for the axes.
    doubt: why the leaf is refused; '' if it is not.
    named: whether a name occurs in the path.
    by_name: as of `Role`.
    likely: role and axes to suggest where the leaf is refused.
  """

  path: str
  leaf: Any
  role: str | None
  rule: str
  axes: Axes | None
  evidence: str
  doubt: str = ''
  named: bool = True
  by_name: bool = False
  likely: Reading = Reading()
