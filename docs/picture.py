"""Draws docs/recipes.png from the table of README.md."""

import pathlib
import re

_ROOT = pathlib.Path(__file__).parent.parent


def draw(path: pathlib.Path) -> None:
  """State and step time per recipe, by size of the state."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  rows = sorted(_rows(), key=lambda row: (-row[1], row[2]))
  names, states, steps = zip(*rows, strict=True)
  colors = ['C3' if name == 'sage_hybrid' else '0.6' for name in names]
  figure = Figure(figsize=(8, 4.6), dpi=130, layout='constrained')
  left, right = figure.subplots(1, 2, sharey=True)
  left.barh(names, states, color=colors)
  left.set_xlabel('optimizer state at 1.3B parameters, float32, GiB')
  right.scatter(steps, names, color=colors, zorder=2)
  right.axvline(1, color='k', linewidth=0.8, linestyle='--')
  right.set_xscale('log')
  right.set_xticks([0.5, 1, 2, 5, 10, 20, 50], minor=False)
  right.set_xticklabels(['0.5', '1', '2', '5', '10', '20', '50'])
  right.minorticks_off()
  right.set_xlabel('step on CPU, relative to optax.adamw')
  right.grid(color='0.9')
  for axes, values in ((left, states), (right, steps)):
    axes.spines[['top', 'right']].set_visible(False)
    for name, value in zip(names, values, strict=True):
      axes.annotate(
        f'{value:.2f}' if value < 10 else f'{value:.0f}',
        (value, name),
        xytext=(5, 0),
        textcoords='offset points',
        va='center',
        fontsize=7,
        bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5},
      )
  left.margins(x=0.1)
  right.margins(x=0.12)
  FigureCanvasAgg(figure).print_png(str(path))


def _rows() -> list[tuple[str, float, float]]:
  """Recipe, GiB of state and relative step time."""
  found = re.findall(
    r'^\| `(\w+)` \|.*\| ([\d.]+) GiB \| ([\d.]+) \|$',
    (_ROOT / 'README.md').read_text(),
    re.MULTILINE,
  )
  return [(name, float(state), float(step)) for name, state, step in found]
