"""A page per method, from its docstring."""

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from sage_optax import recipes
from sage_optax import roles as roles_lib

_SECTIONS = (
  'Learning rates',
  'Args',
  'Returns',
  'Raises',
  'Example',
  'References',
)
_MADE = '<!-- Made by python -m docs.generate from the docstring. -->'


def all_pages() -> dict[str, str]:
  """Returns file name without suffix -> Markdown."""
  pages = {
    name: page(name, function) for name, function in recipes.METHODS.items()
  }
  pages['README'] = '\n'.join(
    [
      _MADE,
      '# The methods',
      '',
      '| method | transformation | |',
      '|---|---|---|',
      *(
        f'| [{name}]({name}.md) | `{function.__name__}` | '
        f'{_inline(sections(function)["title"])} |'
        for name, function in recipes.METHODS.items()
      ),
      '',
      '[conformance](../conformance.md) compares each method with recorded '
      'runs.',
      '',
    ]
  )
  return pages


def page(name: str, function: Callable[..., Any]) -> str:
  """The page of one method."""
  parts = sections(function)
  used = [
    f'`{recipe}` ({", ".join(roles)})'
    for recipe, row in recipes.RECIPES.items()
    if (roles := [r for r in roles_lib.ROLES if getattr(row, r).method == name])
  ]
  lines = [_MADE, f'# {name}', '', _inline(parts['title']), '']
  lines += ['```python', _signature(function), '```', '']
  lines += [_body(parts['body']), '']
  if 'Learning rates' in parts:
    lines += ['## Learning rates', '', _body(parts['Learning rates']), '']
  lines += ['## Arguments', '', _arguments(function, parts['Args']), '']
  lines += ['## Returns', '', _body(parts['Returns']), '']
  if 'Raises' in parts:
    lines += ['## Raises', '', _raises(parts['Raises']), '']
  example = textwrap.dedent(parts['Example']).strip('\n')
  lines += ['## Example', '', '```python', example, '```', '']
  lines += ['## Recipes', '', ', '.join(used) + '.', '']
  lines += ['## References', '', _references(parts['References']), '']
  lines += [
    f'Compared with recorded runs: [conformance](../conformance.md#{name}).',
    '',
  ]
  return '\n'.join(lines)


def sections(function: Callable[..., Any]) -> dict[str, str]:
  """The docstring in parts: 'title', 'body' and the named sections."""
  title, _, rest = (inspect.getdoc(function) or '').partition('\n')
  names = '|'.join(_SECTIONS)
  body, *others = re.split(rf'^({names}):\n', rest, flags=re.MULTILINE)
  named = dict(zip(others[::2], others[1::2], strict=True))
  return {'title': title, 'body': body, **named}


def _signature(function) -> str:
  arguments = []
  parameters = inspect.signature(function).parameters.values()
  star = False
  for p in parameters:
    if p.kind is p.KEYWORD_ONLY and not star:
      arguments.append('*')
      star = True
    default = '' if p.default is p.empty else f'={p.default!r}'
    arguments.append(f'{p.name}{default}')
  lines = textwrap.wrap(
    ', '.join(arguments), 78, break_long_words=False, break_on_hyphens=False
  )
  return (
    f'sage_optax.{function.__name__}(\n'
    + textwrap.indent('\n'.join(lines), '  ')
    + '\n)'
  )


def _inline(text: str) -> str:
  """Reads Sphinx's roles and escapes within a line."""
  text = re.sub(r':math:`([^`]*)`', r'$\1$', text)
  return text.replace(r'\|', '|') if '$' not in text else text


def _body(text: str) -> str:
  """Paragraphs, and `.. math::` blocks as GitHub draws them."""
  out = []
  blocks = re.split(r'\n\s*\n', textwrap.dedent(text).strip('\n'))
  math = False
  for block in blocks:
    if block.strip() == '.. math::':
      math = True
    elif math and block.startswith('  '):
      inner = textwrap.dedent(block).strip()
      out.append(
        '```math\n\\begin{aligned}\n' + inner + '\n\\end{aligned}\n```'
      )
      math = False
    elif block.startswith('    ') or re.match(r'\s{2,}\S', block):
      out.append('```\n' + textwrap.dedent(block) + '\n```')
    elif re.match(r'[-*] ', block):
      out.append(_inline(block))
    else:
      out.append(_inline(' '.join(line.strip() for line in block.split('\n'))))
  return '\n\n'.join(out)


def _entries(text: str) -> list[tuple[str, str]]:
  """'name: text' entries, whose further lines are indented."""
  found = re.findall(
    r'^(\S[^:\n]*): (.*(?:\n[ ]+.*)*)', textwrap.dedent(text), re.MULTILINE
  )
  return [(name, ' '.join(body.split())) for name, body in found]


def _arguments(function, text: str) -> str:
  parameters = inspect.signature(function).parameters
  rows = ['| argument | default | |', '|---|---|---|']
  for name, meaning in _entries(text):
    default = parameters[name].default
    shown = (
      'required' if default is inspect.Parameter.empty else f'`{default!r}`'
    )
    escaped = _inline(meaning).replace('|', r'\|')
    rows.append(f'| `{name}` | {shown} | {escaped} |')
  return '\n'.join(rows)


def _raises(text: str) -> str:
  return '\n'.join(f'- `{name}`: {what}' for name, what in _entries(text))


def _references(text: str) -> str:
  blocks = re.split(r'\n\s*\n', textwrap.dedent(text).strip())
  return '\n'.join('- ' + ' '.join(block.split()) for block in blocks)
