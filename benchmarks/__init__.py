"""Benchmarks of speed; README.md has the latest results.

- optimizer step: optimizers (the command), optimizers_under_test, rounds (the
  timing), torch_optimizers (PyTorch's, in a subprocess), on_tpu (estimates of
  the TPU compiler)
- training step: train_step (the command), worker (a subprocess that takes steps
  on request), step_jax, step_torch
- data, start-up and checkpoints: pipeline
- shared by all: results (description of the machine, tables, documents)
"""
