"""P3S-Diffusion (arXiv 2412.19533), first part: points select a subject."""
