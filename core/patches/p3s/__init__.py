"""P3S-Diffusion (arXiv 2412.19533) on the host's U-Nets."""

from ...kernels.p3s import SCHEDULES
from .injection import NODE, Adapter, Injection, Schedule
from .wrappers import add_injection

__all__ = ["NODE", "SCHEDULES", "Adapter", "Injection", "Schedule", "add_injection"]
