"""SAGE's suite, 0.6B: 593,407,488 parameters, tied.

The shape is inferred from published sizes of the optimizer state; see
llama_270m.
"""

from configs import llama_270m
from train.config import Config


def get_config() -> Config:
  """Returns the configuration."""
  config = llama_270m.get_config()
  config.name = 'llama_0_6b'
  config.model.hidden_size = 1536
  config.model.intermediate_size = 4096
  config.model.num_layers = 14
  config.model.num_heads = 12
  return config
