"""Separates Python source into its docstrings and the rest."""

import ast
import inspect
import re

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | _Definition
_Named = list[tuple[str, _Documented]]
# Definitions hide in statements (if, try, with), never in expressions.
_BLOCKS = ('body', 'handlers', 'orelse', 'finalbody', 'cases')
_MIN_CHARACTERS = 20


def take_apart(text: str, module: str, seen: set[str]) -> tuple[str, str]:
  """Separates the docstrings of a module from its code.

  Args:
    text: The source.
    module: The module's dotted name.
    seen: Docstrings seen before, which are omitted; updated in place.

  Returns:
    The docstrings as one text, each under its signature, and the source of the
    same program without docstrings and without the license at its top.

  Raises:
    SyntaxError: If the text is not Python.
  """
  nodes = _documented(ast.parse(text), module)
  return _render(nodes, seen), _strip(text, nodes)


def _documented(tree: ast.Module, module: str) -> _Named:
  """All nodes that may have a docstring with qualified names, in order."""
  found: _Named = []
  stack: list[tuple[str, ast.AST]] = [(module, tree)]
  while stack:
    name, node = stack.pop()
    if isinstance(node, _Documented):
      found.append((name, node))
    inside = [
      (
        f'{name}.{child.name}' if isinstance(child, _Definition) else name,
        child,
      )
      for block in _BLOCKS
      # A lambda's body is a single node, but no lambda is a statement.
      for child in getattr(node, block, ())
    ]
    stack.extend(reversed(inside))
  return found


def _render(nodes: _Named, seen: set[str]) -> str:
  parts = []
  for name, node in nodes:
    text = (ast.get_docstring(node) or '').strip()
    key = ' '.join(text.split())
    if len(text) < _MIN_CHARACTERS or key in seen:
      continue
    seen.add(key)
    parts.append(f'{_signature(name, node)}\n\n{inspect.cleandoc(text)}\n')
  # An escape can make a lone surrogate, which no encoding writes.
  return '\n\n'.join(parts).encode('utf-8', 'replace').decode()


def _signature(name: str, node: _Documented) -> str:
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
    return f'{name}({ast.unparse(node.args)})'
  return f'class {name}' if isinstance(node, ast.ClassDef) else name


def _strip(text: str, nodes: _Named) -> str:
  # Not splitlines(): it also cuts at form feeds, which ast does not count.
  lines = text.split('\n')
  dropped = set(range(_license(lines)))
  for _, node in nodes:
    if ast.get_docstring(node, clean=False) is None:
      continue
    doc = node.body[0]
    first, last = doc.lineno - 1, (doc.end_lineno or doc.lineno) - 1
    before = lines[first].encode()[: doc.col_offset]
    after = lines[last].encode()[doc.end_col_offset :]
    if before.strip() or not re.fullmatch(rb'\s*(#.*)?', after):
      continue  # It shares its line with a statement.
    dropped.update(range(first, last + 1))
    if len(node.body) == 1 and not isinstance(node, ast.Module):
      lines[first] = f'{before.decode()}...'
      dropped.discard(first)
  kept = [line for i, line in enumerate(lines) if i not in dropped]
  return '\n'.join(kept).strip('\n') + '\n'


def _license(lines: list[str]) -> int:
  """The number of lines at the head that are comments about rights."""
  size = 0
  while size < len(lines) and (not lines[size] or lines[size].startswith('#')):
    size += 1
  head = '\n'.join(lines[:size]).lower()
  return size if 'licen' in head or 'copyright' in head else 0
