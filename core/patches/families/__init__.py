"""The model families whose self-attention a handler can be put into: one table, one adapter for each kind."""

from .attentions import Attentions
from .table import NAMES, attentions_of

__all__ = ["NAMES", "Attentions", "attentions_of"]
