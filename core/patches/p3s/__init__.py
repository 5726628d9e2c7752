"""P3S-Diffusion (arXiv 2412.19533) on the host's U-Nets."""

from ...kernels.p3s import AVERAGES, SCHEDULES
from ..frozen import encode
from .injection import NODE, Adapter, Injection, Schedule
from .preview import sample_preview
from .training import WHERE, Pictures, Settings, Trainer, Watch, train
from .wrappers import add_injection

__all__ = [
    "AVERAGES",
    "NODE",
    "SCHEDULES",
    "WHERE",
    "Adapter",
    "Injection",
    "Pictures",
    "Schedule",
    "Settings",
    "Trainer",
    "Watch",
    "add_injection",
    "encode",
    "sample_preview",
    "train",
]
