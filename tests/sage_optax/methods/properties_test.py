"""What has to hold for any gradients, tried on drawn ones."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st

import sage_optax
from tests.support import cases

_ROWS = tuple((case.name, case) for case in cases.CASES)
_EQUIVARIANT = tuple((c.name, c) for c in cases.CASES if c.equivariant)
# Shapes are few, for each is compiled; what is drawn are the numbers.
_SHAPES = ((6, 4), (4, 6), (5, 5))
_tried = hypothesis.settings(
  max_examples=10, deadline=None, derandomize=True, database=None
)


@st.composite
def _gradients(draw, shape, steps):
  """[steps, *shape]: heavy-tailed, slices of very different size, zeros."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  grads = rng.standard_t(draw(st.sampled_from([2, 5, 100])), (steps, *shape))
  spread = draw(st.integers(0, 3))
  for axis in range(1, grads.ndim):
    sizes = [1] * grads.ndim
    sizes[axis] = grads.shape[axis]
    grads *= 10.0 ** rng.uniform(-spread, spread, sizes)
  return grads * 10.0 ** draw(st.integers(-3, 3))


@functools.cache  # compiled once per shape, not once per example
def _runner(make, **kwargs):
  tx = make(**kwargs)

  def step(state, grad):
    update, state = tx.update(grad, state)
    return state, update

  return jax.jit(lambda grads: jax.lax.scan(step, tx.init(grads[0]), grads)[1])


def _run(grads, make, **kwargs):
  return np.asarray(_runner(make, **kwargs)(grads))


@pytest.mark.nightly
class AnyMethodTest(parameterized.TestCase):
  @parameterized.named_parameters(*_EQUIVARIANT)
  def test_permuting_an_axis_permutes_the_updates(self, case):
    @_tried
    @hypothesis.given(st.data())
    def check(data):
      shape = data.draw(st.sampled_from(_SHAPES))
      grads = data.draw(_gradients(shape, case.steps))
      axis = data.draw(st.sampled_from([-2, -1]))
      order = data.draw(st.permutations(range(shape[axis])))
      with jax.enable_x64(True):
        permuted = np.take(grads, order, axis)
        permuted = _run(jnp.asarray(permuted), case.make, core_ndim=2)
        expected = _run(jnp.asarray(grads), case.make, core_ndim=2)
        expected = np.take(expected, order, axis)
      np.testing.assert_allclose(
        permuted, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()
      )

    check()

  @parameterized.named_parameters(*_ROWS)
  def test_stacked_equals_per_layer(self, case):
    if not case.equivariant:
      self.skipTest('draws for each layer what is its own')

    @_tried
    @hypothesis.given(st.data())
    def check(data):
      shape = data.draw(st.sampled_from(_SHAPES))
      layers = [data.draw(_gradients(shape, case.steps)) for _ in range(3)]
      with jax.enable_x64(True):
        stacked = jnp.asarray(np.stack(layers, 1))
        stacked = _run(stacked, case.make, core_ndim=2)
        for i, layer in enumerate(layers):
          alone = _run(jnp.asarray(layer), case.make, core_ndim=2)
          np.testing.assert_allclose(
            stacked[:, i], alone, rtol=1e-9, atol=1e-9 * np.abs(alone).max()
          )

    check()

  @parameterized.named_parameters(*_ROWS)
  def test_dtype_of_the_gradients_is_kept(self, case):
    @_tried
    @hypothesis.given(
      st.data(), st.sampled_from(['bfloat16', 'float16', 'float32'])
    )
    def check(data, dtype):
      shape = data.draw(st.sampled_from(_SHAPES))
      grads = jnp.asarray(data.draw(_gradients(shape, 2)), dtype)
      updates = _run(grads, case.make, core_ndim=2)
      self.assertEqual(updates.dtype, dtype)

    check()


class SageTest(parameterized.TestCase):
  @parameterized.parameters(-2, -1)
  def test_damper_is_bounded(self, axis):
    @_tried
    @hypothesis.given(st.data())
    def check(data):
      shape = data.draw(st.sampled_from(_SHAPES))
      grads = jnp.asarray(data.draw(_gradients(shape, 8)), jnp.float32)
      damper = np.abs(
        _run(grads, sage_optax.scale_by_sage, axis=axis, eps=1e-30)
      )
      features = shape[-1 if axis == -2 else -2]
      self.assertLessEqual(damper.max(), 1.0)
      # The largest of k numbers is at most sqrt(k) times their rms.
      self.assertGreaterEqual(damper.min(), (1 - 1e-5) / features**0.5)

    check()

  @parameterized.parameters(-2, -1)
  def test_scale_of_the_gradients_does_not_matter(self, axis):
    @_tried
    @hypothesis.given(st.data(), st.integers(-20, 20))
    def check(data, exponent):
      shape = data.draw(st.sampled_from(_SHAPES))
      grads = jnp.asarray(data.draw(_gradients(shape, 8)), jnp.float32)
      kwargs = {'axis': axis, 'eps': 1e-30}
      np.testing.assert_allclose(
        _run(grads, sage_optax.scale_by_sage, **kwargs),
        _run(grads * 2.0**exponent, sage_optax.scale_by_sage, **kwargs),
        rtol=1e-5,
      )

    check()


class SinkgdTest(parameterized.TestCase):
  @_tried
  @hypothesis.given(st.data(), st.booleans())
  def test_norms_are_fixed(self, data, unit_norm):
    shape = data.draw(st.sampled_from(_SHAPES))
    grads = jnp.asarray(data.draw(_gradients(shape, 1)), jnp.float32)
    make = sage_optax.scale_by_sinkgd
    ours = _run(grads, make, unit_norm=unit_norm, eps=1e-30)[0]
    fan_in, fan_out = shape
    # Over fan_out it is exact, being the last to be done.
    np.testing.assert_allclose(
      np.linalg.norm(ours, axis=-1), 1.0 if unit_norm else fan_out**0.5, 1e-5
    )
    # Hence the whole matrix has this norm, and its fan_in slices on average.
    np.testing.assert_allclose(
      np.mean(np.linalg.norm(ours, axis=-2) ** 2),
      fan_in / fan_out if unit_norm else fan_in,
      rtol=1e-5,
    )
