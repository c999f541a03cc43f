"""Memory, traffic and time of a run on devices that are not there.

`python -m train.plan` compiles the trainer's own step ahead of time.

- the command: __main__, sweep (recipes, what would fit), worker (one program,
  in a process of its own)
- what is planned for: targets; what is measured: measure, alone (the optimizer
  by itself), from the compiled program's text: hlo, cost, traffic
- results: table, chart
"""
