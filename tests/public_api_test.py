"""The public API is the one recorded in public_api.txt."""

import difflib
import pathlib

from docs import api

_RECORD = pathlib.Path(__file__).parent / 'public_api.txt'


def test_public_api_is_the_recorded_one():
  recorded = _RECORD.read_text().splitlines()
  diff = difflib.unified_diff(
    recorded, api.listing().splitlines(), 'recorded', 'now', n=0, lineterm=''
  )
  changes = '\n'.join(diff)
  assert not changes, (
    f'The public API changed:\n{changes}\nIf it was meant to, run '
    '`python -m docs.generate api` and note the change in CHANGELOG.md.'
  )
