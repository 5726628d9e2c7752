"""What a training in the graph leaves on the disk, so that the same training goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .training import Pictures, Trainer

SAMPLES = 256  # numbers of a frozen weight that tell models and their LoRAs apart
log = logging.getLogger(__name__)


class Resumable:
    """The state of one training in a folder.

    Its name tells the training from all others: by the model with its LoRAs, the pictures, the texts and all settings
    but the number of epochs, so that a training can also be made longer.

    Args:
        folder: that states are kept in; it is made when one is saved.
        trainer: that has done no steps yet.
        pictures: what it learns from.
    """

    def __init__(self, folder: str | Path, trainer: Trainer, pictures: Iterable[Pictures]) -> None:
        self._trainer = trainer
        self.path = Path(folder) / f"training_{_name(trainer, pictures)}.pt"
        self._saved = 0

    def load(self) -> None:
        """Puts the trainer where the training ended, if it was begun before; says so in the log.

        Raises:
            RuntimeError: there is a state, but it cannot be read.
        """
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self._saved = len(state["history"])
            if self._saved <= self._trainer.steps:
                self._trainer.restore(state)
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            raise RuntimeError(
                f"{self.path} holds the state of this training, but cannot be read. Delete it to train anew."
            ) from error
        if self._saved > self._trainer.steps:
            log.warning("%s has %d steps of this training already, more than asked for.", self.path, self._saved)
        elif self._saved:
            log.info("The training goes on after step %d, from %s.", self._saved, self.path)

    def save(self) -> str:
        """Writes the trainer's state in the place of an older one, unless it holds no more; says where it is.

        A disk that is full loses nothing but the state.
        """
        steps = len(self._trainer.history)
        if not self._trainer.is_whole or steps <= self._saved:
            return ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".") as folder:
                unfinished = Path(folder) / "unfinished"
                torch.save(self._trainer.state(), unfinished)
                os.replace(unfinished, self.path)
        except (OSError, RuntimeError) as error:
            return f"Its state could not be written to {self.path}, so it cannot go on from here: {error}."
        self._saved = steps
        return f"Queued again, it goes on after step {steps}, from {self.path}."


def _name(trainer: Trainer, pictures: Iterable[Pictures]) -> str:
    settings: dict[str, Any] = {**dataclasses.asdict(trainer.settings), "epochs": None}
    digest = hashlib.sha256(str(sorted(settings.items())).encode())
    for name, weight in trainer.objective.frozen.state_dict().items():
        digest.update(name.encode() + _bytes(weight.flatten()[:: max(1, weight.numel() // SAMPLES)]))
    for each in pictures:
        texts = each.prompt.context, each.prompt.y, each.empty.context, each.empty.y
        for tensor in (each.latents, each.vision, *(each.masks if each.masks is not None else ()), *texts):
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return b"none"
    return str(tuple(tensor.shape)).encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes()
