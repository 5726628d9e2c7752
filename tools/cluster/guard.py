"""Runs a command that ends when whoever started it is gone, however that went.

    python guard.py SCRATCH COMMAND... < the reading end of a pipe whose other end only the starter holds

A process that is killed cannot tidy up, and Ray kills a worker's whole process group. So this one has a session of its
own and waits for the end of its standard input, which the system closes with the starter. Should this process be killed
itself, Linux sends the command the signal that was asked for. SCRATCH, a folder, is removed at the end.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
LOOK_SECONDS = 0.25


def die_with(parent: int) -> None:
    """Called in the new process: it gets SIGKILL when its parent dies (Linux; elsewhere nothing is done)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def main(scratch: str, command: list[str]) -> int:
    """The command's exit status."""
    own = os.getpid()
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=lambda: die_with(own)
    )

    def end(number: int, frame: FrameType | None) -> None:
        os.killpg(child.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        while child.poll() is None:
            # Readable means that the pipe was closed: nobody writes to it.
            if select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
                break
        status = child.poll() or 0
        return status if status >= 0 else 128 - status  # as shells name the signal that ended it
    finally:
        # What the command has started is in its group.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
