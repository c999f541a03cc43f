"""Decides role and axes of each leaf by the available evidence."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sage_optax.leaves import (
  axis_names,
  metadata,
  modules,
  names,
  pairs,
  presets,
  rules,
  stacks,
  views,
)
from sage_optax.leaves.axis_names import Axes
from sage_optax.leaves.records import Leaf, Routing


class Evidence:
  """The evidence about the leaves of a tree of parameters."""

  def __init__(self, params: Any, routing: Routing):
    self.routing = routing
    self.rules = rules.check(routing.rules, routing.default_role)
    leaves = jax.tree.leaves_with_path(params)
    located = [(*metadata.leaf_path(key), leaf) for key, leaf in leaves]
    self.paths = _unique([path for path, _, _ in located])
    self.leaves = dict(zip(self.paths, [x[2] for x in located], strict=True))
    self.named = dict(zip(self.paths, [x[1] for x in located], strict=True))
    self.masked_tokens = _masked_tokens(params)
    self.shapes = {p: jnp.shape(leaf) for p, leaf in self.leaves.items()}
    self.logical = self._logical_axes()
    if any(isinstance(p, tuple) for p, _ in self.rules) and not self.logical:
      raise ValueError('A rule for names of axes needs logical_axes=.')
    self.boxed = metadata.axis_names(params)
    self.modules = modules.readings(params)
    self.known = {p: names.find(p, routing.preset) for p in self.paths}
    self.axes_of = pairs.axes_function(routing.matrix_axes)
    scan_axis = routing.scan_axis
    if scan_axis is None and routing.preset is not None:
      scan_axis = routing.preset.scan_axis
    self.proofs = stacks.Proofs(self.shapes, self.known, scan_axis)
    self.stack_axis = scan_axis or 0
    self.vocabularies = self._vocabularies()

  def _logical_axes(self) -> dict[str, tuple[Any, ...]]:
    if self.routing.logical_axes is None:
      return {}
    logical = rules.axes_by_path(self.routing.logical_axes)
    for path in self.paths:
      if path not in logical:
        raise ValueError(f'logical_axes has no entry for {path}.')
    return logical

  def reading(self, path: str) -> axis_names.Reading:
    """Role and axes by the names of the axes, or by the module."""
    if path in self.logical:
      names_of = metadata.AxisNames(self.logical[path])
    elif path in self.modules:
      return self.modules[path]
    elif path in self.boxed:
      names_of = self.boxed[path]
    else:
      return axis_names.Reading()
    return axis_names.read(path, self.shapes[path], names_of)

  def batch(self, path: str) -> tuple[tuple[int, ...], str]:
    """The axes of stacks of a leaf, and the evidence."""
    stacked = self.routing.stacked
    for pattern in [stacked] if isinstance(stacked, str) else stacked:
      if rules.compile_pattern(pattern).search(path):
        return (self.stack_axis,), 'stacked='
    said = self.reading(path).batch
    if said:
      return said, 'names of axes'
    axis = self.proofs.axis(path)
    if axis == stacks.AMBIGUOUS:
      return (), 'ambiguous'
    return ((), '') if axis is None else ((axis,), 'stack')

  def _vocabularies(self) -> dict[int, str]:
    """Length of a vocabulary -> the path of its embedding."""
    found = {}
    for path in self.paths:
      reading, shape = self.reading(path), self.shapes[path]
      axes = reading.axes
      if reading.role is None:
        known = self.known[path]
        is_table = known is not None and known.role == 'embedding'
        if not (is_table and names.TOKENS.search(path)):
          continue
        batch, _ = self.batch(path)
        axes = axis_names.layout_axes('i o', shape, batch)
      elif reading.role != 'embedding' or not self._has_vocab(path):
        continue
      if axes is not None:
        rows = math.prod(shape[a] for a in axes.fan_in)
        if rows != math.prod(shape[a] for a in axes.fan_out):
          found[rows] = path
    return found

  def decide(self, path: str, given: str | None) -> Leaf:
    """The record of a leaf, before `check_vocabulary`."""
    leaf, named = self.leaves[path], self.named[path]
    role, rule, doubt = self._role(path, given)
    if role is None:
      return Leaf(path, leaf, None, rule, None, '', doubt, named)
    axes, evidence, doubt = self._axes(path, role, rule)
    return Leaf(path, leaf, role, rule, axes, evidence, doubt, named)

  def _role(self, path: str, given: str | None) -> tuple[Any, str, str]:
    """The role, the evidence and the doubt."""
    ndim = len(self.shapes[path])
    if not jnp.issubdtype(jnp.result_type(self.leaves[path]), jnp.inexact):
      return None, '', 'integers cannot be trained: mask the leaf'
    if given is not None:
      return given, 'given', ''
    logical = self.logical.get(path)
    if logical is None and path in self.boxed:
      logical = self.boxed[path].names
    if found := rules.search(path, logical, self.rules):
      return *found, ''
    auto = 'vector' if ndim < 2 else 'matrix'
    if not self.named[path]:
      return auto, f'no name, {ndim} axes', ''
    if role := self.reading(path).role:
      return role, self._reader(path), ''
    known, default = self.known[path], self.routing.default_role
    if known is not None and ndim == 1 and re.search('weights?$', path):
      return 'vector', 'weight', ''
    flat = known is not None and known.role != 'vector' and ndim < 2
    if known is not None and known.role is not None and not flat:
      return known.role, known.name, ''
    if default is not None:
      return (auto if default == 'auto' else default), 'default_role', ''
    if known is None:
      return None, '', 'no rule knows the name'
    if known.role is None:
      return None, known.name, known.doubt
    return None, known.name, f'its name means {known.role}, which has two axes'

  def _axes(self, path: str, role: str, rule: str) -> tuple[Any, str, str]:
    """The axes, the evidence and the doubt."""
    shape = self.shapes[path]
    if role != 'vector' and len(shape) < 2:
      raise ValueError(
        'Roles other than vector need at least 2 axes: '
        f'{path} {shape} is {role} by {rule!r}. Give this leaf the role '
        "'vector' by a rule of its own."
      )
    pair = self.axes_of(path)
    if pair is None and path in views.matrices.get():
      pair = ((), (-1,)) if role == 'vector' else ((-2,), (-1,))
    if pair is not None:
      pairs.check_role(path, pair, role)
      return pairs.axes_of_pair(path, shape, pair), 'matrix_axes=', ''
    reading = self.reading(path)
    if reading.axes is not None and reading.role == role:
      return reading.axes, self._reader(path), ''
    batch, evidence = self.batch(path)
    core = len(shape) - len(batch)
    if not self.named[path] and not batch:
      # By convention, all axes before those of a matrix are a batch.
      batch = tuple(range(len(shape) - (1 if role == 'vector' else 2)))
      core, evidence = len(shape) - len(batch), 'convention'
    if evidence == 'ambiguous':
      return None, '', 'two axes could count the layers'
    known = self.known[path]
    fits = None
    if known is not None and _same_kind(known.role, role):
      fits, doubt = self._fit(path, known, batch, rule)
      if doubt:
        return None, '', doubt
      if fits:
        evidence = ' in a '.join(filter(None, ('name', evidence)))
    clear = known is None or known.guess or role == 'embedding' or core == 1
    if fits is None and clear:
      found = axis_names.fits(
        ('o' if role == 'vector' else 'i o',), shape, batch
      )
      fits = found[0] if found else None
      evidence = evidence or ('convention' if fits else '')
    if fits is None and core == 0:
      fits = Axes((), (), tuple(range(len(shape))))
    if fits is not None:
      return fits, evidence, ''
    doubt = known.doubt if known is not None and known.doubt else ''
    return None, '', doubt or _doubt(role, core, evidence)

  def _fit(
    self, path: str, known: names.Known, batch: tuple[int, ...], rule: str
  ) -> tuple[Axes | None, str]:
    """The axes by the leaf's name and the leaves beside it, or the doubt."""
    shape = self.shapes[path]
    fits = axis_names.fits(known.layouts, shape, batch)
    if not fits or known.role == 'vector':
      return (fits[0] if fits else None), ''
    beside = stacks.outputs_beside(path, self.shapes, self.batch)
    if beside is not None:
      fits = [axes for axes in fits if axes.outputs(shape) == beside.sizes]
      if not fits or known.role == 'embedding':
        return None, f'the {beside.name} beside it is {beside.shape}'
    elif rule in ('kernel', 'weight') and stacks.like_table(path, shape, batch):
      return None, 'it may be a table: it is long, without a bias beside it'
    if len(fits) > 1:
      return None, known.doubt
    return fits[0], stacks.attention_doubt(path, fits[0], self.shapes)

  def _reader(self, path: str) -> str:
    return 'module' if path in self.modules else 'names of axes'

  def _has_vocab(self, path: str) -> bool:
    box = self.boxed.get(path)
    said = self.logical.get(path) or (box.names if box else ())
    if path in self.modules and not said:
      return names.TOKENS.search(path) is not None
    return any(metadata.KINDS.get(n or '') == metadata.VOCAB for n in said)

  def check_vocabulary(self, leaf: Leaf) -> Leaf:
    """Refuses hidden matrices that have an axis of the vocabulary."""
    if leaf.axes is None or leaf.role not in ('matrix', 'head'):
      return leaf
    shape, axes = jnp.shape(leaf.leaf), leaf.axes
    rows, columns = (
      math.prod(shape[a] for a in side) for side in (axes.fan_in, axes.fan_out)
    )
    long = max(rows, columns) > 8 * min(rows, columns)
    if self.masked_tokens and leaf.rule == 'kernel' and long:
      return leaf._replace(
        role=None,
        axes=None,
        doubt=f'it may be a head: {self.masked_tokens} is masked, which would '
        'tell',
      )
    if leaf.rule not in _BY_NAME or not self.vocabularies:
      return leaf
    first, last = (self.vocabularies.get(n) for n in (rows, columns))
    if leaf.role == 'head':
      if first and not last:
        return leaf._replace(
          axes=None, doubt=f'the vocabulary of {first} comes first'
        )
      return leaf
    if last and not first and leaf.rule == 'kernel':
      width = math.prod(self.shapes[last]) // columns
      if rows == width and not axes.batch:
        return leaf._replace(role='head', rule=f'as long as {last}')
    longest = next((p for n, p in self.vocabularies.items() if n in shape), '')
    if path := first or last or longest:
      return leaf._replace(
        role=None, axes=None, doubt=f'an axis is as long as {path}'
      )
    return leaf


_BY_NAME = {known.name for known in names.DEFAULT} | {
  known.name for preset in presets.PRESETS for known in preset.known
}


def _masked_tokens(params: Any) -> str:
  """The path of an embedding of tokens that is masked; '' if none is."""
  nodes = jax.tree.leaves_with_path(
    params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
  )
  for key_path, node in nodes:
    path, _ = metadata.leaf_path(key_path)
    if isinstance(node, optax.MaskedNode) and names.TOKENS.search(path):
      return path
  return ''


def _same_kind(known: str | None, role: str) -> bool:
  """Whether leaves of this role have the layout of the name's role."""
  return known == role or (known is not None and 'vector' not in (known, role))


def _doubt(role: str, core: int, evidence: str) -> str:
  stack = 'beside the stack' if evidence else 'and no proof of a stack'
  unit = 'a vector has one axis' if role == 'vector' else 'a matrix has two'
  return f'{core} axes {stack}, where {unit}'


def _unique(paths: list[str]) -> list[str]:
  """The paths, numbered where two leaves have the same one."""
  seen: dict[str, int] = {}
  result = []
  for path in paths:
    seen[path] = seen.get(path, 0) + 1
    result.append(path if seen[path] == 1 else f'{path}#{seen[path]}')
  return result
