"""One optimizer method per module: its state and its `scale_by_<name>`."""
