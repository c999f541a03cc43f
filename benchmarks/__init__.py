"""What the claims about speed rest on; README.md has the last results.

- the optimizer step: optimizers (the command), contenders (who takes part),
  turns (how they are timed), torch_peers (PyTorch's, in a process of its own),
  on_tpu (what the compiler for TPUs says)
- the training step: train_step (the command), worker (a process that takes
  steps in turn), step_jax, step_torch
- data, start-up and checkpoints: pipeline
- what all results have: results (the machine, tables, documents)
"""
