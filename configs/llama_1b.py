"""C4 suite, 1B: 1,339,082,752 parameters, untied; see llama_60m."""

from configs import llama_60m
from train.config import Config


def get_config() -> Config:
  """Returns the configuration."""
  config = llama_60m.get_config()
  config.name = 'llama_1b'
  config.model.hidden_size = 2048
  config.model.intermediate_size = 5461
  config.model.num_layers = 24
  config.model.num_heads = 32
  config.model.remat = 'full'
  config.train.steps = 100000
  # Customary for this size; the rest is as in llama_60m.
  config.optimizer.learning_rates |= {'adamw': 5e-4, 'lion': 5e-5, 'sage': 5e-5}
  # Published: SCALE's paper, MuonEq's script.
  config.optimizer.learning_rates |= {'scale': 2e-4, 'muon_eq': 5e-4}
  return config
