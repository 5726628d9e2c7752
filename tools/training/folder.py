"""A run's folder: what it was started with, its losses, checkpoints and states, each renamed into place when whole."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

UNFINISHED = ".unfinished"


class FolderError(RuntimeError):
    """One sentence on why a run cannot be started, resumed or saved."""


class RunFolder:
    """Files of one run.

    Args:
        path: of the folder; it is made.
        method: what is trained, the first part of checkpoints' names.
    """

    def __init__(self, path: Path, method: str) -> None:
        self.path, self._method = path, method
        path.mkdir(parents=True, exist_ok=True)

    def states(self) -> list[Path]:
        """Resume states, the oldest first."""
        return self._numbered(r"state-(\d+)\.pt")

    def _numbered(self, pattern: str) -> list[Path]:
        """Files by the step in their names."""
        found = [(int(match[1]), file) for file in self.path.iterdir() if (match := re.fullmatch(pattern, file.name))]
        return [file for _, file in sorted(found)]

    def newest(self) -> dict[str, Any] | None:
        """The newest resume state; None if there is none."""
        states = self.states()
        return torch.load(states[-1], map_location="cpu", weights_only=True) if states else None

    def begin(self, about: dict[str, Any], resume: bool) -> dict[str, Any] | None:
        """Writes what the run is started with, or reads the state to go on from.

        Args:
            about: what JSON can hold; "data_digest" has to be that of the run that is resumed.

        Returns:
            the newest state; None to start anew.

        Raises:
            FolderError: there is a run already or a file that it would write over, there is none, or it was one with
                other data.
        """
        file = self.path / "run.json"
        if not resume:
            if file.exists():
                raise FolderError(
                    f"{self.path} holds a run already. Go on with it by --resume, or choose another output."
                )
            self._require_free()
            self.write("run.json", lambda path: path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8"))
            return None
        if not file.exists():
            raise FolderError(f"{self.path} holds no run that could be resumed. Start it without --resume.")
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["method"] != about["method"]:
            raise FolderError(f"{self.path} holds a run of {before['method']}, not of {about['method']}.")
        if before["data_digest"] != about["data_digest"]:
            raise FolderError(
                f"The data is not what the run in {self.path} was started with. Put it back, or start a new run from "
                "its last checkpoint (models.start)."
            )
        for left in self.path.glob(f"*{UNFINISHED}*"):  # only now that the folder is known to be the run's own
            left.unlink()
        changed = [name for name in about["config"] if about["config"][name] != before["config"].get(name)]
        if changed:
            print(f"Resumed with changed settings: {', '.join(changed)}.")
        return self.newest()

    def _require_free(self) -> None:
        own = re.compile(rf"losses\.jsonl|state-\d+\.pt|validation-\d+\.png|{self._method}(-\d+)?\.safetensors")
        if taken := sorted(file.name for file in self.path.iterdir() if own.fullmatch(file.name)):
            raise FolderError(f"{self.path} holds {taken[0]}, which the run would write over. Choose another output.")

    def keep_losses(self, steps: int) -> None:
        """Drops the losses of steps that are done again."""
        file = self.path / "losses.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= steps]
        self.write(
            "losses.jsonl", lambda path: path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        )

    def add_losses(self, values: dict[str, float | int]) -> None:
        """Writes the losses of a step."""
        with (self.path / "losses.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Lets a function write a file under another name, and puts it in its place.

        Raises:
            FolderError: it could not be written, for example because the disk is full.
        """
        target = self.path / name
        unfinished = target.with_name(f"{target.stem}{UNFINISHED}{target.suffix}")
        try:
            write(unfinished)
            os.replace(unfinished, target)
        except (OSError, RuntimeError) as error:
            raise FolderError(
                f"{target} could not be written: {' '.join(str(error).split())[:300]}. What was saved before is whole; "
                "make room, then go on by --resume."
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)
        return target

    def save(self, step: int, keep: int, adapter: Callable[[Path], Any], state: dict[str, Any]) -> Path:
        """Writes a checkpoint for the nodes and the state to resume from; then the older ones go."""
        saved = self.write(f"{self._method}-{step:06}.safetensors", adapter)
        self.write(f"state-{step:06}.pt", lambda path: torch.save(state, path))
        for file in self.states()[:-1]:
            file.unlink()
        if keep:
            for file in self._numbered(rf"{self._method}-(\d+)\.safetensors")[:-keep]:
                file.unlink()
        return saved
