"""What else ends a batch the way Ctrl-C does."""

from __future__ import annotations

import signal
from types import FrameType


def stop_like_ctrl_c() -> None:
    """SIGTERM (SLURM, systemd, `docker stop`), a terminal that goes away and Windows' Ctrl-Break mean Ctrl-C from now
    on, except what was ignored already, as under nohup."""
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    """Does what Ctrl-C does at this moment; where Ctrl-C is ignored, what it does by default."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)
