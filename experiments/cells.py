"""The cells of the studies: models and amounts of data."""

import dataclasses

from configs import quickstart
from train import config as config_lib
from train.config import Config


@dataclasses.dataclass(frozen=True)
class Cell:
  """A model, its data and the length of a run.

  Attributes:
    name: name of the cell.
    kind: 'bigram', 'llama' or 'vit'.
    vocab_size: entries of the byte-level BPE and rows of the table; for a
      vision transformer, the number of classes.
    width: number of features.
    tokens: targets per step; for a vision transformer, images per step.
    steps: steps of a run.
    layers: layers of a Llama.
    seq_len: sequence length of a Llama.
    tied: whether the table is also the head.
    microbatch: sequences differentiated at a time; affects only the speed.
    evaluations: number of points of the curve.
    data: directory of shards; '' for the bundled text.
  """

  name: str
  kind: str
  vocab_size: int
  width: int
  tokens: int
  steps: int
  layers: int = 0
  seq_len: int = 1
  tied: bool = True
  microbatch: int | None = None
  evaluations: int = 10
  data: str = ''

  @property
  def about(self) -> str:
    """A model of text, in words."""
    if self.kind == 'bigram':
      return f'a toy model of bigrams, vocabulary {self.vocab_size}'
    tied = 'tied' if self.tied else 'untied'
    return (
      f'a Llama, {self.layers} layers of width {self.width}, {tied}, '
      f'vocabulary {self.vocab_size}'
    )


def config_of(cell: Cell) -> Config:
  """The trainer's configuration of a cell of text, without an optimizer."""
  config = quickstart.get_config()
  config.name = cell.name
  config.model.vocab_size = config.data.vocab_size = cell.vocab_size
  if cell.data:
    config.data.source, config.data.path = 'shards', cell.data
  config.model.hidden_size = cell.width
  config.model.intermediate_size = 3 * cell.width
  config.model.num_layers = max(cell.layers, 1)
  config.model.num_heads = max(cell.width // 32, 1)
  config.model.tie_embeddings = cell.tied
  config.model.remat = 'none'
  config.train.seq_len = cell.seq_len
  config.train.batch_size = cell.tokens // cell.seq_len
  config.train.microbatch = cell.microbatch
  config.train.steps = cell.steps
  config.train.platform = 'auto'
  config.optimizer.recipe = 'adamw'
  # A schedule of peak 1: every arm multiplies it by its own rates.
  config.optimizer.learning_rate = 1.0
  config.schedule.kind = 'cosine'
  config.schedule.warmup_fraction = 0.1
  config.schedule.final_fraction = 0.0
  config.eval.batch_size = 16
  config_lib.validate(config)
  config_lib.complete(config)
  return config


def _toy(vocab_size, per_row=0.5, name=None):
  return Cell(
    name or f'toy_v{vocab_size}',
    kind='bigram',
    vocab_size=vocab_size,
    width=32,
    tokens=int(vocab_size * per_row),
    steps=300,
  )


_SMALL = Cell(
  'small_tied',
  kind='llama',
  vocab_size=4096,
  width=64,
  tokens=2048,
  steps=1000,
  layers=2,
  seq_len=128,
  microbatch=4,
)
_MEDIUM = Cell(
  'medium_tied',
  kind='llama',
  vocab_size=8192,
  width=128,
  tokens=4096,
  steps=1000,
  layers=4,
  seq_len=256,
  microbatch=4,
)

CELLS = {
  cell.name: cell
  for cell in (
    *(_toy(v) for v in (512, 1024, 2048, 4096, 16384)),
    *(
      _toy(1024, per_row, f'toy_v1024_t{per_row:g}')
      for per_row in (0.125, 2, 8)
    ),
    _SMALL,
    dataclasses.replace(_SMALL, name='small_untied', tied=False),
    dataclasses.replace(_SMALL, name='small_tied_x0.5', steps=500),
    dataclasses.replace(_SMALL, name='small_tied_x2', steps=2000),
    _MEDIUM,
    Cell('digits', kind='vit', vocab_size=10, width=32, tokens=64, steps=400),
  )
}
