"""DEADiff (arXiv 2403.06951): the style of a picture without its content."""
