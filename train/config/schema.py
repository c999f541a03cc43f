"""The fields of a run's configuration, each declared once; see fields.py.

`python -m train.main --helpfull` and docs/configuration.md list them.
"""

# `Optional`, because the flag library looks the type up in a table; slots,
# because a misspelled assignment in a configuration file must fail.
# ruff: noqa: UP045

import dataclasses
from typing import Optional

from train.config.fields import (
  COUNT,
  COUNT_OR_ZERO,
  INT32,
  Choices,
  FileName,
  Path,
  Range,
  field,
)
from train.config.optimizer_schema import OptimizerConfig

_DEVICES = Range(-1, 2**20)
_FRACTION = Range(0, 1)


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
  """The shape of the Llama."""

  vocab_size: int = field(32000, 'Number of tokens.', Range(2, INT32), 'value')
  hidden_size: int = field(512, 'Width of the residual stream.', COUNT, 'value')
  intermediate_size: int = field(
    1376, 'Width of the feed-forward blocks.', COUNT, 'value'
  )
  num_layers: int = field(8, 'Number of transformer blocks.', COUNT, 'value')
  num_heads: int = field(8, 'Number of attention heads.', COUNT, 'value')
  num_kv_heads: Optional[int] = field(
    None, 'Number of key and value heads; none: num_heads.', COUNT, 'value'
  )
  tie_embeddings: bool = field(
    False, 'Whether the embedding is also the head.', identity='value'
  )
  rope_theta: float = field(
    10000.0,
    'Base of the rotary embedding.',
    Range(above=0, maximum=1e12),
    'value',
  )
  rope_factor: Optional[float] = field(
    None,
    'Factor on long rotary wavelengths; none: 1. With the three fields below, '
    'this is the rule of Llama 3.1; without them, the factor applies to all '
    'wavelengths.',
    Range(1, 1e6),
    'value',
  )
  rope_low_freq_factor: Optional[float] = field(
    None,
    'Wavelengths with fewer turns in rope_original_positions are multiplied.',
    Range(above=0, maximum=1e6),
    'value',
  )
  rope_high_freq_factor: Optional[float] = field(
    None, 'With more, they stay.', Range(above=0, maximum=1e6), 'value'
  )
  rope_original_positions: Optional[int] = field(
    None, 'Context length of pre-training.', COUNT, 'value'
  )
  rms_norm_eps: float = field(
    1e-5,
    'Added to the mean square in RMSNorm.',
    Range(above=0, maximum=1),
    'value',
  )
  init_std: float = field(
    0.02,
    'Standard deviation of the initial matrices.',
    Range(above=0, maximum=1e3),
    'value',
  )
  remat: str = field(
    'none',
    'What the backward pass recomputes to save memory: nothing, everything but '
    'the matrix products, or everything.',
    Choices('none', 'dots', 'full'),
    'rounding',
  )
  attention: str = field(
    'auto',
    'The implementation of attention; cudnn needs an NVIDIA GPU, splash a TPU. '
    'auto: chunked on CPU, splash on TPU, dot_product on GPU. Sequences whose '
    'length is not a multiple of 128 use dot_product instead of splash.',
    Choices('auto', 'chunked', 'dot_product', 'cudnn', 'splash'),
    'rounding',
  )


@dataclasses.dataclass(slots=True, kw_only=True)
class InitConfig:
  """The parameters before the first step."""

  path: Optional[str] = field(
    None,
    'Directory of a Hugging Face Llama to start from; none: random parameters. '
    '`python -m train.hf import` writes a configuration for one.',
    Path(),
    'value',
  )


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
  """Where the tokens come from."""

  source: str = field(
    'shards',
    'shards: written by train.prepare; bundled: text of installed packages.',
    Choices('bundled', 'shards'),
    'resolved',
  )
  path: str = field(
    '',
    'Directory of the shards; empty: data/NAME, or data/bundled-... for the '
    'bundled text.',
    Path(),
    'resolved',
  )
  tokenizer: str = field(
    '', 'Tokenizer file; empty: that of the shards.', Path(), 'resolved'
  )
  vocab_size: int = field(
    4096,
    'Vocabulary size of the BPE trained on the bundled text.',
    Range(257, 10**7),
    'resolved',
  )
  max_mb: Optional[float] = field(
    None,
    'Megabytes of bundled text; none: all of it.',
    Range(0.01, 1e6),
    'resolved',
  )
  seed: int = field(0, 'Seed of the data order.', Range(0, 2**32 - 1), 'value')


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
  """Length, batch and numerics of a run."""

  steps: int = field(10000, 'Number of optimizer steps.', COUNT, 'value')
  batch_size: int = field(
    512, 'Sequences per step, over all devices.', COUNT, 'value'
  )
  seq_len: int = field(256, 'Tokens per sequence.', COUNT, 'value')
  microbatch: Optional[int] = field(
    None,
    'Sequences per forward and backward pass, whose gradients are accumulated; '
    'none: batch_size.',
    COUNT,
    'rounding',
  )
  seed: int = field(
    0, 'Seed of the initial parameters.', COUNT_OR_ZERO, 'value'
  )
  grad_clip: Optional[float] = field(
    1.0,
    'Largest global norm of the gradient; none: no clipping.',
    Range(above=0, maximum=1e12),
    'value',
  )
  platform: str = field(
    'auto',
    'Where to run; auto: the platform that JAX finds.',
    Choices('auto', 'cpu', 'gpu', 'tpu'),
  )
  dtype: Optional[str] = field(
    None,
    'Type of the computation; float64 applies to parameters and state too. '
    'none: float32 on CPU, bfloat16 elsewhere.',
    Choices('float32', 'bfloat16', 'float64'),
    'resolved',
  )


