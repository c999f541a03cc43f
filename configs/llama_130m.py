"""C4 suite, 130M: 134,105,856 parameters, untied; see llama_60m."""

from configs import llama_60m
from train.config import Config


def get_config() -> Config:
  """Returns the configuration."""
  config = llama_60m.get_config()
  config.name = 'llama_130m'
  config.model.hidden_size = 768
  config.model.intermediate_size = 2048
  config.model.num_layers = 12
  config.model.num_heads = 12
  config.train.steps = 20000
  return config
