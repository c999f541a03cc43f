"""The fields of a configuration as text: for --helpfull and for the docs."""

import inspect
import operator
import textwrap
from collections.abc import Iterator

from train.config.fields import Declared, walk
from train.config.schema import Config

_CHANGES = {
  'no': '',
  'rounding': 'rounding',
  'value': 'the run',
  'resolved': 'the run, if it resolves to another value',
}
_PAGE = """\
<!-- Made by python -m docs.generate from train/config. -->
# Configuration

A configuration file has a function `get_config()` that returns a
`train.config.Config`. Every field can also be set on the command line, for
example `--config.train.steps=100`; `none` means None. The column "changes"
shows the effect of changing a field between two starts of a run: "the run"
means that it would be another run, so the working directory is rejected;
"rounding" means that the resumed run prints a warning and may differ in the
last digits.
"""


def text() -> str:
  """Returns a paragraph per field."""
  parts = []
  for name, title, fields in _sections():
    parts.append(f'config{name and "." + name}: {title}\n')
    for field in fields:
      changes = _CHANGES[field.declaration.identity]
      note = f'; changes {changes}' if changes else ''
      meaning = f'{field.declaration.meaning} ({_accepted(field)}{note})'
      parts.append(f'  --config.{field.path}={_default(field)}')
      parts.append(textwrap.indent(textwrap.fill(meaning, 74), ' ' * 6))
    parts.append('')
  return '\n'.join(parts)


def markdown() -> str:
  """Returns the page docs/configuration.md."""
  parts = [_PAGE]
  for name, title, fields in _sections():
    parts += [f'## {name or "config"}\n', f'{title}\n']
    parts += ['| field | default | accepts | changes | meaning |']
    parts += ['|---|---|---|---|---|']
    for field in fields:
      cells = (
        f'`{field.path}`',
        f'`{_default(field)}`',
        _accepted(field),
        _CHANGES[field.declaration.identity],
        field.declaration.meaning,
      )
      parts.append(f'| {" | ".join(cells)} |')
    parts.append('')
  return '\n'.join(parts)


def _sections() -> Iterator[tuple[str, str, list[Declared]]]:
  """Yields name, title and fields of each section of the defaults."""
  config = Config()
  sections: dict[str, list[Declared]] = {}
  for field in walk(config):
    sections.setdefault(field.path.rpartition('.')[0], []).append(field)
  for name, fields in sections.items():
    section = operator.attrgetter(name)(config) if name else config
    title, _, _ = (inspect.getdoc(section) or '').partition('\n')
    yield name, title, fields


def _default(field: Declared) -> str:
  if isinstance(field.value, dict):
    return '{...}' if field.value else '{}'
  return 'none' if field.value is None else str(field.value) or "''"


def _accepted(field: Declared) -> str:
  accepts = field.declaration.accepts
  if accepts is None:
    return field.type_words
  none = ' or none' if type(None) in field.kinds else ''
  return f'{field.kinds[0].__name__}, {accepts}{none}'
