"""Writes the configuration of a run that starts from imported weights."""

import pathlib

import sage_optax
from models import layers
from train import workdir as workdir_lib
from train.data import tokenizer as tokenizer_lib
from train.errors import UserError
from train.hf import files, pretrained

_TEMPLATE = '''"""Starts from the weights in config.init.path."""

from configs import finetune
from train.config import Config


def get_config() -> Config:
  """Returns the configuration."""
  config = finetune.get_config()
  config.name = {name!r}
  config.workdir = {workdir!r}
{model}
  config.init.path = {source!r}
{tokenizer}  config.optimizer.recipe = {recipe!r}
  return config
'''


def write_config(
  source: pathlib.Path, workdir: pathlib.Path, recipe: str
) -> str:
  """Checks names and shapes of all weights, and writes WORKDIR/config.py.

  Args:
    source: Directory of a Hugging Face Llama.
    workdir: Working directory of the new run; created if necessary.
    recipe: The optimizer of the run.

  Returns:
    A message with the command that starts the run.

  Raises:
    UserError: If the model is not supported, a tensor is missing or has
      another shape, there is no such recipe, or config.py exists.
  """
  if recipe not in sage_optax.recipe_names():
    raise UserError(
      f'unknown recipe {recipe!r}: use one of '
      f'{", ".join(sage_optax.recipe_names())}'
    )
  model = files.read_config(source)
  pretrained.readers(source, model)  # Checks names and shapes.
  tokenizer = ''
  if any((source / name).exists() for name in tokenizer_lib.NAMES):
    tokenizer_lib.load(source)  # Raises UserError if it cannot be used.
    tokenizer = f'  config.data.tokenizer = {str(source.absolute())!r}\n'
  target = workdir / workdir_lib.CONFIG_FILE
  if target.exists():
    raise UserError(f'{target} exists: remove it, or choose another WORKDIR')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    target.write_text(
      _TEMPLATE.format(
        source=str(source.absolute()),
        name=workdir.absolute().name,
        workdir=str(workdir),
        model='\n'.join(_assignments(model)),
        tokenizer=tokenizer,
        recipe=recipe,
      ),
      encoding='utf-8',
    )
  except OSError as error:
    raise UserError(
      f'cannot write {target} ({error.strerror}): choose another WORKDIR'
    ) from error
  return (
    f'Wrote {target}. Prepare text with the same tokenizer (python -m '
    'train.prepare), then start with\n'
    f'python -m train.main --config {target} --config.data.path=SHARDS'
  )


def _assignments(model: layers.LlamaConfig) -> list[str]:
  values = {
    'vocab_size': model.vocab_size,
    'hidden_size': model.hidden_size,
    'intermediate_size': model.intermediate_size,
    'num_layers': model.num_layers,
    'num_heads': model.num_heads,
    'num_kv_heads': model.num_kv_heads,
    'tie_embeddings': model.tie_embeddings,
    'rope_theta': float(model.rope_theta),
    'rms_norm_eps': model.rms_norm_eps,
  }
  scaling = model.rope_scaling
  if scaling is not None:
    values |= {
      'rope_factor': scaling.factor,
      'rope_low_freq_factor': scaling.low_freq_factor,
      'rope_high_freq_factor': scaling.high_freq_factor,
      'rope_original_positions': scaling.original_positions,
    }
  return [f'  config.model.{name} = {x!r}' for name, x in values.items()]
