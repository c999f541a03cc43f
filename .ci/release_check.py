"""Builds and checks the sdist and the wheel in dist/: make release-check.

It checks the metadata, the files and requirements of the wheel, that the
version agrees with CHANGELOG.md and CITATION.cff, and that the README's example
runs in a fresh environment with only the wheel and its dependencies.
"""

import email
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile

_ROOT = pathlib.Path(__file__).parent.parent
_DIST = _ROOT / 'dist'


def main() -> None:
  shutil.rmtree(_DIST, ignore_errors=True)
  # The wheel is built from the sdist, as in an installation from the sdist.
  _python('-m', 'build', '--no-isolation', str(_ROOT))
  (wheel,) = _DIST.glob('*.whl')
  (sdist,) = _DIST.glob('*.tar.gz')
  _python('-m', 'twine', 'check', '--strict', str(wheel), str(sdist))
  version = _check_wheel(wheel)
  _check_sdist(sdist)
  _check_version(version)
  _try_wheel(wheel)
  print(f'{wheel.name} and {sdist.name} are ready for release.')


def _python(*arguments: str, python: str = sys.executable, **kwargs) -> None:
  subprocess.run([python, *arguments], check=True, **kwargs)


def _check_wheel(wheel: pathlib.Path) -> str:
  """Contents and metadata; returns the version."""
  with zipfile.ZipFile(wheel) as archive:
    files = archive.namelist()
    (path,) = (f for f in files if f.endswith('.dist-info/METADATA'))
    metadata = email.message_from_bytes(archive.read(path))
  packages = {f.split('/')[0].split('-')[0] for f in files}
  _expect('top-level folders of the wheel', packages, {'sage_optax'})
  for name in ('sage_optax/py.typed', 'licenses/LICENSE'):
    _expect(f'{name} in the wheel', any(f.endswith(name) for f in files), True)
  required = {
    re.match(r'[\w.-]+', line).group()  # type: ignore[union-attr]
    for line in metadata.get_all('Requires-Dist', [])
    if 'extra ==' not in line
  }
  _expect('dependencies', required, {'jax', 'optax'})
  return metadata['Version']


def _check_sdist(sdist: pathlib.Path) -> None:
  with tarfile.open(sdist) as archive:
    names = {n.split('/')[1] for n in archive.getnames() if '/' in n}
  expected = {'sage_optax', 'README.md', 'LICENSE', 'pyproject.toml'}
  _expect('files of the sdist', names - {'PKG-INFO', '.gitignore'}, expected)


def _check_version(version: str) -> None:
  citation = (_ROOT / 'CITATION.cff').read_text()
  changelog = (_ROOT / 'CHANGELOG.md').read_text()
  cited = re.search(r'^version: (\S+)$', citation, re.MULTILINE)
  _expect('version in CITATION.cff', cited and cited[1], version)
  latest = re.search(r'^## \[(\d\S*)\]', changelog, re.MULTILINE)
  _expect('latest version in CHANGELOG.md', latest and latest[1], version)


def _try_wheel(wheel: pathlib.Path) -> None:
  """Installs the wheel into an empty environment and runs the example."""
  readme = (_ROOT / 'README.md').read_text()
  blocks = re.findall(r'```python\n(.*?)```', readme, re.DOTALL)
  example = next(block for block in blocks if 'clip_by_global_norm' in block)
  script = (
    'import jax.numpy as jnp\n'
    "params = grads = {'embed': {'embedding': jnp.ones((8, 4))}}\n"
    f'{example}\n'
    "assert (params['embed']['embedding'] < 1).all()\n"
    'import importlib.metadata as metadata\n'
    "assert sage_optax.__version__ == metadata.version('sage-optax')\n"
  )
  with tempfile.TemporaryDirectory() as folder:
    venv.create(folder, with_pip=True)
    python = str(pathlib.Path(folder) / 'bin' / 'python')
    constraints = str(_ROOT / 'constraints.txt')
    install = ('-m', 'pip', 'install', '-q', '-c', constraints, str(wheel))
    _python(*install, python=python)
    _python('-c', script, python=python, cwd=folder)


def _expect(what: str, got, expected) -> None:
  if got != expected:
    sys.exit(f'Release check: {what}: got {got}, expected {expected}.')


if __name__ == '__main__':
  main()
