"""Fuzzes what reads files and options: python -m tests.fuzz --minutes 60.

Each target damages good input at random, and reads it. It must be refused by a
UserError of one line, or be read as what it is. What is found is printed, and
belongs into tests/bad_inputs/rows.py.
"""

import argparse
import collections
import contextlib
import copy
import functools
import gzip
import io
import itertools
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import zstandard
from hypothesis import strategies as st

from tests.support import corpora, runs
from train import config as config_lib
from train import errors, files, inputs, prepare, program, workdir
from train.config import fields
from train.data import atomic_dir, documents, readers, shards, source, streaming
from train.data import tokenizer as tokenizer_lib
from train.results import plot, report, run_log

_NUMBERS = st.one_of(
  st.sampled_from((-1, 0, 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400)),
  st.sampled_from((0.5, -0.0, 1e-320, 1e308, float('inf'), float('nan'))),
  st.integers(-300, 70000),
  st.floats(),
)
_TEXTS = st.one_of(
  st.sampled_from(('', '../x', '/etc/passwd', 'a\0b', '<u4', 'x' * 5000)),
  st.text(st.characters(exclude_categories=()), max_size=8),
)
_VALUES = st.recursive(
  st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)
  ),
  max_leaves=4,
)


class Found(Exception):
  """What must not happen, in words."""


# --- Damage


def _places(content: Any) -> list[tuple[Any, Any]]:
  """Every (container, key) of a JSON document."""
  pairs: list[tuple[Any, Any]] = []
  if isinstance(content, dict | list):
    keys = list(content) if isinstance(content, dict) else range(len(content))
    for key in keys:
      pairs += [(content, key), *_places(content[key])]
  return pairs


def edited(draw: Callable, content: Any) -> Any:
  """A JSON document with up to three entries changed."""
  content = copy.deepcopy(content)
  for _ in range(draw(st.integers(0, 3))):
    places = _places(content)
    if not places:
      return draw(_VALUES)
    container, key = places[draw(st.integers(0, len(places) - 1))]
    how = draw(st.sampled_from(('replace', 'remove', 'add', 'copy')))
    if how == 'replace':
      container[key] = draw(_VALUES)
    elif how == 'remove':
      del container[key]
    elif how == 'copy':
      other, at = places[draw(st.integers(0, len(places) - 1))]
      container[key] = copy.deepcopy(other[at])
    elif isinstance(container, dict):
      container[draw(_TEXTS)] = draw(_VALUES)
    else:
      container.insert(key, draw(_VALUES))
  return content


def damaged(draw: Callable, content: bytes) -> bytes:
  """Bytes with up to three changes."""
  result = bytearray(content)
  for _ in range(draw(st.integers(0, 3))):
    start = draw(st.integers(0, len(result)))
    size = draw(st.sampled_from((0, 1, 1, 2, 7, 64, len(result))))
    new = draw(
      st.one_of(
        st.binary(max_size=6),
        st.sampled_from((b'\0' * 64, b'\n', b'"', b'}', b'[' * 3000, b'\xff')),
      )
    )
    if draw(st.booleans()) and start < len(result):
      new = bytes([result[start] ^ 1 << draw(st.integers(0, 7))])
      size = 1
    result[start : start + size] = new
  return bytes(result)


def _json(draw: Callable, path: pathlib.Path, edits: bool = False) -> bool:
  """Damages a JSON file; returns whether it says something else then.

  Args:
    draw: Of hypothesis.
    path: The file.
    edits: Whether its checksum may be computed anew, as an editor would.
  """
  before = path.read_bytes()
  if draw(st.integers(0, 3)):
    content = edited(draw, json.loads(before))
    if edits and isinstance(content, dict) and draw(st.booleans()):
      content['crc'] = files.crc(content)
    path.write_text(json.dumps(content))
  else:
    path.write_bytes(damaged(draw, before))
  with contextlib.suppress(ValueError, RecursionError):
    return json.loads(path.read_bytes()) != json.loads(before)
  return True


def _refusal(action: Callable[[], Any]) -> Any:
  """The text of a UserError, checked; None if there is none."""
  try:
    action()
  except errors.UserError as error:
    text = str(error)
    if '\n' in text or 'object at 0x' in text or len(text) > 3000:
      raise Found(f'not a line: {text!r}') from error
    text.encode(errors='replace')
    return text
  return None


