"""DEADiff's own networks (arXiv 2403.06951): from a reference picture to keys and values for a U-Net."""

from .deadiff import COMBINE, CONTENT_LAYERS, MODES, DEADiff, load
from .extract import extract, write_file
from .preprocess import FITS

__all__ = ["COMBINE", "CONTENT_LAYERS", "FITS", "MODES", "DEADiff", "extract", "load", "write_file"]
