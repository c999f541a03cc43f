"""Kernels of other layouts give the results of the 2-D matrix."""

import functools
import itertools
import math

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx

import sage_optax
from sage_optax import layout
from tests.support import cases

_NAMES = tuple((name, name) for name in sage_optax.recipe_names())
_LR = 0.01
_STEPS = 4

# Path -> shape, its matrix_axes, and the same array as NumPy makes a matrix.
_LEAVES = {
  'embed/embedding': ((16, 8), None, lambda x: x),
  'lm_head/kernel': ((16, 8), ((1,), (0,)), lambda x: x.T),
  'layers/query/kernel': (
    (2, 8, 4, 3),
    ((-3,), (-2, -1)),
    lambda x: x.reshape(2, 8, 12),
  ),
  'layers/query/bias': (
    (2, 4, 3),
    ((), (-2, -1)),
    lambda x: x.reshape(2, 12),
  ),
  'layers/out/kernel': (
    (2, 4, 3, 8),
    ((1, 2), (3,)),
    lambda x: x.reshape(2, 12, 8),
  ),
  'proj/weight': ((5, 7), ((1,), (0,)), lambda x: x.T),
  'conv/kernel': (
    (3, 2, 5, 6),
    ((0, 1, 2), (-1,)),
    lambda x: x.reshape(30, 6),
  ),
  # Scattered, out of order, with a batch axis in the middle.
  'mixer/kernel': (
    (4, 3, 5, 2),
    ((3, 1), (0,)),
    lambda x: x.transpose(2, 3, 1, 0).reshape(5, 6, 4),
  ),
  'norm/scale': ((8,), None, lambda x: x),
}
_RULES = [(f'^{path}$', pair) for path, (_, pair, _) in _LEAVES.items() if pair]


# One for each role and the most scattered one: the rest of the tests has all.
_FEW = (
  'embed/embedding',
  'lm_head/kernel',
  'layers/query/bias',
  'mixer/kernel',
)


def _plain(path):
  """For the leaves as NumPy makes matrices of them."""
  vector = path.endswith(('bias', 'scale'))
  return ((), (-1,)) if vector else ((-2,), (-1,))


def _tree(seed, paths=tuple(_LEAVES)):
  rng = np.random.default_rng(seed)
  return {
    path: jnp.asarray(rng.standard_t(3, _LEAVES[path][0]), jnp.float32)
    for path in paths
  }


def _matrices(tree):
  return {path: _LEAVES[path][2](leaf) for path, leaf in tree.items()}


def _updates(tx, grads, params):
  """Updates of every step, and the last state."""
  state, updates = tx.init(params), []
  update = jax.jit(tx.update)
  for grad in grads:
    step, state = update(grad, state, params)
    params = optax.apply_updates(params, step)
    updates.append(step)
  return updates, state


def _assert_close(a, b, rtol=1e-5, atol=1e-7):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


