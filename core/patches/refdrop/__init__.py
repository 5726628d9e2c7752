"""RefDrop (arXiv 2405.17661) on the host's U-Nets and transformers."""

from ..reference_pass import Reference
from .cache import ReferenceCache
from .guide import Guide
from .recorded import Recorded
from .recorder import add_recorder
from .wrappers import add_guide

__all__ = ["Guide", "Recorded", "Reference", "ReferenceCache", "add_guide", "add_recorder"]
