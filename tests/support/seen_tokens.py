"""Queries and keys that the host's attention is given of a picture or video, in any family, whatever the pack does."""

from __future__ import annotations

from typing import Any

import torch
from families import tiny_model, tiny_prompt
from naive_families import NaiveFamilyRefDrop
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.single_evaluation import evaluate_once
from refattention.core.refine_by_align.observe import of_whole_picture
from torch import Tensor

Seen = tuple[Tensor, Tensor, int, tuple[int, int, int]]  # queries and keys (N, C), heads, grid of tokens


class _Watching(NaiveFamilyRefDrop):
    """Changes nothing and keeps what the picture's tokens have, those of all samples one after the other."""

    def _image(self, *seen: Any) -> Any:
        if self.family == "scail":
            self.size = None  # the video has no poses beside it
        return super()._image(*seen)

    def _change(self, row: int, own: list[Tensor], number: int, grid: tuple[int, int, int], heads: int) -> Tensor:
        self.found: list[Seen]
        if row == 0:
            self.found.append((own[0].flatten(0, 1), own[1].flatten(0, 1), heads, grid))
        return torch.zeros_like(own[0][row])


def tokens_of(name: str, latent: Tensor, timestep: int, seed: int) -> list[Seen]:
    """What each layer has of a picture, or of all frames of a video, at a timestep with a noise of this seed."""
    patcher, watching = tiny_model(name), _Watching(name, 0.0)
    watching.found = []
    carried = of_whole_picture(tiny_prompt(name, 1))
    of_picture = attentions_of(patcher, "test").of_picture
    prompt = [[tiny_prompt(name, 1)[0][0], {key: each for key, each in carried.items() if key not in of_picture}]]
    with torch.inference_mode():
        evaluate_once(watching.attach(patcher), prompt, latent, timestep, seed)
    return watching.found
