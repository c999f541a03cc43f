"""Tests of train.checkpoint."""

import functools
import os
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train import checkpoint, errors
from train import state as train_state
from train.state import TrainState

_RUN = {'model.hidden_size': 8, 'optimizer.recipe': 'sage', 'mesh': (1, 2)}


def _mesh(shape):
  devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
  return Mesh(devices, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


def _state(mesh, size=64):
  params = {
    'w': jax.random.normal(jax.random.key(0), (size, 8)),
    'b': jnp.arange(8.0),
  }
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(
      optax.adam(1e-3, mu_dtype=jnp.bfloat16), {'w': True, 'b': False}
    ),
  )
  state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

  def place(leaf):
    spec = P('fsdp') if leaf.ndim == 2 else P()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  return jax.tree.map(place, state)


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


@functools.partial(jax.jit, donate_argnums=0)
def _advance(state):
  moved = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)
  return moved._replace(step=state.step + 1)


def _open(path, run=_RUN, **kwargs):
  return checkpoint.Checkpoints(pathlib.Path(path), run, **kwargs)


@pytest.mark.parametrize('asynchronous', [True, False])
def test_donated_states_are_saved_as_they_were(tmp_path, asynchronous):
  # 8 MB, so that a write is still under way when the buffers are donated.
  state = _state(_mesh((1, 2)), size=2**18)
  checkpoints = _open(tmp_path, keep=2, asynchronous=asynchronous)
  wanted = {}
  for step in range(1, 7):
    state = _advance(state)
    if step % 2 == 0:
      wanted[step] = jax.tree.map(np.array, state)
      checkpoints.save(state, step)
      checkpoints.save(state, step)  # again: no error, no second copy
  checkpoints.wait()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['4', '6']
  abstract = _abstract(state)
  for step in (4, 6):
    restored = checkpoints.restore(abstract, step)
    chex.assert_trees_all_equal(restored, wanted[step])
    chex.assert_trees_all_equal_dtypes(restored, state)
  checkpoints.close()

  again = _open(tmp_path)
  assert again.latest == 6
  chex.assert_trees_all_equal(again.restore(abstract, 6), wanted[6])
  again.close()


def test_restores_to_another_mesh(tmp_path):
  state = _state(_mesh((1, 2)))
  checkpoints = _open(tmp_path)
  checkpoints.save(state, 3)
  other = _abstract(_state(_mesh((2, 4))))
  restored = checkpoints.restore(other, 3)
  checkpoints.close()
  chex.assert_trees_all_equal(
    jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, state)
  )
  assert restored.params['w'].sharding == other.params['w'].sharding


def test_unfinished_checkpoints_are_ignored_and_removed(tmp_path):
  checkpoints = _open(tmp_path)
  checkpoints.save(_state(_mesh((1, 1))), 3)
  checkpoints.close()
  unfinished = (
    tmp_path / '6.orbax-checkpoint-tmp' / 'state.orbax-checkpoint-tmp'
  )
  unfinished.mkdir(parents=True)
  (unfinished / '_METADATA').write_text('{')
  again = _open(tmp_path)
  assert again.latest == 3
  assert [p.name for p in tmp_path.iterdir()] == ['3']
  again.close()


def test_another_run_is_refused_by_the_field(tmp_path):
  state = _state(_mesh((1, 1)))
  checkpoints = _open(tmp_path)
  checkpoints.save(state, 3)
  checkpoints.close()
  other = _open(tmp_path, _RUN | {'optimizer.recipe': 'lion'})
  with pytest.raises(
    errors.UserError, match=r"optimizer\.recipe is 'sage', now it is 'lion'"
  ):
    other.restore(_abstract(state), 3)
  other.close()


def _three(path):
  """Saves steps 1 to 3; returns the last state and the checkpoints."""
  # Large enough that most of the bytes on disk are numbers.
  state = _state(_mesh((1, 1)), size=2**12)
  checkpoints = _open(path / 'checkpoints')
  for step in (1, 2, 3):
    state = _advance(state)
    checkpoints.save(state, step)
  checkpoints.wait()
  return state, checkpoints


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def _largest(path):
  files = [p for p in path.rglob('*') if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def _truncate(path):
  metadata = path / 'state' / '_METADATA'
  os.truncate(metadata, metadata.stat().st_size // 2)


def _exchange(path):
  shutil.rmtree(path)
  shutil.copytree(path.with_name('1'), path)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda path: _flip(_largest(path)), 'is damaged|cannot be read'),
    (lambda path: _flip(path / 'run' / 'metadata'), 'description'),
    (_truncate, 'cannot be read'),
    (lambda path: shutil.rmtree(path / 'run'), 'description'),
    (_exchange, 'holds step 1'),
  ],
)
def test_damaged_checkpoint_is_set_aside_for_an_older_one(
  tmp_path, damage, message
):
  state, checkpoints = _three(tmp_path)
  path = tmp_path / 'checkpoints' / '3'
  damage(path)
  abstract = _abstract(state)
  with pytest.raises(checkpoint.Damaged, match=message) as info:
    checkpoints.restore(abstract, 3)
  assert '\n' not in str(info.value)
  said = []
  with pytest.raises(errors.UserError, match='to resume from step 2'):
    checkpoints.restore_newest(abstract, said.append, strict=True)
  assert path.exists()
  assert not said
  step, restored = checkpoints.restore_newest(abstract, said.append)
  assert step == checkpoints.latest == int(restored.params['b'][0]) == 2
  assert len(said) == 1
  assert str(path) in said[0]
  assert str(tmp_path / 'damaged') in said[0]
  assert not path.exists()
  assert (tmp_path / 'damaged' / '3').exists()
  checkpoints.save(state, 3)  # The place is free.
  restored = checkpoints.restore(abstract, 3)
  chex.assert_trees_all_equal(restored, state)
  checkpoints.close()


def test_without_an_intact_checkpoint_a_run_does_not_begin_again(tmp_path):
  state, checkpoints = _three(tmp_path)
  for step in '123':
    _flip(tmp_path / 'checkpoints' / step / 'run' / 'metadata')
  with pytest.raises(errors.UserError, match='no other is intact'):
    checkpoints.restore_newest(_abstract(state), print)
  assert checkpoints.latest == 3
  checkpoints.close()


def test_checksums_see_every_bit_and_no_mesh():
  state = _state(_mesh((1, 2)))
  sums = train_state.checksums(state)
  assert sums == train_state.checksums(_state(_mesh((2, 4))))
  assert len(sums) == len(jax.tree.leaves(state))
  for dtype in ('float32', 'bfloat16', 'int8', 'uint32'):
    x = jnp.arange(24).reshape(4, 6).astype(dtype)
    seen = {train_state.checksums([x])['0']}
    data = np.asarray(x)
    for bit in range(0, data.nbytes * 8, 5):
      raw = bytearray(data.tobytes())
      raw[bit // 8] ^= 1 << bit % 8
      flipped = np.frombuffer(bytes(raw), data.dtype).reshape(data.shape)
      seen.add(train_state.checksums([jnp.asarray(flipped)])['0'])
    assert len(seen) == 1 + len(range(0, data.nbytes * 8, 5)), dtype
  x = jnp.arange(24.0).reshape(4, 6)
  assert train_state.checksums([x]) != train_state.checksums([x[::-1]])
