"""Formats a plan as text, Markdown and JSON."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from models import llama
from train.config import model_config
from train.plan import cost
from train.plan.measure import Measurement
from train.plan.sweep import RecipePlan, Sweep
from train.plan.targets import GIB, Chip

_WIDTH = 118
_BOUNDS = {'compute': 'c', 'memory': 'm', 'network': 'n'}


def times(measurement: Measurement, device: Chip) -> dict[str, float]:
  """Returns the seconds of a step at the device's peak rates, by resource."""
  if measurement.bytes is None:
    return {}
  flops = measurement.flops or measurement.model_flops
  work = {
    'compute': (flops, device.flops),
    'memory': (measurement.bytes, device.hbm),
    'network': (measurement.sent, device.link),
  }
  return {name: n / rate for name, (n, rate) in work.items() if rate}


def headline(sweep: Sweep) -> str:
  """Describes the plan in a sentence."""
  config, target = sweep.config, sweep.target
  room = target.device.memory
  each = f' of {room / GIB:.1f} GiB' if room else ''
  names = zip(('data', 'fsdp', 'tensor'), sweep.mesh, strict=True)
  mesh = ' x '.join(f'{name}={n}' for name, n in names)
  train = config.train
  parameters = llama.num_params(model_config(config, target.chip.platform))
  return (
    f'{config.name} ({parameters:,} parameters) on {target.name}: '
    f'{target.num_devices} devices{each}, mesh {mesh}, batch '
    f'{train.batch_size} x {train.seq_len} tokens, microbatch '
    f'{train.microbatch or train.batch_size}, remat {config.model.remat}'
  )


def columns(rows: Sequence[RecipePlan], device: Chip) -> list[tuple[str, str]]:
  """Returns headers and units of the table."""
  kinds = [
    k for k in cost.KINDS if any(r.measurement.collectives.get(k) for r in rows)
  ]
  result = [('recipe', '')]
  result += [(n, 'GiB') for n in ('params', 'grads', 'state', 'temp', 'peak')]
  if device.memory:
    result.append(('of chip', '%'))
  result += [('FLOP', 'T'), ('bytes', 'GB')]
  result += [(_SHORT.get(kind, kind), 'GB') for kind in kinds]
  if device.flops:
    result.append(('time', 'ms'))
  if any(r.largest for r in rows):
    result.append(('batch', 'most'))
  return result


_SHORT = {
  'all-gather': 'gather',
  'all-reduce': 'reduce',
  'reduce-scatter': 'r-scat',
  'all-to-all': 'a-to-a',
  'collective-permute': 'permute',
}


def cells(row: RecipePlan, device: Chip, headers: Sequence[str]) -> list[str]:
  """Returns the texts of a row, for the headers of `columns`."""
  m = row.measurement
  compiled = m.arguments > 0
  values = {
    'recipe': m.recipe,
    **{n: _gib(getattr(m, n)) for n in ('params', 'grads', 'state', 'peak')},
    'temp': _gib(m.temporaries),
    'batch': str(row.largest.batch_size) if row.largest else '-',
  }
  if device.memory:
    values['of chip'] = f'{100 * m.peak / device.memory:.0f}'
    values['of chip'] += '' if m.fits else '!'
  for kind in cost.KINDS:
    values[_SHORT.get(kind, kind)] = _number(m.collectives.get(kind, 0) / 1e9)
  values['FLOP'] = _number((m.flops or m.model_flops) / 1e12)
  values['bytes'] = values['time'] = '-'
  if m.bytes is not None:
    values['bytes'] = _number(m.bytes / 1e9)
  seconds = times(m, device)
  if seconds:
    bound = max(seconds, key=lambda name: seconds[name])
    values['time'] = f'{1e3 * seconds[bound]:.0f} {_BOUNDS[bound]}'
  known = {'recipe', 'params', 'grads', 'state', 'temp', 'peak', 'of chip'}
  return [
    values[h] if compiled or h in known | {'batch'} else '-' for h in headers
  ]


def _number(value: float) -> str:
  """Formats three significant digits."""
  if value >= 100:
    return f'{value:.0f}'
  return f'{value:.1f}' if value >= 10 else f'{value:.3g}'


def _gib(size: float) -> str:
  value = size / GIB
  return f'{value:.3f}' if abs(value) >= 0.1 else f'{value:.3g}'


def text(rows: Sequence[RecipePlan], sweep: Sweep) -> str:
  """Returns the table for a terminal."""
  headers = columns(rows, sweep.target.device)
  lines = [[h for h, _ in headers], [unit for _, unit in headers]]
  names = lines[0]
  lines += [cells(row, sweep.target.device, names) for row in rows]
  table = align(lines)
  remarks = [
    textwrap.fill(line, _WIDTH, subsequent_indent='  ')
    for line in footers(rows, sweep)
  ]
  head = textwrap.fill(headline(sweep), _WIDTH)
  return '\n'.join([head, '', *table, '', *remarks])


