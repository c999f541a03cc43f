"""C4 suite, 60M: 58,073,600 parameters, untied.

The setting shared by the papers of GaLore, APOLLO, Fira and SCALE: T5's
tokenizer with 32000 pieces, sequences of 256 tokens, 512 per step, 10 %
warm-up, cosine decay to 10 %, no weight decay.
"""

from train.config import Config


def get_config() -> Config:
  """Returns the configuration."""
  config = Config()
  config.name = 'llama_60m'

  config.model.vocab_size = 32000
  config.model.hidden_size = 512
  config.model.intermediate_size = 1376
  config.model.num_layers = 8
  config.model.num_heads = 8
  config.model.tie_embeddings = False

  config.train.seq_len = 256
  config.train.batch_size = 512
  config.train.steps = 10000

  # Published for this suite: SinkGD 0.02, with 0.05 on matrices; APOLLO, GaLore
  # and Fira 0.01. AdamW's and Lion's are customary for the size; the rest are
  # the defaults.
  config.optimizer.learning_rates |= {
    'adamw': 1e-3,
    'lion': 1e-4,
    'sage': 1e-4,
    'sinkgd': 2e-2,
    'apollo': 1e-2,
    'apollo_mini': 1e-2,
    'galore': 1e-2,
    'fira': 1e-2,
  }
  config.optimizer.weight_decay = 0.0
  config.schedule.kind = 'cosine'
  config.schedule.warmup_fraction = 0.1
  config.schedule.final_fraction = 0.1
  return config
