"""Pictures, masks and maps before and after a model: numpy, scipy and Pillow, which ComfyUI brings along."""
