"""Streams input files: decompresses them and cuts them into blocks.

The blocks of a file depend only on its content, so preparation can resume from
the number of blocks done.
"""

import contextlib
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import zstandard

from train import errors
from train.data import documents
from train.data.documents import Content
from train.data.tokenizer import END_OF_TEXT
from train.errors import UserError

# C4 calls its JSON lines .json.gz.
_JSON = ('.jsonl', '.jsonl.gz', '.jsonl.zst', '.json', '.json.gz', '.json.zst')
PARQUET = '.parquet'
SUFFIXES = ('.txt', *_JSON, PARQUET)
_BLOCK = 2**20  # Bytes of lines, or characters of records.
_MAX_LINE = 2**26  # A line needs about twenty times its size in memory.
_COMPRESSED = 2**14  # Small, since it may expand to a thousand times the size.
_TXT_CHARACTERS = 2**14
_PARQUET_ROWS = 64


def blocks(
  path: pathlib.Path, instructions: bool = False
) -> Iterator[tuple[Content, int]]:
  """Cuts a file into blocks of about a megabyte.

  JSON is left as lines. A .txt file is cut into documents at lines that are
  `<|endoftext|>` and, since it may be one long text, at the first line end
  after every 16384 characters. The columns of a .parquet file have the names of
  the fields of JSON lines.

  Args:
    path: The file; its suffix determines its type.
    instructions: Whether to read the columns of prompts and responses, too.

  Yields:
    A block, and the number of bytes of the file read so far.

  Raises:
    UserError: If the file cannot be read or is truncated.
  """
  try:
    if path.name.endswith(PARQUET):
      yield from _gather(_parquet_records(path, instructions))
    elif path.name.endswith('.txt'):
      yield from _gather(_text_records(path))
    else:
      with (
        open(path, 'rb') as file,
        contextlib.closing(_open(path, file)) as lines,
      ):
        for number, content in enumerate(_cut(lines)):
          if not number:
            _check_utf8(path, content or b'')
          yield content, file.tell()
  except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
    raise UserError(
      f'{path} cannot be read ({errors.first_line(error)}): copy or download '
      'it again.'
    ) from error


def _check_utf8(path: pathlib.Path, start: bytes) -> None:
  if start[:2] in (b'\xff\xfe', b'\xfe\xff'):
    raise UserError(
      f'{path} is UTF-16, but UTF-8 is expected: convert it, for example with '
      'iconv -f UTF-16 -t UTF-8.'
    )


def checksum(content: Content, start: int) -> int:
  """A CRC of blocks, continued from that of the previous blocks."""
  if isinstance(content, bytes):
    return zlib.crc32(content, start)
  for record in content or ():
    start = zlib.crc32(json.dumps(record, default=str).encode(), start)
  return start


def _open(path: pathlib.Path, file: BinaryIO) -> io.BufferedIOBase:
  if path.name.endswith('.gz'):
    return gzip.open(file, 'rb')  # type: ignore[return-value]
  if path.name.endswith('.zst'):
    return io.BufferedReader(_Zstd(file), _BLOCK)
  return file  # type: ignore[return-value]


def _cut(file: io.BufferedIOBase) -> Iterator[bytes | None]:
  """Yields whole lines, and None for each line that is too long to keep."""
  rest: list[bytes] = []  # The start of a line whose end has not been read.
  size = 0
  skipping = False
  while chunk := file.read(_BLOCK):
    end = chunk.rfind(b'\n') + 1
    start = 0
    if skipping and end:
      yield None
      start = chunk.find(b'\n') + 1
      skipping = False
    if end > start:
      yield b''.join([*rest, chunk[start:end]])
    if end:
      rest, size = [], 0
    if not skipping:
      rest.append(chunk[end:])
      size += len(chunk) - end
    if size > _MAX_LINE:
      rest, size, skipping = [], 0, True
  if skipping:
    yield None
  elif size:
    yield b''.join(rest)