class EqualTest(parameterized.TestCase):
  """The same as on the tree of matrices, made by NumPy's reshape."""

  def _assert_same(self, ours, plain, paths=tuple(_LEAVES)):
    params = _tree(0, paths)
    grads = [_tree(t + 1, paths) for t in range(_STEPS)]
    got, state = _updates(ours, grads, params)
    expected, other = _updates(
      plain, list(map(_matrices, grads)), _matrices(params)
    )
    _assert_close(list(map(_matrices, got)), expected)
    return state, other

  @parameterized.named_parameters(*_NAMES)
  @pytest.mark.nightly_except(
    'sage_hybrid', 'sinkgd', 'galore', 'muon', 'stable_spam', 'adafactor'
  )
  def test_recipe(self, name):
    kwargs = {'weight_decay': 0.1}
    state, other = self._assert_same(
      sage_optax.recipe(name, _LR, matrix_axes=_RULES, **kwargs),
      sage_optax.recipe(name, _LR, matrix_axes=_plain, **kwargs),
      _FEW,
    )
    sizes = [
      sorted(leaf.size for leaf in jax.tree.leaves(s)) for s in (state, other)
    ]
    self.assertEqual(*sizes)

  def test_stochastic_rounding_has_the_same_noise(self):
    make = functools.partial(sage_optax.lion, _LR, state_dtype='bfloat16')
    ours, plain = make(matrix_axes=_RULES), make(matrix_axes=_plain)
    state, other = self._assert_same(ours, plain, _FEW)
    mus = [
      s.inner_states['matrix'].inner_state[0].mu['mixer/kernel']
      for s in (state, other)
    ]
    np.testing.assert_array_equal(_LEAVES['mixer/kernel'][2](mus[0]), mus[1])

  @parameterized.named_parameters(
    ('adam', 'adam', optax.adam(_LR)),
    # Its statistics have fewer axes than the parameters.
    ('adafactor', 'adafactor', optax.adafactor(_LR, min_dim_size_to_factor=4)),
    (
      'chain',
      'chain',
      optax.chain(optax.clip_by_block_rms(1.0), optax.lion(_LR)),
    ),
    ('multi_steps', 'multi_steps', optax.MultiSteps(optax.adamw(_LR), 2)),
    ('injected', 'injected', optax.inject_hyperparams(optax.adamw)(_LR)),
    (
      'accumulating_recipe',
      'accumulating_recipe',
      sage_optax.sage_hybrid(_LR, weight_decay=0.1),
    ),
  )
  def test_any_transformation(self, name, tx):
    plain = tx
    if name == 'accumulating_recipe':
      # It sees matrices, whatever their names say.
      plain = sage_optax.sage_hybrid(_LR, weight_decay=0.1, matrix_axes=_plain)
      tx, plain = optax.MultiSteps(tx, 2), optax.MultiSteps(plain, 2)
    tx, plain = (
      t.gradient_transformation() if isinstance(t, optax.MultiSteps) else t
      for t in (tx, plain)
    )
    self._assert_same(sage_optax.with_matrix_axes(tx, _RULES), plain)

  def test_function_of_the_path(self):
    self._assert_same(
      sage_optax.sage(_LR, matrix_axes=lambda path: _LEAVES[path][1]),
      sage_optax.sage(_LR, matrix_axes=_plain),
    )

  def test_what_was_used_without_matrix_axes_before(self):
    # The view of a square matrix has its shape, but other axes.
    grads = {'l_proj': {'weight': jnp.sin(jnp.arange(16.0)).reshape(4, 4)}}
    used, fresh = (
      sage_optax.sage_scale(1.0, preset=layout.TORCH) for _ in range(2)
    )
    used.init(grads)
    axes = [('weight', ((1,), (0,)))]
    for tx in (used, fresh):
      wrapped = sage_optax.with_matrix_axes(tx, axes)
      updates, _ = wrapped.update(grads, wrapped.init(grads), grads)
      # It divides by the norms over fan_in, which is the last axis.
      norms = jnp.linalg.norm(updates['l_proj']['weight'], axis=1)
      np.testing.assert_allclose(norms, norms[0], rtol=1e-5)

  def test_injected(self):
    for matrix_axes in (_RULES, lambda path: _LEAVES[path][1]):
      make = optax.inject_hyperparams(
        sage_optax.sage_hybrid, static_args=('matrix_axes', 'axis')
      )
      self._assert_same(
        make(_LR, matrix_axes=matrix_axes, b1=0.8),
        sage_optax.sage_hybrid(_LR, b1=0.8, matrix_axes=_plain),
      )

  def test_optax_muon_has_the_same_idea(self):
    # Muon's own dimension numbers, beside our layout around it.
    pairs = {
      'query/kernel': ((0,), (1, 2)),
      'out/kernel': ((0, 1), (2,)),
      'proj/weight': ((1,), (0,)),
      'stack/kernel': ((-2,), (-1,)),
    }
    shapes = [(8, 4, 3), (4, 3, 8), (5, 7), (3, 6, 4)]
    rng = np.random.default_rng(0)
    params = {
      path: jnp.asarray(rng.normal(size=shape), jnp.float32)
      for path, shape in zip(pairs, shapes, strict=True)
    }
    grads = [
      jax.tree.map(lambda p, t=t: jnp.sin(9 * p + t), params) for t in range(3)
    ]
    numbers = optax.contrib.MuonDimensionNumbers
    own = optax.contrib.muon(
      _LR,
      muon_weight_dimension_numbers={
        path: numbers(*pair) for path, pair in pairs.items()
      },
    )
    ours = sage_optax.with_matrix_axes(
      optax.contrib.muon(
        _LR,
        muon_weight_dimension_numbers=lambda tree: jax.tree.map(
          lambda _: numbers(-2, -1), tree
        ),
      ),
      pairs.get,
    )
    _assert_close(
      _updates(ours, grads, params)[0],
      _updates(own, grads, params)[0],
      atol=1e-5,
    )

  def test_masked_and_none_leaves(self):
    params = {**_tree(0), 'absent/kernel': None}
    grads = {**_tree(1), 'absent/kernel': None}
    mask = {path: path == 'layers/query/kernel' for path in params}
    tx = optax.masked(sage_optax.sage(_LR, matrix_axes=_RULES), mask)
    updates, _ = tx.update(grads, tx.init(params), params)
    self.assertIsNone(updates['absent/kernel'])
    np.testing.assert_array_equal(
      updates['mixer/kernel'], grads['mixer/kernel']
    )
    plain = sage_optax.sage(_LR, matrix_axes=_plain)
    alone = {'layers/query/kernel': grads['layers/query/kernel']}
    matrices = _matrices(alone)
    expected, _ = plain.update(matrices, plain.init(matrices), matrices)
    _assert_close(
      _LEAVES['layers/query/kernel'][2](updates['layers/query/kernel']),
      expected['layers/query/kernel'],
    )

  def test_vmap(self):
    tx = sage_optax.sage(_LR, matrix_axes=_RULES)
    both = jax.tree.map(lambda *x: jnp.stack(x), _tree(1), _tree(2))
    states = jax.jit(jax.vmap(tx.init))(both)
    got, _ = jax.jit(jax.vmap(tx.update))(both, states, both)
    for i in range(2):
      one = _tree(i + 1)
      expected, _ = jax.jit(tx.update)(one, tx.init(one), one)
      _assert_close(jax.tree.map(lambda x, i=i: x[i], got), expected)

  def test_extra_arguments_and_no_params(self):
    tx = sage_optax.with_matrix_axes(optax.polyak_sgd(), _RULES)
    grads = _tree(1)
    updates, _ = tx.update(grads, tx.init(grads), None, value=0.5)
    total = sum(np.square(g).sum() for g in grads.values())
    _assert_close(
      updates, jax.tree.map(lambda g: -np.minimum(1, 0.5 / total) * g, grads)
    )


