"""The training stack: python -m train.main --config configs/<name>.py."""
