"""DEADiff (arXiv 2403.06951) on the host's SD1.5 U-Net."""

from .style import Style, require_sd15
from .wrappers import add_style

__all__ = ["Style", "add_style", "require_sd15"]
