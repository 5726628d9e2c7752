"""Pictures, masks and maps before and after a model: numpy, scipy and Pillow, which the host brings along."""
