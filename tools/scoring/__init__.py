"""Scores of pictures that were made; `tools/evaluate.py` is the command."""
