"""Splits blocks of the input into documents, and holds some of them out.

`readers` already splits `.txt` and Parquet files into one record per document.

`parse` runs in the worker processes. `BadLines` and `Holdout`, which depend on
the order of the documents, run in the main process.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from train.data.writer import Encoded
from train.errors import UserError

DEFAULT_SUBSET = 'text'
SUBSET_FIELD = 'pile_set_name'
# Of instructions; either name may be that of the response.
PROMPT, RESPONSES, MESSAGES = 'prompt', ('completion', 'response'), 'messages'
_NO_TEXT = 'no string "text"'
_NO_RESPONSE = (
  'no string "text", nor strings "prompt" and "completion", nor "messages"'
)
_ROLES = ('system', 'user', 'assistant')
_SHOWN_BAD_LINES = 5
MAX_HELD_OUT_BYTES = 32 * 10**6  # About 8 million tokens.

# A text, whose tokens are all targets; or alternating parts: a prompt, its
# response, ..., where only the responses are targets.
Text = str | tuple[str, ...]

# Whole lines of JSON; or records with the same fields; or None for a line that
# is too long to read.
Content = bytes | list[dict[str, Any]] | None


class Parsed(NamedTuple):
  """The documents of a block.

  Attributes:
    lines: Number of lines or records in the block.
    bad: Number (from 1) and reason of each line without a document.
    texts: Subset and text of the other lines, except for empty ones.
  """

  lines: int
  bad: list[tuple[int, str]]
  texts: list[tuple[str, Text]]


def parse(content: Content, instructions: bool = False) -> Parsed:
  """Splits a block into documents.

  JSON lines have the form of The Pile: `{"text": ..., "meta":
  {"pile_set_name": ...}}`. The name becomes the subset ('text' if absent).
  With instructions, they may have `"messages"`, or `"prompt"` and
  `"completion"` (or `"response"`), in place of the text; see `_chat` for
  messages. A field that is null counts as absent.

  Args:
    content: Content of a block from `readers`.
    instructions: Whether lines may be prompts with their responses.

  Returns:
    The documents.
  """
  if content is None:
    return Parsed(1, [(1, 'the line is too long')], [])
  bad, texts = [], []
  lines: list[Any] = content if isinstance(content, list) else _lines(content)
  for number, line in enumerate(lines, 1):
    try:
      record = _json(line) if isinstance(line, bytes) else line
      text = _text(record, instructions)
    except ValueError as error:
      bad.append((number, str(error)))
      continue
    if isinstance(text, str):
      text = _clean(text)
    else:
      text = tuple(map(_clean, text)) if any(text) else ''
    if text:
      texts.append((_clean(_subset(record)), text))
  return Parsed(len(lines), bad, texts)


def characters(value: Any) -> int:
  """The size of a record: lengths of strings and bytes, 1 for other values."""
  if isinstance(value, str | bytes):
    return len(value)
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list | tuple):
    return sum(map(characters, value))
  return 1


def _lines(content: bytes) -> list[bytes]:
  lines = content.split(b'\n')
  if not lines[-1]:  # After the last line's end.
    lines.pop()
  return lines


def _clean(text: str) -> str:
  # Lone surrogates are valid JSON escapes, but no encoding writes them.
  return text.encode('utf-8', 'replace').decode()


def _json(line: bytes) -> dict[str, Any]:
  if not line.strip():
    return {'text': ''}
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:  # Also UnicodeDecodeError.
    raise ValueError(f'not JSON ({error})') from error
  if not isinstance(record, dict):
    raise ValueError(_NO_TEXT)
  return record


def _text(record: dict[str, Any], instructions: bool) -> Text:
  if instructions:
    if record.get(MESSAGES) is not None:
      return _chat(record[MESSAGES])
    prompt = record.get(PROMPT)
    found = [record[name] for name in RESPONSES if record.get(name) is not None]
    if found and isinstance(prompt, str) and isinstance(found[0], str):
      return prompt, found[0]
  if not isinstance(record.get('text'), str):
    raise ValueError(_NO_RESPONSE if instructions else _NO_TEXT)
  return record['text']


def _chat(messages: Any) -> tuple[str, ...]:
  """Converts messages to alternating prompts and responses.

  A message is a line `### ` with its role, then its content. An empty line
  follows a message of the system or the user; the end-of-text token, which
  `encoding` adds to every response, follows one of the assistant. Messages
  after the last one of the assistant are left out.

  Args:
    messages: `[{"role": "user", "content": "..."}, ...]`.

  Returns:
    A prompt and a response for each message of the assistant. The line with its
    role is the end of the prompt, and its content is the response.

  Raises:
    ValueError: If the messages have another form.
  """
  if not isinstance(messages, list):
    raise ValueError('"messages" is not a list')
  parts: list[str] = []
  prompt = ''
  for number, message in enumerate(messages, 1):
    role, content = (
      message.get(name) if isinstance(message, dict) else None
      for name in ('role', 'content')
    )
    if role not in _ROLES:
      raise ValueError(
        f'message {number} has the role {role!r:.20}, expected one of '
        f'{", ".join(_ROLES)}'
      )
    if not isinstance(content, str):
      raise ValueError(f'message {number} has no string "content"')
    prompt += f'### {role}\n'
    if role == 'assistant':
      parts += [prompt, content]
      prompt = ''
    else:
      prompt += f'{content}\n\n'
  if not parts:
    raise ValueError('"messages" has no message of the assistant')
  return tuple(parts)


def _subset(record: dict[str, Any]) -> str:
  meta = record.get('meta')
  name = meta.get(SUBSET_FIELD) if isinstance(meta, dict) else None
  return name if isinstance(name, str) else DEFAULT_SUBSET


class BadLines:
  """Counts lines without a document, up to a limit.

  Attributes:
    count: Lines skipped so far.
  """

  def __init__(self, limit: int, log: Callable[[str], None]):
    self.count = 0
    self._limit = limit
    self._log = log

  def add(self, path: pathlib.Path, number: int, reason: str) -> None:
    """Counts a line; above the limit, raises a UserError that names it."""
    if self.count >= self._limit:
      raise UserError(
        f'{path}, line {number}: {reason}; more than {self._limit} such lines. '
        'Expected one JSON object per line with a string "text" or, with '
        '--instructions, "messages" or "prompt" and "completion"; correct the '
        'files or raise --max_bad_lines.'
      )
    self.count += 1
    if self.count <= _SHOWN_BAD_LINES:
      more = ' (more are only counted)' * (self.count == _SHOWN_BAD_LINES)
      self._log(f'Skipped {path}, line {number}: {reason}{more}.')


class Holdout:
  """Chooses the split of each document; no text is in both splits.

  A document goes to validation if the hash of its text is below `fraction` and
  it still fits into MAX_HELD_OUT_BYTES. The choice depends on the previous
  texts, and equal texts always get the same split.

  Attributes:
    dropped: Number of documents left out because validation has the same text.
  """

  def __init__(self, fraction: float):
    """Starts without held-out documents.

    Args:
      fraction: Share of the documents to hold out; 0 holds out only those that
        are added.
    """
    self.dropped = 0
    self._fraction = fraction
    self._left = MAX_HELD_OUT_BYTES
    self._keys: set[bytes] = set()

  def add(self, document: Encoded) -> None:
    """Holds a document out, regardless of its hash and size."""
    self._keys.add(document.digest[:16])

  def split(self, document: Encoded) -> str | None:
    """Returns 'train', 'validation', or None for a copy to leave out."""
    key = document.digest[:16]
    if key in self._keys:
      self.dropped += 1
      return None
    share = int.from_bytes(key[:8], 'little') / 2**64
    if share >= self._fraction or document.num_bytes > self._left:
      return 'train'
    self._left -= document.num_bytes
    self._keys.add(key)
    return 'validation'

  def state(self) -> dict[str, Any]:
    """The argument of `restore`, as JSON."""
    keys = sorted(key.hex() for key in self._keys)
    return {'dropped': self.dropped, 'left': self._left, 'keys': keys}

  def restore(self, state: dict[str, Any]) -> None:
    """Restores a new object from the result of `state`."""
    self.dropped, self._left = state['dropped'], state['left']
    self._keys = {bytes.fromhex(key) for key in state['keys']}
