"""DEADiff (arXiv 2403.06951) on the host's SD1.5 U-Net."""

from .sampler import OfficialDDIM, official_sigmas
from .style import Style, require_sd15
from .wrappers import add_style

__all__ = ["OfficialDDIM", "Style", "add_style", "official_sigmas", "require_sd15"]
