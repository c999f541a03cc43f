"""The output of a run: metrics, evaluation, plots, the report, a sample."""
