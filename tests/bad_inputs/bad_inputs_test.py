"""Every bad input gets one line and status 2, and no file changes."""

import contextlib
import json
import os
import pathlib
import re
import shutil

import pytest

from tests.bad_inputs import rows
from tests.support import corpora, runs
from train import config as config_lib
from train import errors, inputs, main, prepare, workdir
from train.plan import __main__ as plan
from train.results import report, run_log

_RUN = {'model.hidden_size': 32}
_RAW = re.compile(r'Traceback|<bound method|<function| object at 0x')
_ROWS = rows.all_rows()
_CLI = [row for row in _ROWS if row.cli]
_EACH_TIME = 24  # Of the rows of the command line one in so many runs always.


@pytest.fixture(scope='session')
def good(tmp_path_factory):
  """Prepared data, a run's directory and texts, all of them good."""
  root = tmp_path_factory.mktemp('good')
  runs.write_data(root / 'data')
  (root / 'texts').mkdir()
  corpora.bpe(root / 'texts' / 'tokenizer.json')
  lines = corpora.lines(corpora.records(30))
  (root / 'texts' / 'a.jsonl').write_bytes(lines)
  with workdir.hold(root / 'run'):
    workdir.claim(root / 'run', _RUN, {})
  (root / 'run' / 'checkpoints').mkdir()
  record = {'step': 1, 'tokens': 8, 'loss': 2.0, 'timing': {'seconds': 1.0}}
  (root / 'run' / 'metrics.jsonl').write_text(json.dumps(record) + '\n')
  return root


def _listing(root):
  """Every path below a directory, what it is and what it holds."""
  found = {}
  for folder, directories, names in os.walk(root):
    for name in (*directories, *names):
      path = pathlib.Path(folder, name)
      stat = path.lstat()
      content = path.read_bytes() if path.is_file() else None
      if path.is_symlink():
        content = os.readlink(path)
      # Only says which files were found good, and the run that looked.
      if name not in ('verified.json', workdir.LOCK):
        found[str(path.relative_to(root))] = stat.st_mode, content
  return found


def _arguments(row, root):
  args = [arg.replace('{root}', str(root)) for arg in row.args]
  if row.command == 'prepare':
    return [
      f'--input={root}/texts/a.*',
      f'--tokenizer={root}/texts/tokenizer.json',
      f'--output={root}/out',
      '--workers=0',
      *args,
    ]
  if row.command == 'plan':
    return [f'--config={runs.CONFIG}', '--topology=cpu:1', *args]
  overrides = (f'data.path={root}/data', f'workdir={root}/run')
  file = root / 'config.py'
  return [
    f'--config={file if file.exists() else runs.CONFIG}',
    *(f'--config.{o}' for o in overrides),
    *args,
  ]


def _run(row, root):
  """Runs a command in this process, as far as the row needs."""
  if row.command == 'prepare':
    return prepare.main(_arguments(row, root))
  if row.command == 'plan':
    return plan.main(_arguments(row, root))
  if row.command == 'train':
    return main.main(['main', *_arguments(row, root)])
  if row.command == 'data':
    options = (f'data.path={root}/data', 'train.platform=cpu')
    config = config_lib.load(str(runs.CONFIG), *options)
    opened = inputs.open_inputs(config, lambda: False, print)
    opened.train.read(0, 10**6)
    return 0
  path = root / 'run'
  workdir.check(path, _RUN)
  if (path / report.RESULTS).exists():
    report.complete(path)
  with workdir.hold(path):
    workdir.claim(path, _RUN, {})
    run_log.JsonLines(path / run_log.FILE, 1).close()
  return 0


def _check(row, status, out, err):
  assert status == 2, out + err
  assert not _RAW.search(out + err)
  line = [x for x in err.splitlines() if not x.startswith('Skipped ')]
  assert len(line) == 1, err
  assert line[0].startswith('error: ')
  assert len(line[0]) < 2000
  assert row.fragment in line[0], line[0]


@pytest.mark.parametrize(
  'row', [row for row in _ROWS if row.in_process], ids=lambda row: row.name
)
def test_in_process(row, good, tmp_path, capsys, monkeypatch):
  root = tmp_path / 'root'
  shutil.copytree(good, root)
  row.spoil(root)
  monkeypatch.chdir(root)
  before = _listing(root)
  status = None
  try:
    with contextlib.suppress(SystemExit):
      status = 2
      status = _run(row, root)
    out, err = capsys.readouterr()
  except errors.UserError as error:
    out, err = '', f'error: {error}'
  _check(row, status, out, err)
  assert _listing(root) == before


@pytest.mark.parametrize(
  'row',
  [
    pytest.param(
      row,
      marks=[]
      if i % _EACH_TIME == 0 and row.in_process
      else [pytest.mark.nightly],
    )
    for i, row in enumerate(_CLI)
  ],
  ids=lambda row: row.name,
)
def test_command_line(row, good, tmp_path):
  root = tmp_path / 'root'
  shutil.copytree(good, root)
  row.spoil(root)
  if row.command != 'workdir':
    shutil.rmtree(root / 'run')  # It is of no real configuration.
  before = _listing(root)
  commands = {'prepare': 'train.prepare', 'plan': 'train.plan'}
  module = commands.get(row.command, 'train.main')
  process = runs.start(_arguments(row, root), module=module)
  (status,), (out,), (err,) = runs.ends([process], timeout=120)
  _check(row, status, out, err)
  assert _listing(root) == before


def test_there_are_enough_rows_and_no_two_have_one_name():
  names = [row.name for row in _ROWS]
  assert len(names) >= 400
  assert len(set(names)) == len(names)
