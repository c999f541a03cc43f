"""Memory, traffic and time of a run on hardware you don't have.

`python -m train.plan` compiles the trainer's own step ahead of time.

- the command: __main__, sweep (recipes and changes that fit), worker (compiles
  one program in a subprocess)
- hardware: targets
- measurements: measure (one step), optimizer_collectives (the optimizer alone);
  from the text of the compiled program: hlo, cost, hbm_bytes
- results: table, chart
"""
