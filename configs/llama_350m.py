"""C4 suite, 350M: 367,969,280 parameters, untied; see llama_60m."""

from configs import llama_60m
from train.config import Config


def get_config() -> Config:
  """Returns the configuration."""
  config = llama_60m.get_config()
  config.name = 'llama_350m'
  config.model.hidden_size = 1024
  config.model.intermediate_size = 2736
  config.model.num_layers = 24
  config.model.num_heads = 16
  config.train.steps = 60000
  config.optimizer.learning_rates |= {'muon_eq': 3e-3}  # MuonEq's script
  return config
