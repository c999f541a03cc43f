"""Writes the generated pages of docs/ again: python -m docs.generate."""

import pathlib

from docs import conformance, pages
from train.config import help as config_help

DOCS = pathlib.Path(__file__).parent


def main() -> None:
  (DOCS / 'methods').mkdir(exist_ok=True)
  for name, text in pages.all_pages().items():
    (DOCS / 'methods' / f'{name}.md').write_text(text)
  (DOCS / 'conformance.md').write_text(conformance.page())
  (DOCS / 'configuration.md').write_text(config_help.markdown())


if __name__ == '__main__':
  main()
