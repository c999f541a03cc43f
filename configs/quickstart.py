"""A small Llama that trains on the bundled text, in minutes on two CPU cores.

1,377,408 parameters, tied embeddings, a byte-level BPE of 4096 tokens.
"""

from train.config import Config

# Peak learning rate, its factor for matrices, and b2: from our study of a Llama
# of width 64 (docs/evidence.md).
_TUNED = {
  'adamw': (6.4e-2, 0.125, 0.99),
  'lion_hybrid': (1.6e-2, 0.5, 0.95),
  'muon': (4.5e-2, 0.35, 0.99),
  'rms_muon': (6.4e-2, 0.25, 0.99),
  'sage_hybrid': (8e-3, 0.5, 0.95),
  'sage_muon': (8e-3, 2.0, 0.95),
  'sinkgd': (9.05e-2, 0.0442, 0.99),
}


def get_config() -> Config:
  """Returns the configuration."""
  config = Config()
  config.name = 'quickstart'

  config.model.vocab_size = 4096
  config.model.hidden_size = 128
  config.model.intermediate_size = 384
  config.model.num_layers = 4
  config.model.num_heads = 4
  config.model.tie_embeddings = True
  # On CPU, writing less memory is faster even though it recomputes more.
  config.model.remat = 'dots'

  config.data.source = 'bundled'
  config.data.max_mb = 12.0

  config.train.steps = 800
  config.train.batch_size = 8
  config.train.seq_len = 256
  # Small microbatches are faster on CPU, where temporaries are allocated in
  # every step.
  config.train.microbatch = 2

  config.optimizer.recipe = 'sage_muon'
  for recipe, (rate, matrix_scale, b2) in _TUNED.items():
    config.optimizer.learning_rates[recipe] = rate
    config.optimizer.matrix_lr_scales[recipe] = matrix_scale
    config.optimizer.b2s[recipe] = b2
  config.optimizer.weight_decay = 0.1
  config.schedule.final_fraction = 0.0

  config.eval.every = 200
  config.eval.max_windows = 128
  config.eval.batch_size = 8
  config.checkpoint.every = 200
  return config
