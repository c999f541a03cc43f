"""Splits blocks of the input into documents; runs in the worker processes."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

DEFAULT_SUBSET = 'text'
SUBSET_FIELD = 'pile_set_name'
_NO_TEXT = 'no string "text"'

# Whole lines of JSON; or rows of (subset, text), if they are strings; or None
# for a line that is too long to read.
Content = bytes | list[tuple[Any, Any]] | None


class Parsed(NamedTuple):
  """The documents of a block.

  Attributes:
    lines: Number of lines or rows in the block.
    bad: Number (from 1) and reason of each line without a document.
    texts: Subset and text of the other lines, except for empty texts.
  """

  lines: int
  bad: list[tuple[int, str]]
  texts: list[tuple[str, str]]


def parse(content: Content) -> Parsed:
  """Splits a block into documents.

  JSON lines have the form of The Pile: `{"text": ..., "meta":
  {"pile_set_name": ...}}`. The name becomes the subset ('text' if absent).

  Args:
    content: Content of a block from `readers`.

  Returns:
    The documents.
  """
  if content is None:
    return Parsed(1, [(1, 'the line is too long')], [])
  bad, texts = [], []
  take: Callable[[Any], tuple[str, str]] = _row
  lines: Any = content
  if isinstance(content, bytes):
    lines, take = content.split(b'\n'), _json
    if not lines[-1]:  # After the last line's end.
      lines.pop()
  for number, line in enumerate(lines, 1):
    try:
      subset, text = take(line)
    except ValueError as error:
      bad.append((number, str(error)))
      continue
    if text:
      # Lone surrogates are valid JSON escapes, but no encoding writes them.
      text = text.encode('utf-8', 'replace').decode()
      texts.append((subset.encode('utf-8', 'replace').decode(), text))
  return Parsed(len(lines), bad, texts)


def _json(line: bytes) -> tuple[str, str]:
  if not line.strip():
    return DEFAULT_SUBSET, ''
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:  # Also UnicodeDecodeError.
    raise ValueError(f'no JSON ({error})') from error
  if not isinstance(record, dict):
    raise ValueError(_NO_TEXT)
  meta = record.get('meta')
  subset = meta.get(SUBSET_FIELD) if isinstance(meta, dict) else None
  return _row((subset, record.get('text')))


def _row(row: tuple[Any, Any]) -> tuple[str, str]:
  subset, text = row
  if not isinstance(text, str):
    raise ValueError(_NO_TEXT)
  return subset if isinstance(subset, str) else DEFAULT_SUBSET, text
