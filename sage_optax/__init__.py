"""SAGE and its peers as Optax transformations."""
