"""The quickstart, made tiny: for runs that tests start."""

from configs import quickstart
from train.config import Config


def get_config() -> Config:
  """Returns the configuration; data.path and workdir are the test's."""
  config = quickstart.get_config()
  config.name = 'tiny'
  config.model.vocab_size = 300
  config.model.hidden_size = 32
  config.model.intermediate_size = 64
  config.model.num_layers = 2
  config.model.num_heads = 2
  config.data.source = 'shards'
  config.train.steps = 60
  config.train.batch_size = 8
  config.train.seq_len = 32
  config.train.microbatch = None
  config.optimizer = Config().optimizer
  config.optimizer.weight_decay = 0.01
  config.eval.every = 20
  config.eval.max_windows = 8
  config.eval.batch_size = 8
  config.checkpoint.every = 10
  config.log.every = 1
  config.log.tensorboard = False
  config.log.compilation_cache = ''
  return config
