"""Refine-by-Align (arXiv 2412.00306): a spoiled part of a picture is repaired from a reference."""
