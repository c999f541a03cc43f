"""Tests of train.results.run_log."""

import json

from tensorboardX.proto import event_pb2

from train.results import run_log


def _record(step, **values):
  timing = {'seconds': float(step)}
  return {'step': step, 'tokens': 8 * step, **values, 'timing': timing}


def _write(path, restored_step, *records):
  lines = run_log.JsonLines(path, restored_step)
  for record in records:
    lines.write(record)
  lines.close()
  return lines


def test_cut_back_to_the_restored_step(tmp_path):
  path = tmp_path / run_log.FILE
  records = [_record(step, loss=1 / step) for step in range(1, 9)]
  _write(path, 0, *records)
  with path.open('a') as file:
    file.write('{"step": 9, "lo')  # killed in the middle of a line
  lines = _write(path, 5, _record(6, loss=6.0))
  assert list(run_log.read(path)) == [*records[:5], _record(6, loss=6.0)]
  assert lines.seconds == 5.0
  assert [p.name for p in tmp_path.iterdir()] == [run_log.FILE]


def test_a_reader_during_the_run_ignores_a_torn_line(tmp_path):
  path = tmp_path / run_log.FILE
  _write(path, 0, _record(1))
  with path.open('a') as file:
    file.write('{"step"')
  assert list(run_log.read(path)) == [_record(1)]
  assert list(run_log.read(tmp_path / 'none')) == []


def test_last_evaluated_step_is_known_after_a_restart(tmp_path):
  path = tmp_path / run_log.FILE
  lines = _write(
    path, 0, _record(2, **{'eval/loss': 1.0}), _record(4, **{'eval/loss': 1.0})
  )
  assert lines.evaluated == 4
  assert _write(path, 3).evaluated == 2
  assert _write(path, 1).evaluated == 0


def test_floats_are_exact_and_the_file_is_strict_json(tmp_path):
  path = tmp_path / run_log.FILE
  _write(path, 0, _record(1, loss=0.1 + 0.2, norm=float('nan')))

  def refuse(constant):
    raise ValueError(constant)

  record = json.loads(path.read_text(), parse_constant=refuse)
  assert record['loss'] == 0.1 + 0.2
  assert record['norm'] == 'nan'


def test_tensorboard_gets_every_number(tmp_path):
  board = run_log.TensorBoard(tmp_path / 'tb', 0)
  board.write(_record(7, loss=2.5, note='text'))
  board.close()
  (path,) = (tmp_path / 'tb').iterdir()
  data, found = path.read_bytes(), {}
  while data:  # length (8 bytes), its checksum (4), the event, its checksum
    size = int.from_bytes(data[:8], 'little')
    event = event_pb2.Event.FromString(data[12 : 12 + size])
    found |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
    data = data[16 + size :]
  assert found == {'tokens': (7, 56), 'loss': (7, 2.5), 'seconds': (7, 7)}


def test_without_a_directory_nothing_is_written(tmp_path):
  board = run_log.TensorBoard(None, 0)
  board.write(_record(1, loss=1.0))
  board.close()
  assert not list(tmp_path.iterdir())