# --- Targets: each tries one damaged input, and says what came of it.


def manifest(draw: Callable, root: pathlib.Path) -> str:
  """The manifest of prepared data."""
  before = (root / 'data' / 'manifest.json').read_bytes()
  changed = _json(draw, root / 'data' / 'manifest.json', edits=True)
  return _open_data(root, json.loads(before) if changed else None)


def shard(draw: Callable, root: pathlib.Path) -> str:
  """A shard, or the tokenizer beside it."""
  bins = sorted((root / 'data').glob('*.bin'))
  path = draw(st.sampled_from((*bins, root / 'data' / 'tokenizer.json')))
  before = path.read_bytes()
  path.write_bytes(damaged(draw, before))
  if draw(st.booleans()):  # As a copy, or an archive, that keeps the times.
    os.utime(path, ns=(0, 0))
  outcome = _open_data(root, None)
  if outcome == 'accepted' and path.read_bytes() != before:
    raise Found(f'{path.name} was accepted')
  return outcome


def _open_data(root: pathlib.Path, original: Any) -> str:
  options = (f'data.path={root}/data', 'train.platform=cpu')
  config = config_lib.load(str(runs.CONFIG), *options)
  opened = []

  def read():
    found = inputs.open_inputs(config, lambda: False, lambda _: None)
    opened.append((found, found.train.read(0, 10**6)))

  if _refusal(read):
    return 'refused'
  found, tokens = opened[0]
  entries = found.manifest['splits']['train'].values()
  if len(tokens) != sum(entry['tokens'] for entry in entries):
    raise Found('other tokens than the manifest says')
  scales = shards.byte_scales(found.manifest, 'validation').values()
  if not all(np.isfinite(scale) and scale > 0 for scale in scales):
    raise Found(f'scales of bytes: {list(scales)}')
  # Whoever computes the checksum anew may change what nothing else says.
  if original and found.manifest.get('crc') == original['crc']:
    raise Found('another manifest with the same checksum')
  return 'accepted'


def run_files(draw: Callable, root: pathlib.Path) -> str:
  """What a working directory holds."""
  path = root / 'run'
  identity = json.loads((path / 'run.json').read_text())['run']
  name = draw(st.sampled_from(('run.json', run_log.FILE, report.RESULTS)))
  damage = _json_lines if name == run_log.FILE else _json

  crc = json.loads((path / report.RESULTS).read_text())['crc']
  changed = damage(draw, path / name)

  def start():
    workdir.check(path, identity)
    report.complete(path)
    with workdir.hold(path):
      workdir.claim(path, identity, {})
      lines = run_log.JsonLines(path / run_log.FILE, 3)
      lines.write(
        {'step': 4, 'tokens': 4, 'timing': {'seconds': lines.seconds}}
      )
      lines.close()
    records = run_log.read(path / run_log.FILE)
    plot.loss_curve(records, root / 'loss.png', title='run')

  if _refusal(start):
    return 'refused'
  # Whoever computes the checksum anew may change what nothing else says.
  results = json.loads((path / report.RESULTS).read_text())
  if name == report.RESULTS and changed and results['crc'] == crc:
    raise Found('other results with the same checksum')
  return 'accepted'


def _json_lines(draw: Callable, path: pathlib.Path) -> None:
  lines = path.read_bytes().splitlines(keepends=True)
  at = draw(st.integers(0, len(lines) - 1))
  if draw(st.booleans()):
    lines[at] = json.dumps(edited(draw, json.loads(lines[at]))).encode() + b'\n'
    path.write_bytes(b''.join(lines))
  else:
    path.write_bytes(damaged(draw, b''.join(lines)))


def resume(draw: Callable, root: pathlib.Path) -> str:
  """The record by which an interrupted preparation is resumed."""
  record = root / 'out.partial' / atomic_dir.RESUME_STATE
  changed = _json(draw, record)

  if _refusal(lambda: _prepare(root, root / 'out')):
    return 'refused'
  if corpora.files(root / 'out') != corpora.files(root / 'whole'):
    raise Found('it was resumed from another record')
  return 'accepted, and changed' if changed else 'accepted'


def tokenizer(draw: Callable, root: pathlib.Path) -> str:
  """A tokenizer.json."""
  path = root / 'texts' / 'tokenizer.json'
  _json(draw, path)

  def encode():
    model = tokenizer_lib.load(path)
    model.token_bytes()

  return 'refused' if _refusal(encode) else 'accepted'


