"""The training stack: python -m train.main --config configs/<name>.py.

- main, prepare, plan, hf: the commands; config: their configuration; errors
- loop: the order of events; run: a configuration, its program and its data;
  program: the compiled parts; step, state, optimizer, mesh: pure functions;
  inputs, checkpoint, workdir, files: the files of a run
- data: from text to token shards, and from shards to batches
- distributed: several processes that start and stop together
- results: metrics, evaluation, plots, the report
- plan: memory and traffic on hardware you don't have
"""
