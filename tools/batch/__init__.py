"""Runs one workflow many times over a table of input values; `tools/run_workflow.py` is its command."""