class StateTest(parameterized.TestCase):
  """The state is in the layout of the parameters."""

  @parameterized.product(case=cases.CASES, rule=[r for r in _RULES if r[1][0]])
  def test_axes_are_the_parameters_or_reduced(self, case, rule):
    pattern, pair = rule
    shape = _LEAVES[pattern.strip('^$')][0]
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    tx = sage_optax.with_matrix_axes(case.make(2), lambda _: pair)
    # SOAP's bases are squares of a whole side.
    sides = [math.prod(shape[axis] for axis in side) for side in pair]
    others = (1, case.rank, *(sides if case.square else ()))
    for array in jax.tree.leaves(jax.eval_shape(tx.init, leaf)):
      if not array.ndim or array.dtype == jnp.uint32:  # a count, a key
        continue
      self.assertEqual(array.ndim, leaf.ndim)
      for size, own in zip(array.shape, leaf.shape, strict=True):
        self.assertIn(size, (*others, own))

  def test_rank_goes_to_the_first_axis(self):
    # [8 * 3, 4 * 2] keeps 2 numbers per fan_in, 5 per fan_out.
    def init_fn(params):
      return {
        'low': jax.tree.map(lambda p: jnp.zeros((p.shape[0], 2)), params),
        'wide': jax.tree.map(lambda p: jnp.zeros((5, p.shape[1])), params),
        'flat': jax.tree.map(lambda p: jnp.zeros(p.shape[0]), params),
        'other': jnp.zeros((24, 8)),
      }

    seen = []

    def update_fn(updates, state, params=None):
      seen.append(jax.tree.map(jnp.shape, state))
      state = jax.tree.map(
        lambda x: x + jnp.arange(x.size).reshape(x.shape), state
      )
      return updates, state

    tx = optax.GradientTransformation(init_fn, update_fn)
    pairs = {'x': ((2, 0), (3, 1))}
    wrapped = sage_optax.with_matrix_axes(tx, pairs.get)
    params = {'x': jnp.zeros((3, 2, 8, 4))}
    state = wrapped.init(params)
    self.assertEqual(
      jax.tree.map(jnp.shape, state),
      {
        'low': {'x': (3, 1, 8, 2)},
        'wide': {'x': (1, 2, 5, 4)},
        'flat': {'x': (24,)},
        'other': (24, 8),
      },
    )
    _, state = wrapped.update(params, state)
    _, state = wrapped.update(params, state)
    self.assertEqual(
      seen, [jax.tree.map(jnp.shape, init_fn({'x': jnp.zeros((24, 8))}))] * 2
    )
    # Twice 0, 1, 2... in the order of the matrix.
    low = np.transpose(state['low']['x'], (2, 0, 3, 1)).reshape(24, 2)
    np.testing.assert_array_equal(low, 2 * np.arange(48).reshape(24, 2))
    np.testing.assert_array_equal(state['other'].ravel(), 2 * np.arange(192))

  def test_state_specs(self):
    params = jax.eval_shape(lambda: _tree(0))
    specs = jax.tree.map(lambda p: jax.P(*'abcd'[: p.ndim]), params)
    tx = sage_optax.sage(_LR, matrix_axes=_RULES)
    found = sage_optax.sharding.state_specs(tx, params, specs)
    matrix = found.inner_states['matrix'].inner_state[0]
    vector = found.inner_states['vector'].inner_state[0]
    head = found.inner_states['head'].inner_state[0]
    self.assertEqual(matrix.mu['layers/out/kernel'], jax.P(*'abcd'))
    # SAGE's statistic has averaged fan_out away.
    self.assertEqual(
      matrix.abs_mean['layers/query/kernel'], jax.P('a', 'b', None, None)
    )
    self.assertEqual(
      matrix.abs_mean['layers/out/kernel'], jax.P('a', 'b', 'c', None)
    )
    self.assertEqual(
      matrix.abs_mean['mixer/kernel'], jax.P(None, 'b', 'c', 'd')
    )
    self.assertEqual(vector.abs_mean['layers/query/bias'], jax.P(*'abc'))
    self.assertEqual(head.abs_mean['lm_head/kernel'], jax.P(None, 'b'))
    self.assertEqual(found.inner_states['head'].inner_state[0].count, jax.P())


