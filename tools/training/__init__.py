"""Training of the methods that learn: what `tools/train.py` runs."""