def json_lines(draw: Callable, root: pathlib.Path) -> str:
  """Lines of JSON, whole and compressed."""
  del root
  line = st.one_of(
    st.binary(max_size=20),
    _VALUES.map(lambda value: json.dumps(value).encode()),
    _TEXTS.map(lambda text: json.dumps({'text': text}).encode()),
    st.dictionaries(
      st.sampled_from(('text', 'meta', 'pile_set_name')), _VALUES
    ).map(lambda value: json.dumps(value).encode()),
  )
  content = draw(st.sampled_from((b'\n', b'\r\n'))).join(
    draw(st.lists(line, max_size=8))
  )
  parsed = documents.parse(content)
  expected = [_text(line) for line in content.split(b'\n')]
  if content.endswith(b'\n') or not content:
    expected.pop()
  if [text for _, text in parsed.texts] != [t for t in expected if t]:
    raise Found('other texts than were written')
  if parsed.lines != len(expected) or len(parsed.bad) != expected.count(None):
    raise Found('other lines than were written')
  return 'read'


def _text(line: bytes) -> str | None:
  """The text of a line, None if it holds none: by itself, plainly."""
  if not line.strip():
    return ''
  with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
    text = json.loads(line)['text']
    if isinstance(text, str):
      return text.encode('utf-8', 'replace').decode()
  return None


def blocks(draw: Callable, root: pathlib.Path) -> str:
  """Files of text of all kinds."""
  suffix = draw(st.sampled_from(('txt', 'jsonl', 'jsonl.gz', 'jsonl.zst')))
  text = b'\n'.join(draw(st.lists(st.binary(max_size=200), max_size=9)))
  compress: Callable = {
    'jsonl.gz': functools.partial(gzip.compress, mtime=0),
    'jsonl.zst': zstandard.ZstdCompressor(write_checksum=True).compress,
  }.get(suffix, bytes)
  written = compress(text)
  content = draw(st.sampled_from((written, damaged(draw, written))))
  path = root / f'a.{suffix}'
  path.write_bytes(content)
  found: list[Any] = []
  with mock.patch.object(readers, '_BLOCK', 16):
    refused = _refusal(
      lambda: found.extend(block for block, _ in readers.blocks(path))
    )
  if refused:
    return 'refused'
  # Damage may be an empty file, or one with bytes after the end.
  if content == written and suffix != 'txt' and b''.join(found) != text:
    raise Found('other content than was written')
  return 'read'


def configuration(draw: Callable, root: pathlib.Path) -> str:
  """Fields of a configuration, by options and in its file."""
  declared = list(fields.walk(config_lib.Config()))
  sections = {field.path.rpartition('.')[0]: () for field in declared}
  del sections['']
  usual = sections | {
    field.path: (
      field.value,
      *getattr(field.declaration.accepts, 'words', ()),
    )
    for field in declared
  }
  in_file, options = [], ['train.platform=cpu']
  for path in draw(
    st.lists(st.sampled_from(list(usual)), min_size=1, max_size=3)
  ):
    strategy = st.one_of(_VALUES, _NUMBERS)
    if usual[path]:
      strategy |= st.sampled_from(usual[path])
    value = draw(strategy)
    if draw(st.booleans()):
      in_file.append(f'  config.{path} = {_literal(value)}')
    else:
      options.append(f'{path}={value}')
  file = root / 'config.py'
  file.write_text(
    'from tests.support import tiny_config\n\ndef get_config():\n'
    '  config = tiny_config.get_config()\n'
    + '\n'.join(in_file)
    + '\n  return config\n',
    encoding='utf-8',
    errors='surrogatepass',
  )
  loaded = []
  refused = _refusal(
    lambda: loaded.append(config_lib.load(str(file), *options))
  )
  if refused:
    return 'refused'
  (config,) = loaded
  fields.check(config)
  size = config.model.num_layers * config.model.hidden_size
  if config.model.vocab_size * size > 10**9 or config.train.platform != 'cpu':
    return 'accepted'

  def build():
    compiled = program.build(config, platform='cpu')
    json.dumps(program.describe(config, compiled), allow_nan=False)
    rates = compiled.optimizer.schedule(np.arange(4))
    if not np.all(np.isfinite(rates)):
      raise Found(f'learning rates {rates}')

  return 'refused later' if _refusal(build) else 'built'


