"""The table of bad inputs.

A row is a name, what to do to good files, a command, a fragment of the line
that must be printed. Each command must end with status 2 and change no file.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from train.config import Config, fields
from train.data import atomic_dir


@dataclasses.dataclass(frozen=True)
class Row:
  """One bad input.

  Attributes:
    name: Says what is wrong.
    spoil: Does that to the directory with `data`, `run`, `texts`.
    command: 'train', 'prepare', 'plan', 'data' or 'workdir'; see the test.
    args: Options of the command; {root} is the directory.
    fragment: Part of the line that is expected.
    cli: Whether the real command line is run, too.
    in_process: Whether this process may run it.
  """

  name: str
  spoil: Callable[[pathlib.Path], Any]
  command: str
  fragment: str
  args: tuple[str, ...] = ()
  cli: bool = False
  in_process: bool = True


_EVERY = 13  # Of these rows one is run by the real command line, too.


def _nothing(_: pathlib.Path) -> None:
  pass


def _set(path: tuple, value: Any) -> Callable[[pathlib.Path], None]:
  """Changes an entry of the manifest, or removes it if it is `del`."""

  def spoil(root):
    file = root / 'data' / 'manifest.json'
    content = json.loads(file.read_text())
    at = content
    for key in path[:-1]:
      at = at[key]
    if value == 'del':
      del at[path[-1]]
    else:
      at[path[-1]] = value
    file.write_text(json.dumps(content))

  return spoil


_SUBSET = ('splits', 'train', 'prose')
_SHARD = (*_SUBSET, 'shards', 0)
_WRONG: dict[tuple, list[Any]] = {
  ('format',): ['del', 0, 2, 99, '1', None, [], 1.5],
  ('dtype',): ['del', '<f2', 'foo', '', '>u2', '<u4', '<i2', 2, None, 'object'],
  ('vocab_size',): ['del', 0, -1, 1e9, 2**40, '290', None, [290], 65537],
  ('eot_id',): ['del', -1, 290, 10**6, 'end', None, 1.5],
  ('tokenizer',): ['del', None, 'tokenizer.json', [], {}],
  ('tokenizer', 'file'): ['del', '../tokenizer.json', '/etc/passwd', 3, ''],
  ('tokenizer', 'fingerprint'): ['del', 3, None, []],
  ('corpus_hash',): ['del', 3, None, [], {}],
  ('settings',): [3, 'x', []],
  ('splits',): ['del', None, [], 'train', 3],
  ('splits', 'train'): [None, [], 'x', 3, {'prose': None}, {'prose': []}],
  _SUBSET: [None, [], 'x', 3, {}],
  (*_SUBSET, 'documents'): ['del', -1, '60', None, 1.5, 10**9],
  (*_SUBSET, 'bytes'): ['del', -1, '9', None, 1, 0, 10**12, 17.5, 12345],
  (*_SUBSET, 'tokens'): ['del', -1, '9', None, 1, 0, 10**12, 1.5],
  (*_SUBSET, 'target_bytes'): [-1, '9', 1, 10**12],
  (*_SUBSET, 'token_bytes'): [-1, '9', None, 1, 10**12, 12345],
  (*_SUBSET, 'shards'): ['del', None, {}, 'x', [], [None], ['x'], [{}]],
  (*_SHARD, 'file'): [
    'del',
    '../data/train-prose-00000.bin',
    '/dev/zero',
    '/etc/passwd',
    '',
    'manifest.json',
    'validation-prose-00000.bin',
    'gone.bin',
    None,
    3,
    'a\u0000b.bin',
  ],
  (*_SHARD, 'tokens'): ['del', -1, '9', None, 1, 0, 10**12, 2**70],
  (*_SHARD, 'sha256'): ['del', '', 'x', 'g' * 64, '0' * 64, None, 3],
}


def _manifests() -> Iterator[Row]:
  for path, values in _WRONG.items():
    for value in values:
      name = f'manifest {".".join(map(str, path))}={value!r}'
      yield Row(name, _set(path, value), 'data', 'train.prepare')
  for text in ('', '{', '[]', 'null', '3', '"x"', '\ufeff{}', '{"a":' * 3000):
    yield Row(
      f'manifest is {text[:12]!r}',
      lambda root, text=text: (root / 'data' / 'manifest.json').write_text(
        text, encoding='utf-8'
      ),
      'data',
      'manifest.json',
      cli=len(text) < 2,
    )


def _replace(name: str, how: str) -> Callable[[pathlib.Path], None]:
  """Puts something else where a file is."""

  def spoil(root):
    path = root / name
    content = b''
    if path.is_dir():
      shutil.rmtree(path)
    elif path.exists():
      content = path.read_bytes()
      path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == 'directory':
      (path / 'theirs').mkdir(parents=True)
    elif how == 'fifo':
      os.mkfifo(path)
    elif how == 'loop':
      path.symlink_to(path)
    elif how == 'device':
      path.symlink_to('/dev/zero')
    elif how == 'truncated':
      path.write_bytes(content[: len(content) // 2])
    elif how == 'longer':
      path.write_bytes(content + b'\0\0')
    elif how == 'flipped':
      middle = len(content) // 2
      path.write_bytes(
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
      )
    elif how == 'garbage':
      path.write_bytes(b'\xff\x00\x9dtheirs\n' * 5)
    elif how == 'json':
      path.write_bytes(b'{"theirs": 1}\n')
    elif how == 'list':
      path.write_bytes(b'[1, 2]\n')
    elif how == 'empty':
      path.write_bytes(b'')
    elif how != 'gone':
      raise ValueError(how)

  return spoil


_DATA_DAMAGE = (
  *('gone', 'directory', 'fifo', 'loop', 'device', 'truncated'),
  *('garbage', 'empty', 'flipped', 'longer', 'list'),
)


def _data() -> Iterator[Row]:
  for name in (
    'train-prose-00000.bin',
    'train-verse-00000.bin',
    'validation-prose-00000.bin',
    'validation-verse-00000.bin',
    'tokenizer.json',
  ):
    for how in _DATA_DAMAGE:
      yield Row(f'{name} {how}', _replace(f'data/{name}', how), 'data', name)
  for how in ('directory', 'fifo', 'loop', 'device', 'garbage'):
    yield Row(
      f'manifest.json {how}',
      _replace('data/manifest.json', how),
      'data',
      'manifest.json',
      cli=how == 'fifo',
    )


_RUN_FILES = {
  'run.json': ('garbage', 'json', 'list', 'empty', 'truncated'),
  'metrics.jsonl': ('garbage', 'json', 'list'),
  'results.json': ('garbage', 'json', 'list', 'empty'),
  'optimizer.txt': (),
  'optimizer.json': (),
  'sample.txt': (),
  'loss.png': (),
  '.lock': ('garbage', 'json', 'list'),
}


def _workdirs() -> Iterator[Row]:
  for name, contents in _RUN_FILES.items():
    for how in (*contents, 'directory', 'fifo', 'loop', 'device'):
      cli = (name, how) in (('run.json', 'empty'), ('loss.png', 'directory'))
      spoil = _replace(f'run/{name}', how)
      yield Row(f'{name} {how}', spoil, 'workdir', name, cli=cli)
  for text in (
    *('{"step": 1}', '{"step": 1, "tokens": 8, "timing": {}}'),
    '{"step": -1, "tokens": 8, "timing": {"seconds": 1}}',
    '{"step": 1, "tokens": "8", "timing": {"seconds": 1}}',
    '{"step": 1, "tokens": 8, "timing": {"seconds": NaN}}',
    '{"step": 1, "tokens": 8, "loss": null, "timing": {"seconds": 1}}',
    '{"step": 1, "tokens": 8, "loss": 1e999, "timing": {"seconds": 1}}',
    '{"step": 1, "loss": 2.0, "timing": {"seconds": 1}}',
  ):

    def record(root, text=text):
      (root / 'run' / 'metrics.jsonl').write_text(f'{text}\n')

    name = f'metrics.jsonl has {text}'
    yield Row(name, record, 'workdir', 'metrics.jsonl')
  long = 'x' * 5000
  for key, value in (
    *(('model.hidden_size', long), ('model.hidden_size', [0] * 5000)),
    *(('model.hidden_size', {long: 1}), (long, 1)),
  ):

    def field(root, key=key, value=value):
      path = root / 'run' / 'run.json'
      content = json.loads(path.read_text())
      content['run'][key] = value
      path.write_text(json.dumps(content))

    name = f'run.json has {key[:20]}, a {type(value).__name__}'
    yield Row(name, field, 'workdir', key[:20])
  for text in ('{"crc": 1}', '{"crc": null}', '{"steps": 60}'):

    def results(root, text=text):
      (root / 'run' / 'results.json').write_text(text)

    yield Row(f'results.json is {text}', results, 'workdir', 'results.json')
  for name in ('checkpoints', 'tensorboard', 'profile', 'damaged'):
    for how in ('garbage', 'empty', 'fifo', 'loop', 'device'):
      cli = (name, how) == ('checkpoints', 'garbage')
      spoil = _replace(f'run/{name}', how)
      yield Row(f'{name} {how}', spoil, 'workdir', name, cli=cli)
  for name in ('optimizer.txt', 'thesis.tex', 'checkpoints/x', 'run.json.bak'):

    def spoil(root, name=name):
      shutil.rmtree(root / 'run')
      (root / 'run' / name).parent.mkdir(parents=True)
      (root / 'run' / name).write_text('theirs')

    cli = name == 'optimizer.txt'
    yield Row(
      f'only {name}', spoil, 'workdir', 'is not the directory of a run', cli=cli
    )
  for how in ('garbage', 'fifo', 'loop', 'device'):
    spoil = _replace('run', how)
    yield Row(f'workdir {how}', spoil, 'workdir', 'working directory')


def _write(name: str, content: bytes) -> Callable[[pathlib.Path], Any]:
  def spoil(root):
    (root / 'texts' / 'a.jsonl').unlink()
    (root / 'texts' / name).write_bytes(content)

  return spoil


def _texts() -> Iterator[Row]:
  suffixes = ('jsonl', 'json', 'jsonl.gz', 'jsonl.zst', 'json.gz', 'json.zst')
  for suffix in suffixes:
    packed = suffix.endswith(('.gz', '.zst'))
    for name, content in (
      ('garbage', b'\xff\x00\x9d' * 50),
      ('empty', b''),
      ('lines without text', b'{"txt": "a"}\n' * 5),
      ('numbers', b'1\n2\n3\n'),
      ('UTF-16', '{"text": "ab"}\n'.encode('utf-16')),
      ('deep', b'[' * 10**5),
    ):
      fragment = 'a.' + suffix if packed and content else ''
      yield Row(
        f'texts/a.{suffix} {name}',
        _write(f'a.{suffix}', content),
        'prepare',
        fragment,
        ('--max_bad_lines=2',),
        cli=suffix == 'jsonl' and name in ('UTF-16', 'numbers'),
      )
  for suffix in ('txt', 'parquet'):
    for name, content in (
      ('UTF-16', 'text\n'.encode('utf-16')),
      ('empty', b''),
    ):
      yield Row(
        f'texts/a.{suffix} {name}',
        _write(f'a.{suffix}', content),
        'prepare',
        '',
      )
  for suffix in ('docx', 'csv', 'zip', 'JSONL', 'bz2', 'pdf'):
    yield Row(
      f'texts/a.{suffix}',
      _write(f'a.{suffix}', b'x'),
      'prepare',
      'unknown type',
    )
  for how in ('gone', 'directory', 'fifo', 'loop'):
    yield Row(
      f'texts {how}', _replace('texts/a.jsonl', how), 'prepare', 'No file'
    )
  for how in _DATA_DAMAGE:
    if how in ('flipped', 'longer'):
      continue
    yield Row(
      f'tokenizer {how}',
      _replace('texts/tokenizer.json', how),
      'prepare',
      'tokenizer.json',
      cli=how == 'garbage',
    )


def _instructions() -> Iterator[Row]:
  user = {'role': 'user', 'content': 'x'}
  for name, messages, fragment in (
    ('no list', 'x', 'not a list'),
    ('an object', user, 'not a list'),
    ('empty', [], 'no message of the assistant'),
    ('no assistant', [user], 'no message of the assistant'),
    ('strings', ['x'], 'message 1 has the role None'),
    ('unknown role', [user, {**user, 'role': 'tool'}], "the role 'tool'"),
    ('no content', [user, {'role': 'assistant'}], 'message 2 has no string'),
    ('number as content', [{**user, 'content': 1}], 'message 1 has no string'),
  ):
    yield Row(
      f'messages {name}',
      _write('a.jsonl', json.dumps({'messages': messages}).encode()),
      'prepare',
      fragment,
      ('--instructions', '--max_bad_lines=0'),
    )
  for record in ({'prompt': 'x'}, {'prompt': 'x', 'completion': None}, {}):
    yield Row(
      f'instructions {record}',
      _write('a.jsonl', json.dumps(record).encode()),
      'prepare',
      '"prompt" and "completion"',
      ('--instructions', '--max_bad_lines=0'),
    )
  for option in ('--instructions', '--validation=a.jsonl'):
    yield Row(
      f'bundled {option}',
      _nothing,
      'prepare',
      option.partition('=')[0],
      ('--input=', '--source=bundled', option),
    )


def _tokenizers() -> Iterator[Row]:
  def change(edit):
    def spoil(root):
      path = root / 'texts' / 'tokenizer.json'
      content = json.loads(path.read_text())
      edit(content)
      path.write_text(json.dumps(content))

    return spoil

  def huge(content):
    content['model']['vocab']['zzz'] = 4 * 10**9

  def large(content):
    content['model']['vocab']['zzz'] = 10**9

  def negative(content):
    content['model']['vocab']['a'] = -5

  def without_pieces(content):
    content['model']['vocab'] = {}
    content['model']['merges'] = []
    content['added_tokens'] = []

  def endless(content):
    content['model']['vocab'].pop('<|endoftext|>')
    content['added_tokens'] = []

  def unknown(content):
    content['model']['type'] = 'Magic'

  def unending(content):
    content['version'] = '[' * 10**5

  def panicking(content):
    content['model']['continuing_subword_prefix'] = 'x' * 17

  for edit in (
    *(huge, large, negative, without_pieces, endless, unknown, unending),
    panicking,
  ):
    yield Row(
      f'tokenizer {edit.__name__}', change(edit), 'prepare', 'tokenizer'
    )


def _options() -> Iterator[Row]:
  for option, fragment in (
    ('--workers=-1', '--workers'),
    ('--workers=1000000', '--workers'),
    ('--workers=x', '--workers'),
    ('--workers=1e3', '--workers'),
    ('--validation_fraction=0', '--validation_fraction'),
    ('--validation_fraction=1', '--validation_fraction'),
    ('--validation_fraction=nan', '--validation_fraction'),
    ('--validation_fraction=-0.5', '--validation_fraction'),
    ('--validation_fraction=1e30', '--validation_fraction'),
    ('--max_bad_lines=-1', '--max_bad_lines'),
    ('--max_bad_lines=x', '--max_bad_lines'),
    ('--validation=nowhere*', 'No file'),
    ('--validation=', 'document'),
    ('--tokenizer=nowhere', 'tokenizer'),
    ('--input=', 'give'),
    ('--input=nowhere/*.jsonl', 'No file'),
    ('--unknown=3', '--unknown'),
    ('--source=web', '--source'),
    ('stray', 'stray'),
    ('--output=texts/a.jsonl', 'a.jsonl'),
    ('--output=texts', 'texts'),
    ('--output=texts/a.jsonl/x', 'a.jsonl'),
    (f'--output={"x" * 300}', 'x' * 50),
    *((f'--output={path}', 'new directory') for path in ('', '.', '..', '/')),
    ('--max_mb=1', '--max_mb needs --source bundled'),
    ('--vocab_size=300', '--vocab_size needs --source bundled'),
    ('--source=bundled', 'not both'),
  ):
    cli = option in ('--workers=1000000', '--unknown=3')
    yield Row(
      f'prepare {option[:40]}',
      _nothing,
      'prepare',
      fragment,
      (option,),
      cli=cli,
    )


def _configuration() -> Iterator[Row]:
  for field in fields.walk(Config()):
    bad: list[str] = []
    if {int, float} & set(field.kinds):
      bad = ['x', 'nan', '1e400', '--', '1_', '[]']
    elif bool in field.kinds:
      bad = ['x', '2', 'maybe']
    for value in bad:
      yield Row(
        f'config.{field.path}={value}',
        _nothing,
        'train',
        field.path.split('.')[-1],
        (f'--config.{field.path}={value}',),
      )


_FILES_OF_CONFIGURATIONS = (
  *('learning_rates = -1', 'learning_rates = None', 'matrix_lr_scales = [1]'),
  *('b2s = None', "b2s = {'sage': 2.0}"),
  *("learning_rates = {'adamw': 10**400}", "learning_rates = {'adamw': '1'}"),
  *(
    'embedding = 3',
    'embedding = None',
    'recipe = {}',
    'eps = print',
    'rank = True',
  ),
)


def _configuration_files() -> Iterator[Row]:
  for line in _FILES_OF_CONFIGURATIONS:

    def spoil(root, line=line):
      (root / 'config.py').write_text(
        'from tests.support import tiny_config\n\ndef get_config():\n'
        '  config = tiny_config.get_config()\n'
        f'  config.optimizer.{line}\n  return config\n'
      )

    name = line.partition(' ')[0]
    yield Row(f'config.py: {line}', spoil, 'train', f'optimizer.{name}')
  for text in ('', 'x', 'def get_config(): return 3', 'raise SystemExit(0)'):

    def replace(root, text=text):
      (root / 'config.py').write_text(text)

    yield Row(f'config.py: {text}', replace, 'train', 'config.py')


def _resume_states() -> Iterator[Row]:
  """Records of an interrupted preparation that it did not write."""
  for text in (
    *('', '[]', 'null', '{}', '{"format": 2}', '{"format": 4}', '[' * 10**5),
    *('{"format": 4, "crc": 0}', '{"format": 4, "crc": "x"}', '\x00\xff'),
  ):

    def spoil(root, text=text):
      partial = root / 'out.partial'
      (partial / 'data').mkdir(parents=True)
      (partial / 'lock').write_text(atomic_dir._MARK)
      (partial / atomic_dir.RESUME_STATE).write_bytes(text.encode('latin-1'))

    name = f'{atomic_dir.RESUME_STATE} is {text[:24]!r}'
    yield Row(name, spoil, 'prepare', atomic_dir.RESUME_STATE)


def _processes() -> Iterator[Row]:
  both = ('--num_processes=2', '--process_id=1')
  for args, fragment in (
    (('--coordinator=host',), 'HOST:PORT'),
    (('--coordinator=',), 'HOST:PORT'),
    (('--coordinator=:80',), 'HOST:PORT'),
    (('--coordinator=host:x',), 'HOST:PORT'),
    (('--coordinator=host:0',), '65535'),
    (('--coordinator=host:-1',), 'HOST:PORT'),
    (('--coordinator=host:65536',), '65535'),
    (('--coordinator=host:99999999999999999999',), '65535'),
    (('--num_processes=0',), '--num_processes'),
    (('--num_processes=x',), 'num_processes'),
    (('--process_id=-1',), '--process_id'),
    (('--num_processes=2', '--process_id=2'), '--process_id'),
    (('--nodistributed', '--process_id=1'), '--nodistributed'),
  ):
    yield Row(f'processes {" ".join(args)}', _nothing, 'train', fragment, args)
  for address in ('127.0.0.1:1', 'host.invalid:80', '192.0.2.1:80'):
    yield Row(
      f'nothing at {address}',
      _nothing,
      'train',
      f'nothing answers at {address}',
      (f'--coordinator={address}', *both),
      cli=True,
      in_process=False,  # It ends the process.
    )


def _plans() -> Iterator[Row]:
  long = 'x' * 300
  for option, path in (
    *(('json', 'gone/a.json'), ('png', 'gone/a.png'), ('markdown', 'gone/a')),
    *(('json', 'data'), ('png', 'd.png'), ('markdown', 'data')),
    *(('json', long), ('png', f'{long}.png'), ('markdown', long)),
    *(('json', 'texts/a.jsonl/x'), ('json', 'fifo'), ('markdown', 'fifo')),
    *(('png', 'a.pdf'), ('png', 'a'), ('png', ''), ('markdown', 'latin')),
    *(('json', 'loop'), ('markdown', 'loop')),
  ):

    def spoil(root):
      (root / 'd.png').mkdir()
      os.mkfifo(root / 'fifo')
      (root / 'latin').write_bytes(b'\xe9\n')
      (root / 'loop').symlink_to('loop')

    args = (f'--{option}={{root}}/{path}' if path else f'--{option}=',)
    name = f'plan --{option}={path[:20]}'
    cli = path in ('gone/a.json', 'a.pdf')
    yield Row(name, spoil, 'plan', f'--{option}', args, cli=cli)
  for option in ('find-batch', 'quick', 'png=a.png', 'markdown=a.md'):
    args = ('--collectives', f'--{option}')
    yield Row(f'plan {args}', _nothing, 'plan', '--collectives or --', args)


def all_rows() -> list[Row]:
  """Every row, with names that differ."""
  rows = [
    *_manifests(),
    *_data(),
    *_workdirs(),
    *_texts(),
    *_instructions(),
    *_tokenizers(),
    *_options(),
    *_configuration(),
    *_configuration_files(),
    *_resume_states(),
    *_processes(),
    *_plans(),
  ]
  # A working directory of another run would be refused for that.
  real = [row for row in rows if row.command != 'workdir'][::_EVERY]
  return [dataclasses.replace(row, cli=row.cli or row in real) for row in rows]
