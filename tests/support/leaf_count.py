"""Counts how many parameters of public models are routed right.

python -m tests.support.leaf_count
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from sage_optax.leaves import metadata, records, routing
from tests.support import boxes, leaf_table


class Count(NamedTuple):
  """Parameters by outcome; `wrong` has the paths."""

  right: int
  refused: int
  wrong: list[str]


def tree(project: leaf_table.Project) -> Any:
  """The parameters of a project, boxed as its library boxes them."""
  root: dict[str, Any] = {}
  for row in project.rows:
    *folders, name = _path(row.path).split('/')
    node = root
    for folder in folders:
      node = node.setdefault(folder, {})
    leaf = jax.ShapeDtypeStruct(row.shape, jnp.float32)
    node[name] = leaf if row.names is None else _box(project.box, row, leaf)
  return root


def judge(row: leaf_table.Row, leaf: records.Leaf) -> str:
  """'right', 'refused' or 'wrong'."""
  if leaf.doubt:
    return 'refused'
  assert leaf.axes is not None
  same = leaf.role in row.role.split('|') and all(
    _long(got, row.shape) == _long(wanted, row.shape)
    for got, wanted in zip(
      leaf.axes[1:], (row.fan_in, row.fan_out), strict=True
    )
  )
  return 'right' if same else 'wrong'


def paths(project: leaf_table.Project) -> list[str]:
  """The paths, without the boxes."""
  return [_path(row.path) for row in project.rows]


def alone(params: Any, path: str) -> Any:
  """The tree as `optax.masked` shows it that keeps one leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda key, leaf: (
      leaf if metadata.leaf_path(key)[0] == path else optax.MaskedNode()
    ),
    params,
  )


def count(
  project: leaf_table.Project,
  params: Any = None,
  said: routing.Routing | None = None,
) -> Count:
  """Outcomes for a project, with its preset if nothing else is said."""
  params = tree(project) if params is None else params
  said = said or routing.Routing(preset=project.preset)
  found = {leaf.path: leaf for leaf in routing.records(params, said).leaves}
  outcomes = {
    row.path: judge(row, found[_path(row.path)])
    for row in project.rows
    if _path(row.path) in found
  }
  values = list(outcomes.values())
  return Count(
    values.count('right'),
    values.count('refused'),
    [path for path, outcome in outcomes.items() if outcome == 'wrong'],
  )


def _long(axes: tuple[int, ...], shape: tuple[int, ...]) -> set[int]:
  """The axes longer than 1; the others make no difference."""
  return {axis for axis in axes if shape[axis] > 1}


def _path(path: str) -> str:
  """As `sage_optax` shows it, without the boxes."""
  parts = path.split('/')
  while parts[-1] in ('value', 'array', 'data_array'):
    parts.pop()
  return '/'.join(parts)


def _box(kind: str, row: leaf_table.Row, leaf: Any) -> Any:
  names = row.names or ()
  if kind == 'flax':
    return nn.LogicallyPartitioned(leaf, names)
  sizes = [(str(n), s) for n, s in zip(names, row.shape, strict=True)]
  if kind == 'haliax':
    return boxes.HaliaxArray(leaf, tuple(boxes.Axis(*x) for x in sizes))
  return boxes.PenzaiParameter(boxes.PenzaiArray(leaf, dict(sizes)))


def main() -> None:
  """Prints a line for each project, and the sum."""
  total = [0, 0, 0]
  for project in leaf_table.PROJECTS:
    right, refused, wrong = count(project)
    for i, number in enumerate((right, refused, len(wrong))):
      total[i] += number
    print(
      f'{project.name:28} {right:4} right {refused:3} refused '
      f'{len(wrong):3} wrong {" ".join(wrong)}'
    )
  everything = sum(total)
  print(
    f'{everything} parameters of {len(leaf_table.PROJECTS)} models: '
    f'{total[0]} right ({100 * total[0] // everything} %), {total[1]} refused, '
    f'{total[2]} wrong'
  )


if __name__ == '__main__':
  main()
