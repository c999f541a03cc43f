"""Makes small changes of the code and checks that tests fail.

  python -m tests.mutate [--only NAME ...] [--list]

Each mutation of tests/support/mutations.py is made in a copy of the
repository, and its tests are run there, after they were run without it. The
command ends with status 1 if a mutation survives (the tests pass), its text is
not there, or its tests do not pass without it.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.support.mutations import MUTATIONS, Mutation

_ROOT = pathlib.Path(__file__).parents[1]
_SECONDS = 1200
# pytest's statuses.
_PASSED, _FAILED = 0, 1
_HUNG = -1


def main(args: list[str] | None = None) -> int:
  """Returns the exit status."""
  parser = argparse.ArgumentParser(
    'python -m tests.mutate', description=__doc__.split('\n')[0]
  )
  names = [mutation.name for mutation in MUTATIONS]
  parser.add_argument(
    '--only', nargs='+', choices=names, metavar='NAME', help='these only'
  )
  parser.add_argument('--list', action='store_true', help='print the names')
  options = parser.parse_args(args)
  if options.list:
    print('\n'.join(names))
    return 0
  found: dict[str, list[str]] = collections.defaultdict(list)
  with tempfile.TemporaryDirectory() as directory:
    copy = pathlib.Path(directory, 'copy')
    _copy(copy)
    passed: dict[tuple[str, str], int] = {}
    for mutation in MUTATIONS:
      if mutation.name in (options.only or names):
        began = time.monotonic()
        verdict = _try(mutation, copy, passed)
        found[verdict].append(mutation.name)
        seconds = time.monotonic() - began
        print(f'{verdict:13} {mutation.name} ({seconds:.0f} s)', flush=True)
  print(
    ', '.join(f'{len(names)} {verdict}' for verdict, names in found.items())
  )
  return 0 if found.keys() == {'caught'} else 1


def _copy(copy: pathlib.Path) -> None:
  """Copies what git tracks or does not ignore."""
  listing = ['git', 'ls-files', '--cached', '--others', '--exclude-standard']
  done = subprocess.run(
    listing, cwd=_ROOT, check=True, capture_output=True, text=True
  )
  for name in done.stdout.splitlines():
    if (_ROOT / name).is_file():
      (copy / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(_ROOT / name, copy / name)


def _try(
  mutation: Mutation, copy: pathlib.Path, passed: dict[tuple[str, str], int]
) -> str:
  """Returns 'caught', or what is wrong."""
  path = copy / mutation.file
  original = path.read_text() if path.exists() else ''
  if original.count(mutation.old) != 1:
    return 'text not once'
  tests = (mutation.tests, mutation.select)
  if tests not in passed:
    passed[tests] = _pytest(copy, *tests)
  if passed[tests] != _PASSED:
    return 'failed before'
  path.write_text(original.replace(mutation.old, mutation.new))
  try:
    status = _pytest(copy, *tests)
  finally:
    path.write_text(original)
  if status in (_FAILED, _HUNG):
    return 'caught'
  return 'SURVIVED' if status == _PASSED else 'tests broken'


def _pytest(copy: pathlib.Path, tests: str, select: str) -> int:
  """Runs tests in the copy; returns pytest's status."""
  command = [sys.executable, '-m', 'pytest', '-x', '-q', '-k', select]
  # A compiled module of the same second and size would be taken for the new.
  env = os.environ | {'PYTHONDONTWRITEBYTECODE': '1'}
  with subprocess.Popen(
    [*command, *shlex.split(tests)],
    cwd=copy,
    env=env,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  ) as process:
    try:
      return process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
      return _HUNG
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == '__main__':
  sys.exit(main())
