"""Leffa's masks and pasting through the pack's nodes, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import bootstrap
import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:
    from parity import Golden

bootstrap.prepare_host(exact=True)

from refattention.core.pictures.grid import binary_mask, to_cells
from refattention.nodes.leffa_mask import DRESS_CODE, OFFICIAL, VITON_HD, LeffaMask, LeffaRepaint

RULES = {"hd": VITON_HD, "dc": DRESS_CODE}


def outputs(golden: Golden) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Yields (name, ours, recorded, tolerance) for each recorded output."""
    t = {name: torch.from_numpy(numpy.asarray(value)) for name, value in golden.tensors.items()}
    for name in filter(lambda name: "." in name, t):
        first, kind, *rest = name.split(".")
        if kind == "mask" and len(rest) == 2:
            yield name, _mask(t, first, *rest)[0] * 255, t[name].float(), 0.0
        elif kind.startswith("mask_latent"):
            # The chain of the published demo: mask -> size of the picture -> 0 and 1 -> size of the latent
            yield name, to_cells(_at_picture_size(t, first, *rest).unsqueeze(-1))[0, 0], t[name].float(), 0.0
        elif kind.startswith("mask_") and "packbits" in kind:
            recorded = torch.from_numpy(numpy.unpackbits(golden.tensors[name]).reshape(1024, 768))
            yield name, _at_picture_size(t, first, *rest)[0], recorded.float(), 0.0
        elif name.startswith("repaint.") and rest == ["out"]:
            yield name, _pasted(t, f"{first}.{kind}") * 255, t[name].float(), 1e-4


def _mask(t: dict[str, Tensor], person: str, rule: str, garment: str) -> Tensor:
    labels, points = t[f"{person}.parse"], t[f"{person}.keypoints"]
    found = (points > 0).any(dim=1, keepdim=True)
    frame: dict[str, Any] = {
        "people": [{"pose_keypoints_2d": torch.cat([points, found.double()], dim=1).flatten().tolist()}],
        "canvas_width": 384,
        "canvas_height": 512,
    }
    picture = (labels.float() / 255).unsqueeze(-1).expand(-1, -1, 3).unsqueeze(0)
    try:
        return LeffaMask.execute(picture, garment, RULES[rule], "ATR", [frame])[0]
    except ValueError:  # where the published code gives an empty mask, the node says why
        return torch.zeros(1, 512, 384)


def _at_picture_size(t: dict[str, Tensor], person: str, rule: str, garment: str) -> Tensor:
    return binary_mask(_mask(t, person, rule, garment), (1024, 768))


def _pasted(t: dict[str, Tensor], name: str) -> Tensor:
    picture, generated = ((t[f"{name}.{kind}"].float() / 255).unsqueeze(0) for kind in ("person", "generated"))
    mask = (t[f"{name}.mask"].float() / t[f"{name}.mask"].max()).unsqueeze(0)
    return LeffaRepaint.execute(picture, generated, mask, OFFICIAL)[0][0]
