"""The user's options about leaves, and the record of each leaf."""

import dataclasses
from collections.abc import Iterator, Sequence
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
    preset = self.preset
    if preset is not None and not isinstance(preset, presets.Preset):
      raise ValueError(
        'preset must be one of sage_optax.layout, such as layout.TORCH, got '
        f'{preset!r}.'
      )
    for name in ('rules', 'matrix_axes', 'stacked'):
      if isinstance(getattr(self, name), Iterator):
        raise ValueError(
          f'{name} is read for every tree of parameters: pass a list, not an '
          f'iterator, got {getattr(self, name)!r}.'
        )
    if not isinstance(self.stacked, str | tuple | list):
      raise ValueError(
        f'stacked must be a pattern or a list of patterns, got {self.stacked!r}'
        '.'
      )


class Role(NamedTuple):
  """The role of a leaf, and the evidence for it.

  Attributes:
    role: one of `rules.ROLES`; None: it is not clear.
    rule: the evidence: the user's pattern, the axes' names, or the name of the
      rule that matches the leaf's name.
    by_name: whether the role comes from a name, which other leaves may
      contradict.
    doubt: why the role is not clear; '' if it is clear.
    likely: the role to suggest if it is not clear; None: any.
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
    role: one of `rules.ROLES`; None: not clear.
    rule: as in `Role`.
    axes: the axes by their meaning; None: not clear.
    evidence: the evidence for the axes.
    doubt: why the leaf is refused; '' if it is not refused.
    named: whether the path contains a name.
    by_name: as in `Role`.
    likely: role and axes to suggest if the leaf is refused.
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
