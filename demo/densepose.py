"""A TorchScript file in DensePose's form: it finds a standing figure of 24 parts in the middle of every picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

NAME = "densepose_r50_fpn_dl.torchscript"
SIDE = 112
# Ellipses from back to front: part, and in the box, from -1 to 1, centre x and y, radius x and y. The left of the body
# is on the right of the picture.
FIGURE: list[tuple[int, float, float, float, float]] = [
    (7, -0.3, 0.28, 0.17, 0.26), (8, 0.3, 0.28, 0.17, 0.26), (9, -0.2, 0.28, 0.15, 0.26), (10, 0.2, 0.28, 0.15, 0.26),
    (11, -0.3, 0.7, 0.12, 0.24), (12, 0.3, 0.7, 0.12, 0.24), (13, -0.22, 0.7, 0.11, 0.24), (14, 0.22, 0.7, 0.11, 0.24),
    (6, -0.28, 0.95, 0.17, 0.06), (5, 0.28, 0.95, 0.17, 0.06), (1, 0.0, -0.2, 0.46, 0.4), (2, 0.0, -0.22, 0.42, 0.36),
    (16, -0.55, -0.36, 0.15, 0.2), (15, 0.55, -0.36, 0.15, 0.2), (18, -0.5, -0.36, 0.1, 0.18),
    (17, 0.5, -0.36, 0.1, 0.18), (20, -0.68, -0.05, 0.12, 0.19), (19, 0.68, -0.05, 0.12, 0.19),
    (22, -0.64, -0.05, 0.09, 0.17), (21, 0.64, -0.05, 0.09, 0.17), (3, -0.74, 0.18, 0.11, 0.08),
    (4, 0.74, 0.18, 0.11, 0.08), (23, -0.05, -0.78, 0.2, 0.19), (24, 0.08, -0.78, 0.17, 0.19),
]  # fmt: skip


class Figure(nn.Module):
    """Scores of a fixed figure; nobody in a picture of one colour."""

    def __init__(self) -> None:
        super().__init__()
        line = torch.linspace(-1, 1, SIDE)
        y, x = torch.meshgrid(line, line, indexing="ij")
        parts, u, v = torch.zeros(3, 1, 25, SIDE, SIDE)
        for part, left, top, width, height in FIGURE:
            across, down = (x - left) / width, (y - top) / height
            inside = across**2 + down**2 < 1
            parts[0, :, inside] = 0
            parts[0, part, inside] = 1
            u[0, part], v[0, part] = (across.clamp(-1, 1) + 1) / 2, (down.clamp(-1, 1) + 1) / 2
        body = parts.sum(dim=1, keepdim=True)
        self.register_buffer("body", torch.cat([1 - body, body], dim=1))
        self.register_buffer("parts", parts)
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(3, H, W) uint8 -> boxes, scores of body and parts, U and V."""
        height, width = picture.shape[1], picture.shape[2]
        found = 1 if int(picture.max()) > int(picture.min()) else 0
        box = torch.tensor([[0.1 * width, 0.02 * height, 0.9 * width, 0.98 * height]], device=picture.device)
        return box[:found], self.body[:found], self.parts[:found], self.u[:found], self.v[:found]  # type: ignore[index]


def write(folder: Path) -> None:
    """Writes the file, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / NAME).exists():
        torch.jit.script(Figure()).save(str(folder / NAME))
