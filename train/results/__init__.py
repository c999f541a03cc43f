"""What a run writes: metrics, evaluation, plots, the report, a sample."""
