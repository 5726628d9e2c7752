"""Pictures, masks and maps before and after a model: numpy and Pillow, which ComfyUI brings along, and OpenCV."""
