"""Every field, with its default; the other files state what differs.

`train/schema.py` says what the fields mean. The model is that of llama_60m.
"""

from train.config import (
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  LogConfig,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
  RoleConfig,
  ScheduleConfig,
  TrainConfig,
)


def get_config() -> Config:
  """Returns the defaults."""
  return Config(
    name='base',
    workdir='',
    model=ModelConfig(
      vocab_size=32000,
      hidden_size=512,
      intermediate_size=1376,
      num_layers=8,
      num_heads=8,
      num_kv_heads=None,
      tie_embeddings=False,
      rope_theta=10000.0,
      rms_norm_eps=1e-5,
      init_std=0.02,
      remat='none',
      attention='auto',
    ),
    data=DataConfig(
      source='shards',
      path='',
      tokenizer='',
      vocab_size=4096,
      max_mb=None,
      seed=0,
    ),
    train=TrainConfig(
      steps=10000,
      batch_size=512,
      seq_len=256,
      microbatch=None,
      seed=0,
      grad_clip=1.0,
      platform='auto',
      dtype=None,
    ),
    optimizer=OptimizerConfig(
      recipe='sage_hybrid',
      learning_rate=None,
      learning_rates=_learning_rates(),
      matrix_lr_scales={},
      weight_decay=0.0,
      b1=None,
      b2=None,
      eps=None,
      momentum=None,
      num_iters=None,
      ns_steps=None,
      rank=None,
      update_proj_gap=None,
      projector=None,
      reset_interval=None,
      state_dtype=None,
      paper=False,
      embedding=RoleConfig(lr_scale=None, weight_decay=None),
      head=RoleConfig(lr_scale=None, weight_decay=None),
      matrix=RoleConfig(lr_scale=None, weight_decay=None),
      vector=RoleConfig(lr_scale=None, weight_decay=None),
    ),
    schedule=ScheduleConfig(
      kind='cosine',
      warmup_fraction=0.1,
      final_fraction=0.1,
      decay_fraction=0.2,
    ),
    mesh=MeshConfig(data=1, fsdp=-1, tensor=1, strict=False),
    eval=EvalConfig(every=1000, max_windows=None, batch_size=0),
    checkpoint=CheckpointConfig(every=1000, keep=3, async_=True),
    log=LogConfig(
      every=10,
      tensorboard=True,
      progress=True,
      profile_start=10,
      profile_steps=0,
      compilation_cache=None,
    ),
  )


def _learning_rates() -> dict[str, float]:
  """Returns a peak learning rate per recipe.

  But for `sinkgd` these come from first trials of our own on a model of 1.4M
  parameters: a start, not an optimum. With the recipes' factor (0.33, sinkgd
  0.05) the matrices of the hybrids move by about 1e-3 per entry and step.
  """
  return {
    'adamw': 3e-3,
    'lion': 1e-3,
    'sage': 1e-3,  # as lion, no trial yet
    'sage_hybrid': 3e-3,
    'lion_hybrid': 3e-3,
    'sinkgd': 2e-2,  # SinkGD's paper (arXiv 2502.06742)
    'sinkgd_pure': 1e-3,  # the matrices' rate of the hybrids, no trial yet
    'stable_spam': 8e-4,  # its paper at 130M (arXiv 2502.17055)
    'spam': 3e-3,  # as adamw
    'sgd_sai': 1e-2,  # best of 3e-3, 1e-2 and 3e-2 on 0.2M parameters
    'scale': 1e-3,  # its paper, 60M to 350M (arXiv 2506.16659)
    'apollo': 1e-2,  # its paper, 60M to 1B (arXiv 2412.05270)
    'apollo_mini': 1e-2,  # as apollo
    'galore': 1e-2,  # its paper, 60M to 1B (arXiv 2403.03507)
    'fira': 1e-2,  # its paper, 60M to 1B (arXiv 2410.01623)
    'swan': 1e-3,  # as sinkgd_pure, no trial yet
    # Its authors' 0.02 is for the matrices alone, AdamW has the rest here; no
    # trial yet.
    'muon': 1e-2,
    'muon_eq': 2e-3,  # its script at 130M (arXiv 2603.28254)
    'adafactor': 3e-3,  # as adamw, whose updates have the same size
    'adam_mini': 3e-3,  # as adamw
    'coupled_adam': 3e-3,  # as adamw
    'sage_muon': 5e-3,  # nobody's yet, no trial yet
    'sage_scale': 1e-3,  # nobody's yet, no trial yet
  }
