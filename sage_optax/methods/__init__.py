"""One optimizer method per module: its state and its `scale_by_<name>`.

`sage_optax.recipe_table` lists them by name.
"""
