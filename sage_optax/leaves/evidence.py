"""Decides role and axes of each leaf from the available evidence."""

import re
from typing import Any

import jax
import jax.numpy as jnp

from sage_optax.leaves import (
  axis_names,
  messages,
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
from sage_optax.leaves.records import Leaf, Role, Routing


class Evidence:
  """The evidence about the leaves of a tree of parameters."""

  def __init__(self, params: Any, routing: Routing):
    self.routing = routing
    self.rules = rules.check(routing.rules, routing.default_role)
    leaves = jax.tree.leaves_with_path(params)
    located = [(*metadata.leaf_path(key), leaf) for key, leaf in leaves]
    self.paths = metadata.unique([path for path, _, _ in located])
    self.leaves = dict(zip(self.paths, [x[2] for x in located], strict=True))
    self.named = dict(zip(self.paths, [x[1] for x in located], strict=True))
    self.shapes = {p: metadata.shape(p, x) for p, x in self.leaves.items()}
    self.logical = rules.axes_by_path(routing.logical_axes, self.paths)
    if any(isinstance(p, tuple) for p, _ in self.rules) and not self.logical:
      raise ValueError('A rule for names of axes needs logical_axes=.')
    self.boxed = metadata.axis_names(params)
    self.modules = modules.readings(params)
    self.known = {
      path: presets.find(path, shape, routing.preset)
      for path, shape in self.shapes.items()
    }
    self.axes_of = pairs.axes_function(routing.matrix_axes)
    scan_axis = routing.scan_axis
    if scan_axis is None and routing.preset is not None:
      scan_axis = routing.preset.scan_axis
    self.scan_axis = scan_axis
    self._layouts: dict[names.Known, set[str]] = {}
    self.proofs = stacks.Proofs(self.shapes, self.known, scan_axis)

  def names_of(self, path: str) -> tuple[str | None, ...] | None:
    """The names of a leaf's axes; None if they have none."""
    if path in self.logical:
      return self.logical[path]
    return self.boxed[path].names if path in self.boxed else None

  def reading(self, path: str) -> axis_names.Reading:
    """Role and axes from the names of the axes, or from the module."""
    if path in self.logical:
      named_axes = metadata.AxisNames(self.logical[path])
    elif path in self.modules:
      return self.modules[path]
    elif path in self.boxed:
      named_axes = self.boxed[path]
    else:
      return axis_names.Reading()
    return axis_names.read(path, self.shapes[path], named_axes)

  def batch(self, path: str) -> tuple[tuple[int, ...], str]:
    """The axes of stacks of a leaf, and the evidence."""
    stacked = self.routing.stacked
    for pattern in [stacked] if isinstance(stacked, str) else stacked:
      if rules.compile_pattern(pattern).search(path):
        return (self.scan_axis or 0,), 'stacked='
    named = self.reading(path).batch
    if named:
      return named, 'names of axes'
    axis = self.proofs.axis(path)
    if axis == stacks.AMBIGUOUS:
      return (), 'ambiguous'
    return ((), '') if axis is None else ((axis,), 'stack')

  def decide(self, path: str, given: Role | None) -> Leaf:
    """Returns the record of a leaf; `given` is its role, if known."""
    leaf, named = self.leaves[path], self.named[path]
    decided = self._role(path, given)
    role, rule = decided.role, decided.rule
    axes, evidence, doubt = None, '', decided.doubt
    if role not in (None, 'vector') and len(self.shapes[path]) < 2:
      raise ValueError(
        'Roles other than vector need at least 2 axes: '
        f'{path} {self.shapes[path]} is {role} by {rule!r}. Give this leaf the '
        "role 'vector' by a rule of its own."
      )
    if role is not None:
      axes, evidence, doubt = self._axes(path, role)
    found = Leaf(path, leaf, role, rule, axes, evidence, doubt, named)
    if axes is None:
      found = found._replace(likely=self._likely(path, decided))
    return found._replace(by_name=decided.by_name)

  def _role(self, path: str, given: Role | None) -> Role:
    ndim, shape = len(self.shapes[path]), self.shapes[path]
    dtype = jnp.result_type(self.leaves[path])
    if jnp.issubdtype(dtype, jnp.complexfloating):
      doubt = 'complex: mask it, or use optax.contrib.split_real_and_imaginary'
      return Role(None, doubt=doubt)
    if not jnp.issubdtype(dtype, jnp.floating):
      return Role(None, doubt='integers cannot be trained: mask the leaf')
    if given is not None:
      return given
    if found := rules.search(path, self.names_of(path), self.rules):
      return Role(*found)
    if not self.named[path]:
      return Role(rules.auto_role(shape), f'no name, {ndim} axes')
    if role := self.reading(path).role:
      # A Linear module may map to the vocabulary.
      by_name = path in self.modules and role in ('matrix', 'head')
      return Role(role, self._reader(path), by_name)
    known = self.known[path]
    if known is None:
      return Role(None, doubt='no rule matches the name')
    if ndim == 1 and re.search('weights?$', path):
      return Role('vector', 'weight')
    if known.role is None:
      return Role(None, known.name, doubt=known.doubt)
    if known.role != 'vector' and ndim < 2:
      doubt = f'its name means {known.role}, which has two axes'
      return Role(None, known.name, doubt=doubt, likely='vector')
    doubt, likely = self.refuted(path, known)
    if doubt:
      return Role(None, known.name, doubt=doubt, likely=likely)
    return Role(known.role, known.name, known.role in ('matrix', 'head'))

  def by_rule(self, path: str) -> str | None:
    """The role of a leaf by the user's rules; None if none matches."""
    found = rules.search(path, self.names_of(path), self.rules)
    return found[0] if found else None

  def refuted(self, path: str, known: names.Known) -> tuple[str, str | None]:
    """Why a leaf may not be what its name means, and its likely role."""
    shape, (batch, _) = self.shapes[path], self.batch(path)
    general = names.is_general(path, known)
    beside = stacks.outputs_beside(path, self.shapes, self.batch)
    if beside is not None:
      two = len(shape) - len(batch) == 2
      if known.role == 'embedding' or (
        general and two and not self._proved(path, ('i o', 'o i'))
      ):
        likely = 'vector' if beside.shape == shape else 'matrix'
        return f'the {beside.name} beside it is {beside.shape}', likely
    elif general and stacks.like_table(path, shape, batch):
      doubt = 'it may be an embedding: it is long, without a bias beside it'
      return doubt, 'embedding'
    elif general and not known.guess:
      return known.doubt, None
    return '', None

  def _axes(self, path: str, role: str) -> tuple[Axes | None, str, str]:
    """The axes, the evidence and the doubt."""
    shape = self.shapes[path]
    pair = self.axes_of(path)
    if pair is None and path in views.matrices.get():
      pair = ((), (-1,)) if role == 'vector' else ((-2,), (-1,))
    if pair is not None:
      pairs.check_role(path, pair, role)
      return pairs.axes_of_pair(path, shape, pair), 'matrix_axes=', ''
    if (axes := self.reading(path).axes_of(role)) is not None:
      return axes, self._reader(path), ''
    batch, evidence = self.batch(path)
    core = len(shape) - len(batch)
    if not self.named[path] and not batch:
      # By convention, all axes before those of a matrix are a batch.
      batch = tuple(range(len(shape) - (1 if role == 'vector' else 2)))
      core, evidence = len(shape) - len(batch), 'convention'
    if batch and max(batch) >= len(shape):
      return None, '', f'it has no axis {max(batch)} to count the layers'
    if evidence == 'ambiguous':
      return None, '', 'two axes could count the layers'
    known = self.known[path]
    fits = None
    if known is not None and _same_kind(known.role, role):
      fits, doubt = self._fit(path, known)
      if doubt:
        return None, '', doubt
      if fits:
        evidence = ' in a '.join(filter(None, ('name', evidence)))
    either = presets.either_order(known, role, self.routing.preset)
    clear = not either if known is None else known.guess
    clear = clear or role == 'embedding' or core == 1
    if fits is None and known is not None and known.role == role:
      clear = False  # Its shape is not one that such leaves have.
    if fits is None and clear:
      layout = 'o' if role == 'vector' else 'i o'
      fits = axis_names.fits((layout,), shape, batch).get(layout)
      evidence = evidence or ('convention' if fits else '')
    if fits is None and core == 0:
      fits = Axes((), (), tuple(range(len(shape))))
    if fits is not None:
      return fits, evidence, ''
    doubt = known.doubt if known is not None and known.doubt else ''
    if either and core == 2:
      doubt = presets.EITHER_DOUBT
    return None, '', doubt or messages.no_stack(role, core, evidence)

  def _fit(self, path: str, known: names.Known) -> tuple[Axes | None, str]:
    """The axes from the leaf's name and the leaves beside it, or the doubt."""
    shape = self.shapes[path]
    fits = axis_names.fits(known.layouts, shape, self.batch(path)[0])
    if not fits:
      return None, ''
    if known.role == 'vector':
      axes = next(iter(fits.values()))
      return axes, self._heads_doubt(path, axes)
    proved = self._proved(path, known.layouts)
    if not proved:
      beside = stacks.outputs_beside(path, self.shapes, self.batch)
      assert beside is not None
      return None, f'the {beside.name} beside it is {beside.shape}'
    if len(proved) > 1 and known.alike:
      proved = self._as_siblings(known, proved)
    if len(proved) > 1:
      return None, known.doubt
    (axes,) = proved.values()
    return axes, self._heads_doubt(path, axes)

  def _heads_doubt(self, path: str, axes: Axes) -> str:
    return stacks.heads_doubt(path, axes, self.shapes, self.batch)

  def _proved(
    self,
    path: str,
    layouts: tuple[str, ...],
    batch: tuple[int, ...] | None = None,
  ) -> dict[str, Axes]:
    """The layouts that the leaf beside this one does not contradict."""
    shape = self.shapes[path]
    if batch is None:
      batch, _ = self.batch(path)
    beside = stacks.outputs_beside(path, self.shapes, self.batch)
    return {
      layout: axes
      for layout, axes in axis_names.fits(layouts, shape, batch).items()
      if beside is None or axes.outputs(shape) == beside.sizes
    }

  def _as_siblings(
    self, known: names.Known, fits: dict[str, Axes]
  ) -> dict[str, Axes]:
    """The layout of the leaves of this name that show one, if it is one."""
    if known not in self._layouts:
      self._layouts[known] = {
        next(iter(found))
        for path, other in self.known.items()
        if other == known
        and len(found := self._proved(path, known.layouts)) == 1
      }
    proved = self._layouts[known]
    return {x: fits[x] for x in proved} if len(proved) == 1 else fits

  def _likely(self, path: str, decided: Role) -> axis_names.Reading:
    """The suggestion, from the name and the outputs shown by the bias."""
    role, known = decided.role or decided.likely, self.known[path]
    shape, (batch, _) = self.shapes[path], self.batch(path)
    normal = 1 if role == 'vector' else 2
    if role is not None and len(shape) - len(batch) < normal:
      batch = ()
    if not batch and self.scan_axis is not None and len(shape) > normal:
      batch = (self.scan_axis,)
    layouts, preset = known.layouts if known else (), self.routing.preset
    if preset is not None and preset.outputs_first:
      layouts += presets.CONVOLUTIONS
    if presets.either_order(known, role, preset):
      layouts = ('o i',)
    if role == 'embedding' and known is not None and known.role != role:
      layouts = ('i o',)
    beside = stacks.outputs_beside(path, self.shapes, self.batch)
    if beside:
      layouts += tuple(' '.join(reversed(x.split())) for x in layouts)
    candidates = self._proved(path, layouts, batch)
    if not batch and not candidates:  # It may be a stack of attention kernels.
      heads = tuple(x for x in layouts if len(x.split()) == 3)
      candidates = self._proved(path, heads, (0,))
    for axes in candidates.values():
      same = (role == 'vector') == (not axes.fan_in)
      if same and not self._heads_doubt(path, axes):
        return axis_names.Reading(role, axes)
    sizes = beside.sizes if beside else ()
    return axis_names.Reading(role, axis_names.guess(path, shape, batch, sizes))

  def _reader(self, path: str) -> str:
    return 'module' if path in self.modules else 'names of axes'


def _same_kind(known: str | None, role: str) -> bool:
  """Whether leaves of this role have the layout of the name's role."""
  return known == role or (known is not None and 'vector' not in (known, role))
