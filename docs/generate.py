"""Writes the generated files, or some of them.

python -m docs.generate [NAME ...]

- api: tests/public_api.txt
- methods: docs/methods/*.md
- configuration: docs/configuration.md
- conformance: docs/conformance.md, which runs every recorded trajectory
- picture: docs/recipes.png
"""

import pathlib
import sys

from docs import api, conformance, pages, picture
from train.config import help as config_help

_DOCS = pathlib.Path(__file__).parent


def _write_api() -> None:
  (_DOCS.parent / 'tests' / 'public_api.txt').write_text(api.listing())


def _write_methods() -> None:
  (_DOCS / 'methods').mkdir(exist_ok=True)
  for name, text in pages.all_pages().items():
    (_DOCS / 'methods' / f'{name}.md').write_text(text)


def _write_configuration() -> None:
  (_DOCS / 'configuration.md').write_text(config_help.markdown())


def _write_conformance() -> None:
  (_DOCS / 'conformance.md').write_text(conformance.page())


def _draw_picture() -> None:
  picture.draw(_DOCS / 'recipes.png')


_PARTS = {
  'api': _write_api,
  'methods': _write_methods,
  'configuration': _write_configuration,
  'conformance': _write_conformance,
  'picture': _draw_picture,
}


def main(names: list[str]) -> None:
  """Writes the files named, or all."""
  if unknown := set(names) - set(_PARTS):
    sys.exit(f'Unknown: {", ".join(unknown)}; use {", ".join(_PARTS)}.')
  for name in names or _PARTS:
    _PARTS[name]()


if __name__ == '__main__':
  main(sys.argv[1:])