# Heads, head_dim (the inner of two merged axes), both; once with a rank.
_SHARDED = tuple(
  (case, spec)
  for case, spec in itertools.product(
    cases.CASES, [(None, 'a', None), ('b', None, 'a'), (None, 'b', 'a')]
  )
  if case.name == 'sage_dense'
  or (case.method == 'galore' and spec == (None, 'b', 'a'))
)


class ShardedTest(parameterized.TestCase):
  @parameterized.product(
    case_and_spec=_SHARDED,
    explicit=[False, True],
  )
  def test_mesh_changes_nothing(self, case_and_spec, explicit):
    case, spec = case_and_spec
    types = jax.sharding.AxisType
    axis_type = types.Explicit if explicit else types.Auto
    mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(axis_type,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.P(*spec))
    rng = np.random.default_rng(0)
    grads = [
      jnp.asarray(rng.standard_t(3, (6, 4, 8)), jnp.float32) for _ in range(3)
    ]
    tx = sage_optax.with_matrix_axes(case.make(2), lambda _: ((0,), (1, 2)))
    expected, _ = _updates(tx, grads, grads[0])
    with jax.set_mesh(mesh):
      sharded = [jax.device_put(grad, sharding) for grad in grads]
      shardings = jax.tree.map(
        lambda s: jax.sharding.NamedSharding(mesh, s),
        sage_optax.sharding.state_specs(tx, sharded[0], sharding.spec),
      )
      if explicit:
        state, update = tx.init(sharded[0]), jax.jit(tx.update)
      else:
        state = jax.jit(tx.init, out_shardings=shardings)(sharded[0])
        update = jax.jit(tx.update, out_shardings=(sharding, shardings))
      for grad, ref in zip(sharded, expected, strict=True):
        got, state = update(grad, state, grad)
        np.testing.assert_allclose(got, ref, rtol=1e-5, atol=1e-5)
        self.assertTrue(got.sharding.is_equivalent_to(sharding, 3))
        for leaf, wanted in zip(
          jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
        ):
          self.assertTrue(leaf.sharding.is_equivalent_to(wanted, leaf.ndim))

  @parameterized.parameters('sage', 'galore')
  def test_recipe_in_a_scan_under_explicit_sharding(self, name):
    shapes = {
      'query': {'kernel': (2, 8, 4, 6), 'bias': (2, 4, 6)},
      'out': {'kernel': (2, 4, 6, 8), 'bias': (2, 8)},
    }
    specs = {
      'query': {'kernel': jax.P(None, 'b', 'a'), 'bias': jax.P(None, 'a')},
      'out': {'kernel': jax.P(None, 'a', None, 'b'), 'bias': jax.P(None, 'b')},
    }
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
      shapes,
      is_leaf=lambda x: isinstance(x, tuple),
    )
    rank = {'rank': 3} if name == 'galore' else {}
    tx = sage_optax.recipe(
      name, _LR, matrix_axes=layout.FLAX_ATTENTION, matrix=rank
    )

    @jax.jit
    def run(params):
      def step(carry, _):
        grads = jax.tree.map(jnp.sin, carry[0])
        updates, state = tx.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

      # A scan refuses a state whose sharding changes.
      return jax.lax.scan(step, (params, tx.init(params)), length=3)[0]

    expected, _ = run(params)
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=explicit)
    with jax.set_mesh(mesh):
      shardings = jax.tree.map(
        lambda spec: jax.sharding.NamedSharding(mesh, spec), specs
      )
      got, state = run(jax.device_put(params, shardings))
      wanted = sage_optax.sharding.state_specs(tx, params, specs)
      for leaf, spec in zip(
        jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
      ):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        self.assertTrue(leaf.sharding.is_equivalent_to(sharding, leaf.ndim))
    _assert_close(got, expected, atol=1e-6)


