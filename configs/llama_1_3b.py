"""SAGE's suite, 1.3B: 1,319,684,096 parameters, tied.

The shape is inferred from published sizes of the optimizer state. It reproduces
9.83 GiB for AdamW and 0.98 GiB for SAGE-hybrid.
"""

from configs import llama_270m
from train.config import Config


def get_config() -> Config:
  """Returns the configuration."""
  config = llama_270m.get_config()
  config.name = 'llama_1_3b'
  config.model.hidden_size = 2048
  config.model.intermediate_size = 5461
  config.model.num_layers = 24
  config.model.num_heads = 32
  config.model.num_kv_heads = 8
  config.model.remat = 'full'
  return config
