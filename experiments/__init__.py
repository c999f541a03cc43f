"""Comparisons of optimizers: studies, their runner and their report.

See experiments/PROTOCOL.md.
"""
