"""The training stack: python -m train.main --config configs/<name>.py.

Where things are:

- the command: main, config (with schema and validate), errors, signals, lock
- a run: loop (the order of events), program (what is compiled), inputs,
  checkpoint, recorder, metrics
- several processes: cluster (how they find each other), processes and line
  (what they tell each other), votes (to stop at the same step)
- the step, pure functions: step, state, optimizer, mesh
- data, prepared by `python -m train.prepare`: prepare, which calls bundled
  (with corpus, docstrings) or streaming (with readers, documents, workers,
  holdout, journal, progress); both use encoding, tokenizer, writer, staging;
  shards (with checksums) and data read what they wrote
- planning on devices that are not there: plan, a package
- results: report, evaluate, ngram, sample, plot
"""
