"""Paths of leaves, and the names that libraries give to their axes.

Boxes are recognized by their attributes, so that no library must be imported:
`flax.linen.Partitioned` and `LogicallyPartitioned`, `flax.nnx.Variable`, and
the named arrays of Haliax and Penzai.
"""

import numbers
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Kinds of axes: a stack of layers, experts, the vocabulary, positions, the
# width of the residual stream, and anything else that a matrix maps from or to.
BATCH, EXPERTS = 'batch', 'experts'
VOCAB, POSITION = 'vocab', 'position'
WIDTH, INNER = 'width', 'inner'

# Names of our own model, of Flax's examples, MaxText, Levanter and Penzai.
_WORDS = {
  BATCH: (
    'layers layer num_layers blocks block stack stage stages'
    ' circular_repeats layers_per_stage'
    ' dense_layers moe_layers layers_outside_pipeline'
  ),
  EXPERTS: 'experts expert exp exp_with_fsdp num_experts',
  VOCAB: 'vocab vocab_size vocabulary',
  POSITION: 'position positions pos abspos_buckets max_len seq_len',
  WIDTH: (
    'embed embedding emb hidden d_model model_dim features norm'
    ' embed_no_exp embed_moe embed_vocab embed_tensor_transpose norm_only'
  ),
  INNER: (
    'mlp mlp_no_fsdp mlp_moe mlp_only ffn intermediate neurons inner heads'
    ' num_heads q_heads kv_heads kv_head query_heads q_heads_per_group'
    ' heads_per_group kv head_dim head_size projection q qkv joined_kv'
    ' kv_head_dim num_activations head_groups'
    ' kv_lora q_lora kv_lora_up_proj q_lora_up_proj'
  ),
}
KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}

_BOXED = ('value', 'array', 'data_array')
# In a dict, 'value' may be a projection of attention: it is a box only within
# what is a leaf in Flax, as in NNX's state restored from a checkpoint.
_FLAX_LEAF = re.compile(
  r'(?:kernel|bias|scale|weight|lora_[ab]|\w*(?:embed\w*|emb|token))$'
)


class AxisNames(NamedTuple):
  """The names of a leaf's axes.

  Attributes:
    names: one name, or None, per axis.
    ordered: whether a kernel's axes of fan_in come before those of fan_out, as
      in Flax; Haliax uses both orders.
  """

  names: tuple[str | None, ...]
  ordered: bool = True


def leaf_path(key_path: tuple[Any, ...]) -> tuple[str, bool]:
  """A leaf's path as rules see it, and whether it contains a name."""
  parts, named = [], False
  for key in key_path:
    if isinstance(key, jax.tree_util.FlattenedIndexKey):
      part = key.key
    else:
      part = getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key)))
    named |= isinstance(part, str)
    parts.append(str(part).replace('.', '/').strip('/'))
  while len(parts) > 1 and _is_box(parts, key_path[len(parts) - 1], named):
    parts.pop()
  return '/'.join(parts), named


def _is_box(parts: list[str], key: Any, named: bool) -> bool:
  """Whether the last part of a path is the content of a box."""
  if isinstance(key, jax.tree_util.FlattenedIndexKey):
    return named and key.key == 0  # A node whose children have no names.
  in_dict = isinstance(key, jax.tree_util.DictKey)
  return parts[-1] in _BOXED and (
    not in_dict or _FLAX_LEAF.search(parts[-2]) is not None
  )


def shape(path: str, leaf: Any) -> tuple[int, ...]:
  """The shape of a leaf; raises ValueError if it is not an array."""
  if not hasattr(leaf, 'dtype') and not isinstance(leaf, numbers.Number):
    raise ValueError(
      f'{path} is not an array, but {leaf!r}: remove it from the tree, for '
      'example by equinox.filter(model, equinox.is_inexact_array).'
    )
  return jnp.shape(leaf)


def unique(paths: list[str]) -> list[str]:
  """The paths, with numbers added if several leaves have the same one."""
  seen: dict[str, int] = {}
  result = []
  for path in paths:
    seen[path] = seen.get(path, 0) + 1
    result.append(path if seen[path] == 1 else f'{path}#{seen[path]}')
  return result


def axis_names(tree: Any) -> dict[str, AxisNames]:
  """The names of axes in the boxes of a tree, by path of the leaf."""
  found = {}
  nodes = jax.tree.leaves_with_path(tree, is_leaf=lambda x: _box(x) is not None)
  for key_path, node in nodes:
    names = _box(node)
    if names is not None:
      found[leaf_path(key_path)[0]] = names
  return found


def _box(node: Any) -> AxisNames | None:
  """The names of the axes of a box; None if `node` is not a box."""
  if node is None or isinstance(
    node, (jax.Array, Mapping, list, jax.core.Tracer)
  ):
    return None
  kind = type(node)
  if hasattr(kind, 'unbox') or hasattr(kind, 'get_metadata'):  # Flax
    for name in ('names', 'out_sharding', 'sharding_names', 'sharding'):
      value = _metadata(node, name)
      if isinstance(value, tuple | list):
        return _names(value)
    return None
  if hasattr(node, 'array') and isinstance(getattr(node, 'axes', None), tuple):
    names = tuple(getattr(axis, 'name', None) for axis in node.axes)
    return AxisNames(names, ordered=False)
  if isinstance(getattr(node, 'named_axes', None), Mapping):
    names = tuple(node.named_axes)
    shape = getattr(node.data_array, 'shape', names)  # It may be masked.
    positional = len(shape) - len(names)
    return AxisNames((None,) * positional + names, ordered=False)
  return None


def _metadata(node: Any, name: str) -> Any:
  if name == 'names':
    return getattr(node, 'names', None)
  get = getattr(node, 'get_metadata', None)
  return get().get(name) if callable(get) else None


def _names(value: Any) -> AxisNames | None:
  names = tuple(name if isinstance(name, str) else None for name in value)
  return AxisNames(names)
