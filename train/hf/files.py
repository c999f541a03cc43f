"""The files of a Hugging Face checkpoint: config.json and safetensors."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from models import hf_config, layers
from train.errors import UserError

CONFIG = 'config.json'
_WEIGHTS = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
# Others, such as integers, are quantized and need scales.
_DTYPES = ('F64', 'F32', 'F16', 'BF16')


def read_json(
  path: pathlib.Path, of: str = 'a Hugging Face Llama'
) -> dict[str, Any]:
  """Returns the JSON object in a file; raises UserError if it has none.

  Args:
    path: The file.
    of: What the directory of the file belongs to, for the error.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(
      f'cannot read {path} ({error}): give the directory of {of}'
    ) from error
  if not isinstance(content, dict):
    raise UserError(f'{path} contains no JSON object')
  return content


def read_config(directory: pathlib.Path) -> layers.LlamaConfig:
  """Returns the model of a directory.

  Raises:
    UserError: If config.json cannot be read, or has a field that is not
      supported, which the message names.
  """
  try:
    return hf_config.from_hf(read_json(directory / CONFIG))
  except ValueError as error:
    raise UserError(f'{directory / CONFIG}: {error}') from error


class Weights(Mapping[str, np.ndarray]):
  """The tensors of a directory by name, read on access."""

  def __init__(self, directory: pathlib.Path):
    """Finds the files.

    Args:
      directory: Contains model.safetensors, or shards and their index. If it
        contains both, the shards are ignored, as by transformers.

    Raises:
      UserError: If a file is missing or damaged, or has a tensor of a type that
        is not supported.
    """
    index = directory / _INDEX
    if index.exists() and not (directory / _WEIGHTS).exists():
      files = read_json(index).get('weight_map')
      if not isinstance(files, dict):
        raise UserError(f'{index} has no weight_map')
      shards = {directory / str(name) for name in files.values()}
    else:
      shards = {directory / _WEIGHTS}
    self._shards: dict[str, Any] = {}
    for path in sorted(shards):
      try:
        shard = safetensors.safe_open(path, 'np')
      except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
          f'cannot read {path} ({error}): give a directory with {_WEIGHTS}, '
          'or all its shards'
        ) from error
      for name in shard.keys():  # noqa: SIM118 (not a dict)
        dtype = shard.get_slice(name).get_dtype()
        if dtype not in _DTYPES:
          raise UserError(
            f'{path}: {name} has the type {dtype}, but only '
            f'{", ".join(_DTYPES)} are supported'
          )
        self._shards[name] = shard

  def __getitem__(self, name: str) -> np.ndarray:
    return self._shards[name].get_tensor(name)

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor without reading it."""
    return tuple(self._shards[name].get_slice(name).get_shape())

  def __iter__(self) -> Iterator[str]:
    return iter(self._shards)

  def __len__(self) -> int:
    return len(self._shards)


def write_weights(
  directory: pathlib.Path,
  state: Mapping[str, np.ndarray],
  max_shard_bytes: int,
) -> list[pathlib.Path]:
  """Writes model.safetensors, or shards and their index.

  Args:
    directory: An existing directory.
    state: Name -> array, in the order of writing.
    max_shard_bytes: Largest size of a file.

  Returns:
    The files written.
  """
  shards: list[dict[str, np.ndarray]] = [{}]
  size = 0
  for name, array in state.items():
    if shards[-1] and size + array.nbytes > max_shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = np.ascontiguousarray(array)
    size += array.nbytes
  names = [_WEIGHTS]
  if len(shards) > 1:
    names = [
      f'model-{i:05d}-of-{len(shards):05d}.safetensors'
      for i in range(1, len(shards) + 1)
    ]
    index = {
      'metadata': {'total_size': sum(x.nbytes for x in state.values())},
      'weight_map': {
        tensor: name
        for name, shard in zip(names, shards, strict=True)
        for tensor in shard
      },
    }
    write_json(directory / _INDEX, index)
  paths = [directory / name for name in names]
  for path, shard in zip(paths, shards, strict=True):
    path.touch()
    mode = path.stat().st_mode
    # transformers requires this metadata.
    safetensors.numpy.save_file(shard, path, metadata={'format': 'pt'})
    path.chmod(mode)  # save_file replaces it by a file for its owner only.
  return paths


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes an object, indented."""
  path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
