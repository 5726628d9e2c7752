"""Leffa (arXiv 2412.08486): its two U-Nets in the host's classes, and the loader of its checkpoints."""

from .loader import LeffaParts, load
from .model import require_leffa
from .slim import slim

__all__ = ["LeffaParts", "load", "require_leffa", "slim"]
