"""Tests of train.checkpoint."""

import functools
import json
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train import checkpoint, errors
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
  chex.assert_trees_all_equal(again.restore(abstract), wanted[6])
  again.close()


def test_restores_to_another_mesh(tmp_path):
  state = _state(_mesh((1, 2)))
  checkpoints = _open(tmp_path)
  checkpoints.save(state, 3)
  other = _abstract(_state(_mesh((2, 4))))
  restored = checkpoints.restore(other)
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
    other.restore(_abstract(state))
  other.close()


def test_damaged_checkpoint_is_one_line_that_says_what_to_do(tmp_path):
  state = _state(_mesh((1, 1)))
  checkpoints = _open(tmp_path)
  checkpoints.save(state, 3)
  checkpoints.wait()
  metadata = tmp_path / '3' / 'state' / '_METADATA'
  os.truncate(metadata, metadata.stat().st_size // 2)
  with pytest.raises(errors.UserError, match='remove that directory') as info:
    checkpoints.restore(_abstract(state))
  assert '\n' not in str(info.value)
  checkpoints.close()


def test_workdir_of_another_run(tmp_path):
  workdir = tmp_path / 'run'
  checkpoint.check_workdir(workdir, _RUN)
  assert not workdir.exists()
  workdir.mkdir()
  checkpoint.claim_workdir(workdir, _RUN, {})
  assert [p.name for p in workdir.iterdir()] == [checkpoint.RUN_FILE]
  checkpoint.check_workdir(workdir, _RUN)
  for other, message in (
    (_RUN | {'model.hidden_size': 9}, r'model\.hidden_size is 8, now it is 9'),
    (_RUN | {'new': 1}, 'new is not set, now it is 1'),
    ({**_RUN, 'mesh': None}, r'mesh is \[1, 2\], now it is not set'),
    (
      {k: v for k, v in _RUN.items() if k != 'optimizer.recipe'},
      r"optimizer\.recipe is 'sage', now it is not set",
    ),
  ):
    with pytest.raises(errors.UserError, match=message):
      checkpoint.check_workdir(workdir, other)
  early = {k: v for k, v in _RUN.items() if k != 'mesh'}
  checkpoint.check_workdir(workdir, early, unknown=('mesh',))
  checkpoint.check_workdir(workdir, _RUN | {'option': None})
  (workdir / checkpoint.RUN_FILE).write_text(json.dumps(_RUN)[:-1])
  with pytest.raises(errors.UserError, match='not readable'):
    checkpoint.check_workdir(workdir, _RUN)


def test_warns_if_sums_are_rounded_otherwise_than_when_the_run_began(tmp_path):
  def claim(**rounding):
    return checkpoint.claim_workdir(tmp_path, _RUN, rounding)

  assert claim(jax='1', remat='full') is None
  # Nothing was computed yet, so the run begins here.
  assert claim(jax='2', remat='none') is None
  (tmp_path / checkpoint.DIRECTORY / '10').mkdir(parents=True)
  assert claim(jax='2', remat='none') is None
  for _ in range(2):  # What the run began with stays written down.
    line = claim(jax='3', remat='none')
    assert "jax was '2' and is '3'" in line
    assert 'remat' not in line
    assert 'rounding' in line
  assert claim(jax='2', remat='none') is None
