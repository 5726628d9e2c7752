"""RefDrop (arXiv 2405.17661) on the host's U-Nets and transformers."""

from ..reference_pass import Reference
from .cache import ReferenceCache
from .guide import Guide
from .wrappers import add_guide

__all__ = ["Guide", "Reference", "ReferenceCache", "add_guide"]