class ExplainTest(parameterized.TestCase):
  @parameterized.named_parameters(*_NAMES)
  def test_rows_are_those_of_the_matrices(self, name):
    params = _tree(0)
    explanation = sage_optax.explain(name, params, matrix_axes=_RULES)
    plain = sage_optax.explain(name, _matrices(params), matrix_axes=_plain)
    for ours, theirs in zip(explanation.rows, plain.rows, strict=True):
      self.assertEqual(ours.shape, params[ours.path].shape)
      self.assertEqual(
        (ours.path, ours.role, ours.units, ours.state_bytes),
        (theirs.path, theirs.role, theirs.units, theirs.state_bytes),
      )
    self.assertEqual(explanation.totals, plain.totals)
    state = sage_optax.recipe(name, _LR, matrix_axes=_RULES).init(params)
    self.assertEqual(
      explanation.totals['all'].state_bytes,
      sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    )

  def test_units(self):
    rows = sage_optax.explain('lion', _tree(0), matrix_axes=_RULES).rows
    units = {row.path: row.units for row in rows}
    self.assertEqual(units['mixer/kernel'], '5 of 6x4')
    self.assertEqual(units['layers/query/bias'], '2 of 12')
    self.assertEqual(units['proj/weight'], '1 of 7x5')


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    (((0,), (0,)), r'a/kernel \(4, 3\) must name different axes of its 2'),
    (((0,), (-2,)), 'must name different axes'),
    (((0, 0), (1,)), 'must name different axes'),
    (((0,), (2,)), 'must name different axes'),
    (((-3,), (1,)), 'must name different axes'),
    (((), ()), r'at least one, got \(\(\), \(\)\)'),
    ((0, 1), 'a/kernel must be None or a pair'),
    (((0,), (1,), ()), 'a/kernel must be None or a pair'),
    (((0.5,), (1,)), 'a/kernel must be None or a pair'),
    (7, 'a/kernel must be None or a pair'),
  )
  def test_pair_that_does_not_fit(self, pair, message):
    params = {'a': {'kernel': jnp.ones((4, 3))}}
    tx = sage_optax.with_matrix_axes(optax.identity(), lambda _: pair)
    with self.assertRaisesRegex(ValueError, message):
      tx.init(params)
    with self.assertRaisesRegex(ValueError, message):
      sage_optax.explain('lion', params, matrix_axes=lambda _: pair)

  @parameterized.parameters(
    (['kernel'], r'\(pattern, \(fan_in, fan_out\)\) pairs in a list'),
    ({'kernel': ((0,), (1,))}, r'\(pattern, \(fan_in, fan_out\)\) pairs'),
    ([('*', ((0,), (1,)))], 'is not a regular expression'),
    ([(('embed', 'heads'), ((0,), (1,)))], 'is not a regular expression'),
  )
  def test_malformed_rules(self, rules, message):
    with self.assertRaisesRegex(ValueError, message):
      sage_optax.sage(_LR, matrix_axes=rules)

  def test_rules_that_disagree(self):
    params = {'a': {'kernel': jnp.ones((4, 3))}}
    rules = [('kernel', ((0,), (1,))), ('^a/', ((1,), (0,)))]
    with self.assertRaisesRegex(ValueError, 'disagree about a/kernel.*narrow'):
      sage_optax.sage(_LR, matrix_axes=rules).init(params)
    rules = [('kernel', ((1,), (0,))), ('^a/', ((1,), (0,)))]
    sage_optax.sage(_LR, matrix_axes=rules).init(params)

  def test_vectors_have_no_fan_in(self):
    params = {'query': {'bias': jnp.ones((4, 3))}}
    rules = [('query/', ((0,), (1,)))]
    for call in (
      lambda: sage_optax.lion(_LR, matrix_axes=rules).init(params),
      lambda: sage_optax.explain('lion', params, matrix_axes=rules),
    ):
      with self.assertRaisesRegex(
        ValueError, r'query/bias has the role vector, .* \(\(\), axes\)'
      ):
        call()


