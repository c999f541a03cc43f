"""One file per run: `get_config()` returns a `train.config.Config`."""
