"""The training stack: python -m train.main --config configs/<name>.py.

- main, prepare, plan: the commands; config, errors: what they read and
  refuse
- loop: the order of events; run: a configuration, its program and its data;
  program: what is compiled; step, state, optimizer, mesh: pure functions;
  inputs, checkpoint, workdir, files: what a run reads and writes
- data: from text to token shards, and from shards to batches
- distributed: several processes that start and stop together
- results: metrics, evaluation, plots, the report
- plan: memory and traffic on hardware that is elsewhere
"""
