"""One optimizer method per module: its state and its `scale_by_<name>`.

`sinkgd` also has `scale_by_multi_norm`, which generalizes SinkGD and SWAN.
`sage_optax.recipe_table` lists the methods of recipes by name.
"""