class _Zstd(io.RawIOBase):
  """Decompresses all frames; detects truncation, unlike stream_reader."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self._decompressor = zstandard.ZstdDecompressor()
    self._frame = self._decompressor.decompressobj()
    self._started = False
    self._rest = b''
    self._data = memoryview(b'')

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._data:
      data = self._rest or self._file.read(_COMPRESSED)
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


# A record and the number of bytes of the file read so far.
_Records = Iterator[tuple[dict[str, Any], int]]


def _gather(records: _Records) -> Iterator[tuple[list, int]]:
  block, size, read = [], 0, 0
  for record, read in records:
    block.append(record)
    size += documents.characters(record)
    if size >= _BLOCK:
      yield block, read
      block, size = [], 0
  if block:
    yield block, read


def _text_records(path: pathlib.Path) -> _Records:
  lines: list[str] = []
  size = 0
  with (
    open(path, 'rb') as raw,
    io.TextIOWrapper(raw, 'utf-8-sig', errors='replace', newline='\n') as file,
  ):
    _check_utf8(path, raw.peek(2))
    # A limit, since a file may be a single line.
    while line := file.readline(_TXT_CHARACTERS):
      ends = line.strip() == END_OF_TEXT
      if not ends:
        lines.append(line)
        size += len(line)
      if ends or size >= _TXT_CHARACTERS:
        if size:
          yield {'text': ''.join(lines)}, raw.tell()
        lines, size = [], 0
    if size:
      yield {'text': ''.join(lines)}, raw.tell()


def _parquet_records(path: pathlib.Path, instructions: bool) -> _Records:
  import pyarrow
  import pyarrow.parquet

  try:
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
      columns = _parquet_columns(path, file.schema_arrow, instructions)
      size, total = path.stat().st_size, file.metadata.num_rows
      number = 0
      for batch in file.iter_batches(_PARQUET_ROWS, columns=columns):
        for record in batch.to_pylist():
          number += 1
          yield record, size * number // total
  except pyarrow.ArrowException as error:
    raise OSError(error) from error


def _parquet_columns(
  path: pathlib.Path, schema: Any, instructions: bool
) -> list[str]:
  """The columns to read; raises UserError if they cannot give documents."""
  import pyarrow

  names = set(schema.names)
  pair = documents.PROMPT in names and names & set(documents.RESPONSES)
  usable = 'text' in names
  if instructions:
    usable |= bool(pair) or documents.MESSAGES in names
  if not usable:
    wanted = '"text"'
    advice = 'rename one'
    if instructions:
      wanted = '"messages", no "prompt" with "completion", and no "text"'
    elif pair or documents.MESSAGES in names:
      advice = 'pass --instructions'
    raise UserError(
      f'{path} has no column {wanted}, only {", ".join(schema.names)}: '
      f'{advice}.'
    )
  columns = ['text']
  if instructions:
    columns += [documents.PROMPT, *documents.RESPONSES, documents.MESSAGES]
  columns = [name for name in columns if name in names]
  for name in columns:
    if len(schema.get_all_field_indices(name)) > 1:
      raise UserError(
        f'{path} has several columns "{name}": rename all but one.'
      )
    kind = schema.field(name).type
    expected = 'strings'
    right = kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.null())
    if name == documents.MESSAGES:
      expected = 'lists of structs with "role" and "content"'
      lists = pyarrow.ListType | pyarrow.LargeListType
      right = kind == pyarrow.null() or (
        isinstance(kind, lists)
        and isinstance(kind.value_type, pyarrow.StructType)
      )
    if not right:
      raise UserError(
        f'{path} has a column "{name}" of type {kind}, but {expected} are '
        'expected: convert it.'
      )
  meta = schema.field('meta').type if 'meta' in names else None
  if isinstance(meta, pyarrow.StructType) and meta.get_all_field_indices(
    documents.SUBSET_FIELD
  ):
    columns.append(f'meta.{documents.SUBSET_FIELD}')
  return columns
