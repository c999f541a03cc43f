"""A small vision transformer: sage_hybrid against AdamW.

python -m experiments.run vit        runs what is missing, results/vit.jsonl
python -m experiments.vision.report  writes docs/vision.md from it
"""
