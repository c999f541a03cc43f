"""Continues training from the weights of a Hugging Face Llama.

`python -m train.hf import DIR WORKDIR` writes a configuration that fills in the
model; here it is that of llama_60m, 58,073,600 parameters. The data is plain
text, or chats and prompts with completions from `python -m train.prepare
--instructions`, where the loss covers only the answers. Rates, batch and length
below are customary for models of 1B to 8B parameters; we have not tuned them.
"""

from train.config import Config


def get_config() -> Config:
  """Returns the configuration, without a model."""
  config = Config()
  config.name = 'finetune'

  config.train.seq_len = 1024
  config.train.batch_size = 64
  config.train.steps = 1000

  # Recipes without a customary rate use a hundredth of the rate for training
  # from random weights, which is about AdamW's ratio.
  for recipe, rate in config.optimizer.learning_rates.items():
    config.optimizer.learning_rates[recipe] = rate / 100
  config.optimizer.learning_rates |= {
    'adamw': 2e-5,
    'lion': 4e-6,
    'sage': 4e-6,
    'sage_hybrid': 2e-5,
    'lion_hybrid': 2e-5,
    'muon': 2e-4,
  }
  config.optimizer.weight_decay = 0.0
  config.schedule.kind = 'cosine'
  config.schedule.warmup_fraction = 0.03
  config.schedule.final_fraction = 0.0

  config.eval.every = 100
  config.checkpoint.every = 200
  return config
