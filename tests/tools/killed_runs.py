"""Runs the batch command again and again, cut off at each call that writes something, and then once more to the end.

    python tests/tools/killed_runs.py FOLDER HOST kill|full

For each call there is FOLDER/<number>/results, made by `prepare`, and FOLDER/<number>/said with what the first run
printed and FOLDER/<number>/status with how both ended. Ends when a run was not cut off.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import run_workflow

WRITES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink")
MOST = 200


def prepare(results: Path) -> None:
    """Things of the user's: a file, a folder named like the first row, a link to nowhere named like the second."""
    (results / "first").mkdir(parents=True)
    for path in (results / "mine.txt", results / "first" / "mine.txt"):
        path.write_text("mine")
    (results / "second").symlink_to(results / "nowhere")


def cut_at(number: int, folder: Path, how: str) -> None:
    """From now on, the call of this number that would write below a folder ends the process, or finds a full disk."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not writes or not any(str(folder) in str(each) for each in arguments[:2]):
            return
        count += 1
        if count == number and how == "kill":
            os._exit(9)
        if count >= number and how == "full" and event != "os.remove":
            raise OSError(errno.ENOSPC, "No space left on device")

    sys.addaudithook(hook)


def forked(work: Callable[[], int], said: Path) -> int:
    """The exit status of a function in a process of its own."""
    if (pid := os.fork()) == 0:
        for stream in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        try:
            status = work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 99
        sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, host: str, how: str) -> None:
    """See above."""
    for number in range(1, MOST):
        results = folder / str(number) / "results"
        prepare(results)
        files = [str(folder / "workflow.json"), "--table", str(folder / "t.csv"), "--output", str(results)]
        command = [*files, "--host", host, "--retries", "0", "--wait", "5"]

        def cut_off(number: int = number, results: Path = results, command: list[str] = command) -> int:
            cut_at(number, results, how)
            return run_workflow.main(command)

        first = forked(cut_off, folder / str(number) / "said")
        last = forked(lambda command=command: run_workflow.main(command), folder / str(number) / "said_last")
        (folder / str(number) / "status").write_text(json.dumps([first, last]))
        if first == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