def _literal(value: Any) -> str:
  text = repr(value)
  return text.replace('nan', 'float("nan")').replace('inf', 'float("inf")')


TARGETS: dict[str, Callable[[Callable, pathlib.Path], str]] = {
  target.__name__: target
  for target in (
    *(manifest, shard, run_files, resume),
    *(tokenizer, json_lines, blocks, configuration),
  )
}


# --- Running


def write_good(root: pathlib.Path) -> None:
  """Writes good input of each kind."""
  runs.write_data(root / 'data')
  (root / 'texts').mkdir()
  corpora.bpe(root / 'texts' / 'tokenizer.json')
  for name in 'ab':
    lines = corpora.lines(corpora.records(40))
    (root / 'texts' / f'{name}.jsonl').write_bytes(lines)
  options = ('train.steps=4', 'checkpoint.every=2', 'eval.every=2')
  arguments = runs.command(root / 'data', root / 'run', *options)
  with contextlib.redirect_stdout(io.StringIO()):
    if runs.call(*arguments):
      raise RuntimeError('the run fails by itself')
  shutil.rmtree(root / 'run' / 'checkpoints')
  _prepare(root, root / 'whole')
  polls = iter(range(6))
  with contextlib.suppress(errors.Interrupted):
    _prepare(root, root / 'out', lambda: next(polls, None) is None)
  if not (root / 'out.partial' / atomic_dir.RESUME_STATE).exists():
    raise RuntimeError('the preparation was not interrupted')


def _prepare(
  root: pathlib.Path,
  output: pathlib.Path,
  should_stop: Callable[[], bool] = lambda: False,
) -> None:
  """Prepares the texts in small blocks, each of them committed."""
  with (
    mock.patch.object(readers, '_BLOCK', 1000),
    mock.patch.object(streaming, '_COMMIT_SECONDS', 0),
  ):
    prepare.prepare_files(
      output,
      source.Source(f'{root}/texts/*.jsonl', validation_fraction=0.3),
      root / 'texts' / 'tokenizer.json',
      should_stop=should_stop,
      log=lambda _: None,
    )


def fuzz(
  target: Callable, good: pathlib.Path, *, examples: int, seed: int
) -> collections.Counter:
  """Tries a target; raises what it found, after finding a small example.

  Args:
    target: One of `TARGETS`.
    good: The directory that `write_good` filled.
    examples: How many to try.
    seed: Chooses them.

  Returns:
    Outcome -> how often.
  """
  counts: collections.Counter = collections.Counter()

  @hypothesis.seed(seed)
  @hypothesis.settings(
    max_examples=examples,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    report_multiple_bugs=False,
  )
  @hypothesis.given(st.data())
  def trial(data):
    with tempfile.TemporaryDirectory(dir=good.parent) as name:
      root = pathlib.Path(name, 'root')
      shutil.copytree(good, root)
      counts[target(data.draw, root)] += 1

  trial()
  return counts


def main(argv: list[str] | None = None) -> int:
  """Fuzzes all targets in turn; the status is 1 if anything was found."""
  parser = argparse.ArgumentParser(prog='python -m tests.fuzz')
  parser.add_argument('--minutes', type=float, default=60)
  parser.add_argument('--targets', default=','.join(TARGETS))
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  targets = args.targets.split(',')
  counts = {name: collections.Counter() for name in targets}
  found = set()
  end = time.monotonic() + 60 * args.minutes
  with tempfile.TemporaryDirectory() as directory:
    good = pathlib.Path(directory, 'good')
    write_good(good)
    for seed in itertools.count(args.seed):
      for name in targets:
        if time.monotonic() > end or found.issuperset(targets):
          break
        if name not in found:
          try:
            counts[name] += fuzz(TARGETS[name], good, examples=50, seed=seed)
          except KeyboardInterrupt:
            raise
          except BaseException:  # Also what Rust code panics with.
            found.add(name)
            text = traceback.format_exc()
            print(f'FOUND by {name}, seed {seed}:\n{text}', flush=True)
      else:
        continue
      break
  for name, outcomes in counts.items():
    words = ', '.join(f'{n} {outcome}' for outcome, n in outcomes.items())
    print(f'{name}: {outcomes.total()} inputs: {words}')
  return int(bool(found))


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  sys.exit(main())
