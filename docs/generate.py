"""Writes docs/methods and docs/conformance.md: python -m docs.generate."""

import pathlib

from docs import conformance, pages

DOCS = pathlib.Path(__file__).parent


def main() -> None:
  (DOCS / 'methods').mkdir(exist_ok=True)
  for name, text in pages.all_pages().items():
    (DOCS / 'methods' / f'{name}.md').write_text(text)
  (DOCS / 'conformance.md').write_text(conformance.page())


if __name__ == '__main__':
  main()
