"""Kernels of SinkGD for TPUs and GPUs; `core.sinkhorn` chooses among them."""
