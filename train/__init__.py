"""The training stack: python -m train.main --config configs/<name>.py.

Where things are:

- the command: main, config (with schema and validate), errors, signals, lock
- a run: loop (the order of events), program (what is compiled), inputs,
  checkpoint, metrics
- the step, pure functions: step, state, optimizer, mesh
- data, prepared by `python -m train.prepare`: prepare (with corpus,
  docstrings, readers, holdout, encoding, staging), tokenizer, shards (with
  checksums), and data, which reads them
- results: report, evaluate, ngram, sample, plot
"""
