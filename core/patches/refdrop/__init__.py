"""RefDrop (arXiv 2405.17661) on the host's U-Nets."""

from .guide import Guide, Reference
from .wrappers import add_guide

__all__ = ["Guide", "Reference", "add_guide"]
