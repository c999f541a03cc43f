"""Uses the lengths of vocabularies as evidence about other leaves."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax.leaves import axis_names, metadata, names
from sage_optax.leaves.evidence import Evidence
from sage_optax.leaves.records import Leaf


class Vocabularies:
  """The vocabularies of a tree.

  Attributes:
    lengths: length of a vocabulary -> the path of its embedding.
  """

  def __init__(
    self, params: Any, evidence: Evidence, given: Mapping[str, str | None]
  ):
    self._evidence, self._given = evidence, given
    self._masked = _masked_tokens(params)
    self.lengths: dict[int, str] = {}
    for path in evidence.paths:
      if (axes := self._table(path)) is not None:
        shape = evidence.shapes[path]
        rows, columns = _sizes(shape, axes)
        if rows != columns:
          self.lengths[rows] = path

  def _table(self, path: str) -> axis_names.Axes | None:
    """The axes of an embedding of tokens; None for other leaves."""
    evidence = self._evidence
    reading, known = evidence.reading(path), evidence.known[path]
    batch, _ = evidence.batch(path)
    role = self._given.get(path) or evidence.by_rule(path)
    if role is not None:
      tokens = role == 'embedding' and not names.OTHER_TABLES.search(path)
      found = axis_names.layout_axes('i o', evidence.shapes[path], batch)
      return found if tokens else None
    if reading.role is not None:
      tokens = reading.role == 'embedding' and self._has_vocab(path)
      return reading.axes if tokens else None
    if known is None or known.role != 'embedding':
      return None
    if not names.of_tokens(path) or evidence.refuted(path, known)[0]:
      return None
    return axis_names.layout_axes('i o', evidence.shapes[path], batch)

  def _has_vocab(self, path: str) -> bool:
    names_of = self._evidence.names_of(path)
    kinds = [metadata.KINDS.get(name or '') for name in names_of or ()]
    by_path = path in self._evidence.modules and names.of_tokens(path)
    return metadata.VOCAB in kinds or by_path

  def check(self, leaf: Leaf) -> Leaf:
    """Refuses hidden matrices with an axis as long as the vocabulary."""
    if leaf.axes is None or not leaf.by_name:
      return leaf
    shape, axes = jnp.shape(leaf.leaf), leaf.axes
    rows, columns = _sizes(shape, axes)
    first, last = self.lengths.get(rows), self.lengths.get(columns)
    if leaf.role == 'head':
      if first and not last:
        doubt = f'the vocabulary of {first} comes first'
        swapped = axes._replace(fan_in=axes.fan_out, fan_out=axes.fan_in)
        return leaf._replace(
          axes=None, doubt=doubt, likely=axis_names.Reading('head', swapped)
        )
      return leaf
    general = names.is_general(leaf.path, self._evidence.known[leaf.path])
    long = max(rows, columns) > 8 * min(rows, columns)
    if self._masked and general and long:
      doubt = f'it may be a head: {self._masked} is masked, so it is unknown'
      return _refused(leaf, doubt, 'head' if columns > rows else None)
    if last and not first and general and self._is_head(leaf.path, axes, last):
      return leaf._replace(role='head', rule=f'as long as {last}')
    longest = next((p for n, p in self.lengths.items() if n in shape), '')
    if path := first or last or longest:
      role = 'matrix'
      if general and self._is_like(leaf.path, first or last or ''):
        if last:
          role = 'head'
        elif not names.INTO_STREAM.search(leaf.path):
          role = 'embedding'
      return _refused(leaf, f'an axis is as long as {path}', role)
    return leaf

  def _is_head(self, path: str, axes: axis_names.Axes, table: str) -> bool:
    """Whether a matrix is the only one from the width to the vocabulary."""
    tree, shape = self._evidence, self._evidence.shapes[path]
    alike = [
      other
      for other, known in tree.known.items()
      if tree.shapes[other] == shape
      and (
        tree.reading(other).role == 'head'
        or (known is not None and known.role == 'head')
        or names.is_general(other, known)
      )
      and tree.reading(other).role != 'embedding'
    ]
    # The outputs of a head are not the inputs of another matrix.
    _, outputs = _sizes(shape, axes)
    used = any(
      self._inputs(other, known) == outputs
      for other, known in tree.known.items()
      if known is not None and names.is_general(other, known)
    )
    single = alike == [path] and not axes.batch and not used
    return single and self._is_like(path, table)

  def _inputs(self, path: str, known: names.Known) -> int | None:
    """The size of fan_in in the first layout of a name; None if it misfits."""
    shape = self._evidence.shapes[path]
    batch, _ = self._evidence.batch(path)
    axes = axis_names.layout_axes(known.layouts[0], shape, batch)
    return None if axes is None else _sizes(shape, axes)[0]

  def _is_like(self, path: str, table: str) -> bool:
    """Whether a matrix has the axes of a table, in any order."""
    shapes = self._evidence.shapes
    return table in shapes and sorted(shapes[path]) == sorted(shapes[table])


def _refused(leaf: Leaf, doubt: str, role: str | None) -> Leaf:
  """The leaf without a role, with a role to suggest."""
  likely = axis_names.Reading(role, leaf.axes)
  return leaf._replace(role=None, axes=None, doubt=doubt, likely=likely)


def _sizes(shape: tuple[int, ...], axes: axis_names.Axes) -> tuple[int, int]:
  """Sizes of fan_in and of fan_out."""
  rows, columns = (
    math.prod(shape[a] for a in side) for side in (axes.fan_in, axes.fan_out)
  )
  return rows, columns


def _masked_tokens(params: Any) -> str:
  """The path of an embedding of tokens that is masked; '' if none is."""
  nodes = jax.tree.leaves_with_path(
    params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
  )
  for key_path, node in nodes:
    path, _ = metadata.leaf_path(key_path)
    if isinstance(node, optax.MaskedNode) and names.of_tokens(path):
      return path
  return ''
