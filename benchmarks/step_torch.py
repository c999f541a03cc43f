"""Takes training steps with PyTorch; started by train_step."""

from typing import Any

import numpy as np

from benchmarks import worker


def make(job: dict[str, Any]) -> tuple[worker.Step, dict[str, str]]:
  """Returns the step function and the versions, for `worker.serve`."""
  import torch
  import transformers

  torch.set_num_threads(job['threads'])
  model = _model(job)
  params = list(model.parameters())
  # Vectors are not decayed, as in the recipe.
  groups = [
    {'params': [p for p in params if p.ndim > 1]},
    {'params': [p for p in params if p.ndim == 1], 'weight_decay': 0.0},
  ]
  optimizer = torch.optim.AdamW(
    groups,
    lr=job['learning_rate'],
    weight_decay=job['weight_decay'],
    **{job['optimizer']: True},
  )
  batches = torch.from_numpy(np.load(job['batches']).astype(np.int64))

  def loss_fn(rows):
    logits = model(rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), rows[:, 1:].flatten()
    )

  if job['compile']:
    loss_fn = torch.compile(loss_fn)

  def step(index):
    parts = batches[index].chunk(job['parts'])
    total = 0.0
    for rows in parts:
      loss = loss_fn(rows) / len(parts)
      loss.backward()
      total += loss.item()
    torch.nn.utils.clip_grad_norm_(params, job['train']['grad_clip'])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total

  return step, {
    'torch': torch.__version__,
    'transformers': transformers.__version__,
  }


def _model(job: dict[str, Any]) -> Any:
  """Hugging Face's Llama, with the weights that the job names."""
  import torch
  import transformers

  shape = job['model']
  config = transformers.LlamaConfig(
    vocab_size=shape['vocab_size'],
    hidden_size=shape['hidden_size'],
    intermediate_size=shape['intermediate_size'],
    num_hidden_layers=shape['num_layers'],
    num_attention_heads=shape['num_heads'],
    num_key_value_heads=shape['num_heads'],
    rms_norm_eps=1e-5,
    max_position_embeddings=job['train']['seq_len'],
    tie_word_embeddings=shape['tie_embeddings'],
    attn_implementation='sdpa',
  )
  model = transformers.LlamaForCausalLM(config)
  weights = np.load(job['weights'])
  state = {name: torch.from_numpy(weights[name]) for name in weights}
  model.load_state_dict(state, strict=not shape['tie_embeddings'])
  return model.train()


if __name__ == '__main__':
  worker.serve(make)
