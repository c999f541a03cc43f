"""Shared by all benchmarks: the machine and versions, tables, documents."""

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from train import files

_ROOT = pathlib.Path(__file__).parent.parent
_PACKAGES = ('jax', 'jaxlib', 'optax', 'libtpu', 'torch')


def machine() -> dict[str, Any]:
  """Describes what the figures depend on: cores, memory, versions, commit."""
  pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  versions = {'python': platform.python_version()}
  for name in _PACKAGES:
    if importlib.util.find_spec(name):
      versions[name] = importlib.metadata.version(name)
  return {
    'date': datetime.date.today().isoformat(),
    'commit': _commit(),
    'cpu': _cpu(),
    'cores': len(os.sched_getaffinity(0)),
    'memory_gib': round(pages / 2**30),
    'huge_pages': 'hugetlb=1' in os.environ.get('GLIBC_TUNABLES', ''),
    'versions': versions,
  }


def caption(found: dict[str, Any]) -> str:
  """Returns the result of `machine()` as a line."""
  versions = ', '.join(f'{k} {v}' for k, v in found['versions'].items())
  pages = 'with' if found['huge_pages'] else 'without'
  return (
    f'{found["date"]}, commit {found["commit"]}; {found["cores"]} cores '
    f'({found["cpu"]}), {found["memory_gib"]} GiB, {pages} huge pages for '
    f'malloc; {versions}.'
  )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table; all columns but the first are numbers."""
  lines = [header, ['---', *('---:' for _ in header[1:])], *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def add_outputs(parser: argparse.ArgumentParser) -> None:
  """Adds the options --json and --markdown."""
  parser.add_argument(
    '--json', type=pathlib.Path, metavar='FILE', help='write all figures'
  )
  parser.add_argument(
    '--markdown',
    type=pathlib.Path,
    metavar='FILE',
    help='write the tables into a document, replacing the previous ones',
  )


def put(document: pathlib.Path, name: str, block: str) -> None:
  """Replaces the block between its markers, or appends it to the document."""
  old = document.read_text() if document.exists() else ''
  document.write_text(files.replace_block(old, 'benchmark', name, block))


def number(value: float | None, digits: int = 2) -> str:
  """Returns a number for a table; '-' if there is none."""
  return '-' if value is None else f'{value:,.{digits}f}'


def _cpu() -> str:
  """The name of the processor."""
  path = pathlib.Path('/proc/cpuinfo')
  text = path.read_text() if path.exists() else ''
  fields = dict(re.findall(r'^([\w ]+?)\s*: (.*)$', text, re.MULTILINE))
  return fields.get('model name') or platform.machine()


def _commit() -> str:
  """The commit of the source, and whether files differ from it."""

  def git(*args: str) -> str:
    command = ['git', '-C', str(_ROOT), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ''

  commit = git('rev-parse', '--short', 'HEAD') or 'unknown'
  changed = git('status', '--porcelain', '--', 'sage_optax', 'models', 'train')
  return f'{commit} with changes' if changed else commit
