"""RefDrop (arXiv 2405.17661): reference feature guidance, without training."""
