"""Imports and exports Hugging Face checkpoints: python -m train.hf."""
