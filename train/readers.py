"""Documents out of .txt and, also compressed, JSON lines files, streamed."""

import contextlib
import glob
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator

import zstandard

from train.corpus import Document
from train.errors import UserError
from train.tokenizer import END_OF_TEXT

# C4 calls its JSON lines .json.gz.
_JSON = ('.jsonl', '.jsonl.gz', '.jsonl.zst', '.json', '.json.gz', '.json.zst')
SUFFIXES = ('.txt', *_JSON)
DEFAULT_SUBSET = 'text'
_CHUNK = 2**20
_TXT_CHARACTERS = 2**14


def find(pattern: str) -> list[pathlib.Path]:
  """The files that match a pattern, sorted; UserError if there is none."""
  files = sorted(
    path
    for name in glob.glob(str(pathlib.Path(pattern).expanduser()))
    if (path := pathlib.Path(name)).is_file()
  )
  if not files:
    raise UserError(
      f'No file matches {pattern!r}: quote the pattern and check the path.'
    )
  return files


def without(
  files: list[pathlib.Path],
  held_out: list[pathlib.Path],
  log: Callable[[str], None],
) -> list[pathlib.Path]:
  """The files but those held out; UserError if that leaves none."""
  unwanted = {path.resolve() for path in held_out}
  kept = [path for path in files if path.resolve() not in unwanted]
  if not kept:
    raise UserError(
      '--validation matches every file of --input: nothing is left to train on.'
    )
  if len(kept) < len(files):
    log(
      f'{len(files) - len(kept)} files that --input matches are held out for '
      'validation.'
    )
  return kept


def identities(files: list[pathlib.Path]) -> list[list[str | int]]:
  """What changes when a file is edited, found without reading it."""
  stats = [(f.name, f.stat()) for f in files]
  return [[name, s.st_size, s.st_mtime_ns] for name, s in stats]


class BadLines:
  """Counts lines that are no documents, up to a limit.

  Attributes:
    count: Lines skipped so far.
  """

  def __init__(self, limit: int):
    self.count = 0
    self._limit = limit

  def add(self, path: pathlib.Path, number: int, reason: str) -> None:
    """Counts a line; raises UserError with the place beyond the limit."""
    self.count += 1
    if self.count > self._limit:
      raise UserError(
        f'{path}, line {number}: {reason}; more than {self._limit} such lines. '
        'Expected one JSON object a line with a string "text"; correct the '
        'files or raise --max_bad_lines.'
      )


def read_documents(path: pathlib.Path, bad: BadLines) -> Iterator[Document]:
  """Yields the documents of a file.

  JSON lines are in the form of the Pile: `{"text": ..., "meta":
  {"pile_set_name": ...}}`, the name becoming the subset ('text' if absent). A
  .txt file is cut at lines that read `<|endoftext|>`, and, since it may be
  one long text, at the first line end after each 16384 characters.

  Args:
    path: The file; its suffix says what it is.
    bad: Counts the lines that cannot be read.

  Yields:
    Documents that are not empty.

  Raises:
    UserError: If the file cannot be read, is truncated, has an unknown suffix
      or too many bad lines.
  """
  try:
    if path.name.endswith('.txt'):
      yield from _text_documents(path)
    elif path.name.endswith(_JSON):
      with contextlib.closing(_open(path)) as file:
        yield from _json_documents(path, file, bad)
    else:
      raise UserError(
        f'{path} is of unknown type; expected {", ".join(SUFFIXES)}.'
      )
  except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
    raise UserError(
      f'{path} cannot be read ({error}): copy or download it again.'
    ) from error


def _open(path: pathlib.Path) -> io.BufferedIOBase:
  if path.name.endswith('.gz'):
    return gzip.open(path, 'rb')  # type: ignore[return-value]
  if path.name.endswith('.zst'):
    return io.BufferedReader(_Zstd(path), _CHUNK)
  return open(path, 'rb')


class _Zstd(io.RawIOBase):
  """Decompresses frame after frame; unlike stream_reader sees truncation."""

  def __init__(self, path: pathlib.Path):
    self._file = open(path, 'rb')  # noqa: SIM115 (closed by close)
    self._decompressor = zstandard.ZstdDecompressor()
    self._frame = self._decompressor.decompressobj()
    self._started = False
    self._rest = b''
    self._data = memoryview(b'')

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._data:
      data = self._rest or self._file.read(_CHUNK // 8)
      if not data:
        if self._started and not self._frame.eof:
          raise EOFError('it is truncated')
        return 0
      if self._frame.eof:
        self._frame = self._decompressor.decompressobj()
      self._started = True
      self._data = memoryview(self._frame.decompress(data))
      self._rest = self._frame.unused_data if self._frame.eof else b''
    size = min(len(buffer), len(self._data))
    buffer[:size] = self._data[:size]
    self._data = self._data[size:]
    return size

  def close(self) -> None:
    self._file.close()
    super().close()


def _json_documents(
  path: pathlib.Path, file: io.BufferedIOBase, bad: BadLines
) -> Iterator[Document]:
  for number, line in enumerate(file, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:  # Also UnicodeDecodeError.
      bad.add(path, number, f'no JSON ({error})')
      continue
    text = record.get('text') if isinstance(record, dict) else None
    if not isinstance(text, str):
      bad.add(path, number, 'no string "text"')
      continue
    meta = record.get('meta')
    subset = meta.get('pile_set_name') if isinstance(meta, dict) else None
    if not isinstance(subset, str):
      subset = DEFAULT_SUBSET
    if text:
      # Lone surrogates are valid JSON escapes, but no encoding writes them.
      text = text.encode('utf-8', 'replace').decode()
      yield Document(subset, f'{path.name}:{number}', text)


def _text_documents(path: pathlib.Path) -> Iterator[Document]:
  lines: list[str] = []
  size = 0
  index = 0
  with open(path, encoding='utf-8', errors='replace', newline='\n') as file:
    # A limit, since a file may be a single line.
    while line := file.readline(_TXT_CHARACTERS):
      ends = line.strip() == END_OF_TEXT
      if not ends:
        lines.append(line)
        size += len(line)
      if ends or size >= _TXT_CHARACTERS:
        if size:
          yield Document(DEFAULT_SUBSET, f'{path.name}:{index}', ''.join(lines))
        lines, size, index = [], 0, index + 1
  if size:
    yield Document(DEFAULT_SUBSET, f'{path.name}:{index}', ''.join(lines))
