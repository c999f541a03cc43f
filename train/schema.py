"""The fields of a run's configuration; `configs/base.py` shows them all."""

# `Optional`, because the flag library looks the type up in a table, and slots,
# because a misspelt assignment in a configuration file must fail.
# ruff: noqa: UP045

import dataclasses
from typing import Optional


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
  """The shape of the Llama."""

  vocab_size: int = 32000
  hidden_size: int = 512
  intermediate_size: int = 1376
  num_layers: int = 8
  num_heads: int = 8
  num_kv_heads: Optional[int] = None  # None: as many as num_heads
  tie_embeddings: bool = False
  rope_theta: float = 10000.0
  rms_norm_eps: float = 1e-5
  init_std: float = 0.02
  remat: str = 'none'  # 'none', 'dots' or 'full'
  # 'chunked', 'dot_product', 'cudnn' (NVIDIA) or 'splash' (TPU).
  # 'auto': chunked on CPU, splash on TPU, dot_product elsewhere. Sequences that
  # are no multiple of 128 have dot_product instead of splash.
  attention: str = 'auto'


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
  """Where the tokens come from."""

  source: str = 'shards'  # 'bundled', or 'shards' that train.prepare wrote
  path: str = ''  # directory of shards; '' with 'bundled': its own place
  tokenizer: str = ''  # '': the one that lies beside the shards
  vocab_size: int = 4096  # of the BPE trained on the bundled corpus
  max_mb: Optional[float] = None  # of the bundled corpus; None: all of it
  seed: int = 0  # of the shuffle


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
  """Length, batch and numerics of a run."""

  steps: int = 10000
  batch_size: int = 512  # sequences a step, over all devices
  seq_len: int = 256
  microbatch: Optional[int] = None  # sequences at a time; None: batch_size
  seed: int = 0  # of the initial parameters
  grad_clip: Optional[float] = 1.0  # global norm; None: no clipping
  platform: str = 'auto'  # 'auto', 'cpu', 'gpu' or 'tpu'
  # 'float32', 'bfloat16' (computation only) or 'float64' (everything).
  # None: bfloat16 on accelerators, float32 on CPU.
  dtype: Optional[str] = None


@dataclasses.dataclass(slots=True, kw_only=True)
class RoleConfig:
  """What one role does differently; None leaves it to the recipe."""

  lr_scale: Optional[float] = None
  weight_decay: Optional[float] = None


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimizerConfig:
  """A recipe of `sage_optax`, its learning rate and its options."""

  recipe: str = 'sage_hybrid'
  learning_rate: Optional[float] = None  # None: learning_rates[recipe]
  learning_rates: dict[str, float] = dataclasses.field(default_factory=dict)
  # The factor on the role 'matrix', for recipes whose published rates go with
  # another factor than the recipe's own. `matrix.lr_scale` comes before it.
  matrix_lr_scales: dict[str, float] = dataclasses.field(default_factory=dict)
  weight_decay: float = 0.0
  # Options of the methods. One that is not None goes to every part of the
  # recipe that takes it, and is an error if none does.
  b1: Optional[float] = None
  b2: Optional[float] = None
  eps: Optional[float] = None
  momentum: Optional[float] = None
  num_iters: Optional[int] = None  # SinkGD
  ns_steps: Optional[int] = None  # Muon, SWAN
  rank: Optional[int] = None  # APOLLO, GaLore, Fira; as the two below
  update_proj_gap: Optional[int] = None
  projector: Optional[str] = None  # 'gaussian', 'svd' or 'subspace'
  reset_interval: Optional[int] = None  # SPAM, Stable-SPAM
  state_dtype: Optional[str] = None  # 'float32' or 'bfloat16'
  paper: bool = False  # the authors' released form, where it differs
  embedding: RoleConfig = dataclasses.field(default_factory=RoleConfig)
  head: RoleConfig = dataclasses.field(default_factory=RoleConfig)
  matrix: RoleConfig = dataclasses.field(default_factory=RoleConfig)
  vector: RoleConfig = dataclasses.field(default_factory=RoleConfig)


@dataclasses.dataclass(slots=True, kw_only=True)
class ScheduleConfig:
  """The learning rate over the steps, as fractions of their number."""

  kind: str = 'cosine'  # 'cosine', 'linear', 'wsd' or 'constant'
  warmup_fraction: float = 0.1
  final_fraction: float = 0.1  # of the learning rate, when decay ends
  decay_fraction: float = 0.2  # 'wsd' only: the last part of the steps


@dataclasses.dataclass(slots=True, kw_only=True)
class MeshConfig:
  """Devices along each mesh axis; one may be -1, which means the rest."""

  data: int = 1
  fsdp: int = -1
  tensor: int = 1
  strict: bool = False  # refuse axes that the mesh does not divide


@dataclasses.dataclass(slots=True, kw_only=True)
class EvalConfig:
  """Evaluation on the validation split, also done after the last step."""

  every: int = 1000  # steps; 0: at the end only
  # None: as many as make 10M tokens. Never more than the run trains on.
  max_windows: Optional[int] = None
  batch_size: int = 0  # sequences; 0: as many as a training microbatch


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig:
  """Checkpoints in the working directory."""

  every: int = 1000
  keep: int = 3
  async_: bool = True


@dataclasses.dataclass(slots=True, kw_only=True)
class LogConfig:
  """What a run tells, and how often."""

  every: int = 10
  tensorboard: bool = True
  progress: bool = True
  profile_start: int = 10
  profile_steps: int = 0  # 0: no profile
  # Directory; None: JAX_COMPILATION_CACHE_DIR, or one in the user's cache; '':
  # none but that variable's.
  compilation_cache: Optional[str] = None


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """One run."""

  name: str = 'base'
  workdir: str = ''  # '': runs/<name>
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=OptimizerConfig
  )
  schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  checkpoint: CheckpointConfig = dataclasses.field(
    default_factory=CheckpointConfig
  )
  log: LogConfig = dataclasses.field(default_factory=LogConfig)