class LibrariesTest(parameterized.TestCase):
  """Real modules with SAGE, whose statistic distinguishes the axes."""

  def _assert_units(self, params, matrix_axes, units):
    rows = sage_optax.explain('sage', params, matrix_axes=matrix_axes).rows
    self.assertEqual({row.path: row.units for row in rows}, units)
    make = functools.partial(sage_optax.sage, _LR, weight_decay=0.1)
    tx, plain = make(matrix_axes=matrix_axes), make(matrix_axes=_plain)
    axes_of = layout.axes_function(matrix_axes)
    paths = [row.path for row in rows]

    def matrices(tree):
      found = {}
      for path, leaf in zip(paths, jax.tree.leaves(tree), strict=True):
        shape = layout.matrix_shape(path, leaf.shape, axes_of)
        swapped = axes_of(path) == ((1,), (0,))
        found[path] = leaf.T if swapped else leaf.reshape(shape)
      return found

    grads = jax.tree.map(lambda p: jnp.sin(7 * p + 1), params)
    got, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    params, grads = matrices(params), matrices(grads)
    expected, _ = jax.jit(plain.update)(grads, plain.init(params), params)
    _assert_close(matrices(got), expected)

  def test_linen(self):
    model = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=12)
    params = model.init(jax.random.key(0), jnp.ones((1, 3, 8)))
    kernels = {f'params/{n}/kernel': '1 of 8x12' for n in ('query', 'key')}
    biases = {f'params/{n}/bias': '1 of 12' for n in ('query', 'key', 'value')}
    self._assert_units(
      params,
      layout.FLAX_ATTENTION,
      {
        **kernels,
        **biases,
        'params/value/kernel': '1 of 8x12',
        'params/out/kernel': '1 of 12x8',
        'params/out/bias': '1 of 8',
      },
    )

  def test_nnx(self):
    model = nnx.MultiHeadAttention(
      num_heads=4,
      in_features=8,
      qkv_features=12,
      use_bias=False,
      rngs=nnx.Rngs(0),
    )
    params = nnx.state(model, nnx.Param)
    names = ('query', 'key', 'value')
    units = {f'{n}/kernel': '1 of 8x12' for n in names}
    units['out/kernel'] = '1 of 12x8'
    self._assert_units(params, layout.FLAX_ATTENTION, units)
    # In NNX's own training step too.
    optimizer = nnx.Optimizer(
      model,
      sage_optax.sage(_LR, matrix_axes=layout.FLAX_ATTENTION),
      wrt=nnx.Param,
    )
    before = model.query.kernel[...]

    @nnx.jit
    def step(model, optimizer):
      optimizer.update(model, jax.tree.map(jnp.cos, nnx.state(model)))

    step(model, optimizer)
    self.assertGreater(np.abs(model.query.kernel[...] - before).min(), 0)

  def test_nnx_stacked(self):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def layers(rngs):
      return nnx.MultiHeadAttention(
        num_heads=4, in_features=8, qkv_features=12, rngs=rngs
      )

    params = nnx.to_pure_dict(nnx.state(layers(nnx.Rngs(0)), nnx.Param))
    rows = sage_optax.explain(
      'sage', params, matrix_axes=layout.FLAX_ATTENTION
    ).rows
    units = {row.path: row.units for row in rows}
    self.assertEqual(units['query/kernel'], '3 of 8x12')
    self.assertEqual(units['out/kernel'], '3 of 12x8')
    self.assertEqual(units['value/bias'], '3 of 12')
    self.assertEqual(units['out/bias'], '3 of 8')

  def test_haiku_needs_nothing(self):
    model = hk.transform(
      lambda x: hk.MultiHeadAttention(
        4, 3, w_init=hk.initializers.RandomNormal(), model_size=8
      )(x, x, x)
    )
    params = model.init(jax.random.key(0), jnp.ones((1, 3, 8)))
    rows = sage_optax.explain('sage', params).rows
    units = {row.path.split('/', 1)[1]: row.units for row in rows}
    self.assertEqual(units['query/w'], '1 of 8x12')
    self.assertEqual(units['linear/w'], '1 of 12x8')
    self.assertEqual(units['query/b'], '1 of 12')

  def test_equinox(self):
    attention = eqx.nn.MultiheadAttention(
      4, 8, qk_size=3, vo_size=2, key=jax.random.key(0)
    )
    params = {
      'attention': eqx.filter(attention, eqx.is_inexact_array),
      'linear': eqx.nn.Linear(5, 7, key=jax.random.key(1)),
    }
    self._assert_units(
      params,
      [(r'(?:proj|linear)/weight$', ((1,), (0,)))],
      {
        'attention/query_proj/weight': '1 of 8x12',
        'attention/key_proj/weight': '1 of 8x12',
        'attention/value_proj/weight': '1 of 8x8',
        'attention/output_proj/weight': '1 of 8x8',
        'linear/weight': '1 of 5x7',
        'linear/bias': '1 of 7',
      },
    )
