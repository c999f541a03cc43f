"""C4 suite, 7B: 6,738,415,616 parameters, untied; see llama_60m."""

from configs import llama_60m
from train.config import Config


def get_config() -> Config:
  """Returns the configuration."""
  config = llama_60m.get_config()
  config.name = 'llama_7b'
  config.model.hidden_size = 4096
  config.model.intermediate_size = 11008
  config.model.num_layers = 32
  config.model.num_heads = 32
  config.model.remat = 'full'
  config.train.steps = 150000
  # Customary for this size; the rest is as in llama_60m.
  config.optimizer.learning_rates |= {'adamw': 5e-4, 'lion': 5e-5, 'sage': 5e-5}
  return config
