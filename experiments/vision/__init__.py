"""A small vision transformer: sage_hybrid against AdamW.

python -m experiments.vision.study   runs what is missing, results/vit.jsonl
python -m experiments.vision.report  writes docs/vision.md from it
"""
