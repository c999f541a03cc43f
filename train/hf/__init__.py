"""Hugging Face checkpoints in and out: python -m train.hf import|export."""