@dataclasses.dataclass(slots=True, kw_only=True)
class ScheduleConfig:
  """The learning-rate schedule; lengths are fractions of all steps."""

  kind: str = field(
    'cosine',
    'Shape of the decay.',
    Choices('cosine', 'linear', 'wsd', 'constant'),
    'value',
  )
  warmup_fraction: float = field(0.1, 'Linear warm-up.', _FRACTION, 'value')
  final_fraction: float = field(
    0.1,
    'Learning rate after the decay, as a fraction of the peak.',
    _FRACTION,
    'value',
  )
  decay_fraction: float = field(
    0.2, "Length of the decay at the end, for 'wsd' only.", _FRACTION, 'value'
  )


@dataclasses.dataclass(slots=True, kw_only=True)
class MeshConfig:
  """Devices along each mesh axis; -1, for one axis, means all that remain."""

  data: int = field(1, 'Replicas of parameters and state.', _DEVICES)
  fsdp: int = field(-1, 'Shards of parameters, state and batch.', _DEVICES)
  tensor: int = field(
    1, 'Shards of heads, feed-forward and vocabulary.', _DEVICES
  )
  strict: bool = field(False, 'Reject axes that the mesh does not divide.')


@dataclasses.dataclass(slots=True, kw_only=True)
class EvalConfig:
  """Evaluation on the validation split, also done after the last step."""

  every: int = field(
    1000, 'Steps between evaluations; 0: only at the end.', COUNT_OR_ZERO
  )
  max_windows: Optional[int] = field(
    None,
    'Largest number of sequences in an evaluation during the run; none: about '
    '10M tokens, as in the final one. Never more than the run trains on.',
    COUNT,
  )
  batch_size: int = field(
    0,
    'Sequences per batch; 0: as many as in a training microbatch.',
    COUNT_OR_ZERO,
  )


@dataclasses.dataclass(slots=True, kw_only=True)
class CheckpointConfig:
  """Checkpoints in the working directory."""

  every: int = field(1000, 'Steps between checkpoints.', COUNT)
  keep: int = field(3, 'Number of checkpoints to keep.', COUNT)
  async_: bool = field(True, 'Write files while training continues.')
  strict: bool = field(
    False, 'Stop at a damaged checkpoint, instead of using an older one.'
  )


@dataclasses.dataclass(slots=True, kw_only=True)
class LogConfig:
  """What a run reports, and how often."""

  every: int = field(10, 'Steps between records.', COUNT)
  tensorboard: bool = field(True, 'Write TensorBoard files.')
  wandb: Optional[str] = field(
    None, 'Project at Weights & Biases; none: do not use it.', FileName()
  )
  embedding: bool = field(
    False,
    'Record statistics of the embedding: rows without gradient, norms of rows, '
    "SAGE's damper, and the rms of each role's updates.",
  )
  progress: bool = field(True, 'Show a progress bar on a terminal.')
  profile_start: int = field(10, 'Steps before the profile.', COUNT_OR_ZERO)
  profile_steps: int = field(0, 'Steps to profile; 0: none.', COUNT_OR_ZERO)
  compilation_cache: Optional[str] = field(
    None,
    'Directory of the compilation cache; none: JAX_COMPILATION_CACHE_DIR if '
    "set, else a directory in the user's cache; empty: the variable, or none.",
    Path(),
  )


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """One run."""

  name: str = field('run', 'Names the directories of the run.', FileName())
  workdir: str = field('', 'Working directory; empty: runs/NAME.', Path())
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  init: InitConfig = dataclasses.field(default_factory=InitConfig)
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
