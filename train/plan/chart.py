"""Draws a plan."""

import pathlib
from collections.abc import Sequence

import numpy as np

from train.plan.sweep import RecipePlan, Sweep
from train.plan.targets import GIB

_PARTS = {
  'params': ('parameters', 'C0'),
  'grads': ('gradients', 'C2'),
  'state': ('optimizer state', 'C3'),
  'temporaries': ('temporaries', '0.75'),
}


def stacked_bars(
  rows: Sequence[RecipePlan], sweep: Sweep, path: pathlib.Path
) -> None:
  """Draws the peak memory of every recipe as stacked bars.

  Args:
    rows: The recipes.
    sweep: The sweep that measured them.
    path: The PNG to write.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  height = 1.6 + 0.34 * len(rows)
  figure = Figure(figsize=(8, height), dpi=150, layout='constrained')
  canvas = FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  found = [row.measurement for row in rows]
  places = np.arange(len(rows))
  left = np.zeros(len(rows))
  for name, (label, color) in _PARTS.items():
    sizes = np.maximum([getattr(m, name) / GIB for m in found], 0)
    axes.barh(places, sizes, left=left, label=label, color=color, height=0.7)
    left += sizes
  for place, m in zip(places, found, strict=True):
    mark = f'{m.peak / GIB:.3g}' + ('' if m.fits else ' does not fit')
    axes.annotate(
      mark,
      (left[place], place),
      xytext=(4, 0),
      textcoords='offset points',
      va='center',
      fontsize=8,
    )
  room = sweep.target.device.memory
  if room and room / GIB < 2.5 * left.max():
    axes.axvline(room / GIB, color='k', linestyle='--', linewidth=1)
    axes.annotate(
      f'{room / GIB:.0f} GiB',
      (room / GIB, 0),
      xytext=(-4, 0),
      textcoords='offset points',
      ha='right',
      va='center',
      fontsize=8,
      rotation=90,
    )
  axes.set_yticks(places, [m.recipe for m in found])
  axes.invert_yaxis()
  axes.margins(x=0.14)
  axes.set_xlabel('GiB per device at the peak')
  axes.set_title(
    f'{sweep.config.name} on {sweep.target.name}, batch '
    f'{sweep.config.train.batch_size} x {sweep.config.train.seq_len}'
  )
  axes.spines[['top', 'right']].set_visible(False)
  figure.legend(frameon=False, fontsize=8, ncols=4, loc='outside lower center')
  part = path.with_suffix('.part')
  canvas.print_png(str(part))
  part.replace(path)
