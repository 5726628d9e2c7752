"""Pictures that a node shows in the graph, as temporary files."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch.nn import functional as F

# Enough for a preview; the editor is told the picture's true size separately.
LARGEST_SIDE = 2048


def temporary(image: torch.Tensor, prefix: str) -> dict[str, str]:
    """Saves a picture, reduced to what a screen can show, and returns what the editor needs to find it.

    Args:
        image: (H, W, 3) or (H, W) in [0, 1].
    """
    picture = image.unsqueeze(-1).expand(-1, -1, 3) if image.ndim == 2 else image[..., :3]
    scale = LARGEST_SIDE / max(picture.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in picture.shape[:2])
        picture = F.interpolate(picture.movedim(-1, 0).unsqueeze(0), size=size, mode="area")[0].movedim(0, -1)
    # Fast rather than small: ComfyUI deletes it at its next start.
    saved = ui.ImageSaveHelper.save_images([picture], prefix, io.FolderType.temp, cls=None, compress_level=1)
    return dict(saved[0])