def align(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
  """Aligns texts: the first columns to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) if i < left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  ]


def markdown(rows: Sequence[RecipePlan], sweep: Sweep) -> str:
  """Returns the table for a document."""
  headers = columns(rows, sweep.target.device)
  names = [h for h, _ in headers]
  lines = [
    f'{headline(sweep)}.',
    '',
    _row([f'{h}, {unit}' if unit else h for h, unit in headers]),
    _row(['---', *('---:' for _ in names[1:])]),
    *(_row(cells(row, sweep.target.device, names)) for row in rows),
    '',
    *(f'- {line}' for line in footers(rows, sweep)),
  ]
  return '\n'.join(lines)


def _row(texts: Sequence[str]) -> str:
  return '| ' + ' | '.join(texts) + ' |'


def footers(rows: Sequence[RecipePlan], sweep: Sweep) -> list[str]:
  """Returns the notes below the table."""
  device = sweep.target.device
  lines = ['All figures are per device and per step.']
  if device.flops:
    lines.append(
      'time is a lower bound: the largest of FLOP / '
      f'{device.flops / 1e12:g} T/s (c), bytes / {(device.hbm or 0) / 1e9:g} '
      f'GB/s (m) and bytes sent / {(device.link or 0) / 1e9:g} GB/s (n), with '
      'published peak rates and perfect overlap.'
    )
  if sweep.target.chip.platform == 'gpu':
    lines.append("FLOP are the model's only: products are library calls here.")
  notes: dict[str, list[str]] = {}
  for row in rows:
    for note in row.measurement.notes:
      notes.setdefault(note, []).append(row.measurement.recipe)
  everyone = [row.measurement.recipe for row in rows]
  for note, recipes in notes.items():
    who = 'all recipes' if recipes == everyone else ', '.join(recipes)
    lines.append(f'{who}: {note}.')
  lines += _renewals(rows)
  lines += _misfits(rows, device)
  versions = rows[0].measurement.versions.items()
  lines.append(
    'Compiled by ' + ', '.join(f'{k} {v}' for k, v in versions) + '.'
  )
  return lines


def _renewals(rows: Sequence[RecipePlan]) -> list[str]:
  """Reports the cost of steps that take the longer branch of conditionals."""
  lines = []
  for row in rows:
    other = row.measurement.renewal
    if other and other['flops']:
      read = f'{_number(other["bytes"] / 1e9)} GB, '
      lines.append(
        f'{row.measurement.recipe}: a step that renews projectors (the longer '
        f'branch of conditionals): {_number(other["flops"] / 1e12)} T FLOP, '
        f'{"" if row.measurement.bytes is None else read}collectives '
        f'{_number(sum(other["collectives"].values()) / 1e9)} GB.'
      )
  return lines


def _misfits(rows: Sequence[RecipePlan], device: Chip) -> list[str]:
  fitting = [r.measurement.recipe for r in rows if r.measurement.fits]
  lines = []
  for row in rows:
    m = row.measurement
    if m.fits:
      continue
    options = [f'one of {", ".join(fitting)}'] if fitting else []
    options += row.advice
    would = '; '.join(options) or 'no change that was tried'
    lines.append(
      f'! {m.recipe} does not fit: it needs {m.peak / GIB:.2f} GiB of '
      f'{(device.memory or 0) / GIB:.1f}. These would fit: {would}.'
    )
  return lines


def collectives(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the table of the optimizers' communication."""
  lines = [
    (
      *('recipe', 'parameter', 'shape', 'sharded', 'collectives', 'KB'),
      *('largest', 'only vectors'),
    )
  ]
  for row in rows:
    counts = ', '.join(f'{n} {kind}' for kind, n in row['counts'].items())
    lines.append(
      (
        row['recipe'],
        row['path'].removeprefix('layers/').removesuffix('/kernel'),
        'x'.join(map(str, row['shape'])),
        ','.join(str(axis or '-') for axis in row['spec']),
        counts or 'none',
        f'{sum(row["bytes"].values()) / 1e3:,.0f}',
        f'{row["largest"]:,}',
        'yes' if row['largest'] <= row['vectors'] else 'no',
      )
    )
  return '\n'.join(
    [
      'Updates of one parameter of each kind, compiled alone: collectives, '
      'bytes per device, and the size of the largest array sent.',
      '',
      *align(lines, left=5),
      *dict.fromkeys(
        f'{row["recipe"]}: {note}.' for row in rows for note in row['notes']
      ),
    ]
  )


def to_json(
  rows: Sequence[RecipePlan], sweep: Sweep, updates: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """Returns all figures, for json.dumps."""
  device = sweep.target.device
  return {
    'name': sweep.config.name,
    'topology': sweep.target.name,
    'devices': sweep.target.num_devices,
    'device': dataclasses.asdict(device),
    'mesh': dict(zip(('data', 'fsdp', 'tensor'), sweep.mesh, strict=True)),
    'seq_len': sweep.config.train.seq_len,
    'rows': [
      {
        **dataclasses.asdict(row.measurement),
        'temporaries': row.measurement.temporaries,
        'share': row.measurement.peak / device.memory
        if device.memory
        else None,
        'seconds_at_peak': times(row.measurement, device),
        'largest_batch': row.largest.batch_size if row.largest else None,
        'advice': row.advice,
        'compiler_memory': row.memory,
      }
      for row in rows
    ],
    'optimizer_collectives': list(updates),
  }
