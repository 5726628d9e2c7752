"""P3S-Diffusion (arXiv 2412.19533), second part: a subject is injected into new scenes."""
