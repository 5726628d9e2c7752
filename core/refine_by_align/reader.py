"""Pictures as context of a U-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management
from torch import Tensor

from ..kernels.grid import STRETCH
from ..models.vision import PatchEncoder
from .adapter import Origin

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

LAYER = -1  # of the vision encoder


def patches_of(vision: PatchEncoder, picture: Tensor) -> Tensor:
    """The vision encoder's patch tokens of a whole picture; every picture has as many, whatever its shape.

    Args:
        picture: (1, H, W, 3) in [0, 1].

    Returns:
        (h, w, C) float32 on the CPU.
    """
    return vision.features(picture[0], vision.layout(picture.shape[1], picture.shape[2]))


class PatchReader:
    """Reads pictures with a vision encoder and an adapter's network.

    Args:
        clip_vision: what CLIPVisionLoader gives.
        network: a PatchTokens under ComfyUI's management.
        origin: of the adapter.

    Raises:
        RuntimeError: an encoder without patch tokens.
        ValueError: an encoder that reads pictures of another size than the adapter was trained with.
    """

    def __init__(self, clip_vision: Any, network: ModelPatcher, origin: Origin) -> None:
        self._vision = PatchEncoder(clip_vision, LAYER, STRETCH)
        self._network = network
        self._width = origin.vision_width
        size = self._vision.side * self._vision.patch
        if size != origin.image_size:
            raise ValueError(
                f"clip_vision reads pictures of {size} pixels, but the adapter was trained with {origin.image_size}. "
                "Connect the vision encoder that it was trained with."
            )

    def __call__(self, picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tokens of a whole picture.

        Args:
            picture: (1, H, W, 3) in [0, 1], of any size.

        Returns:
            (1, h * w, C) on the CPU, and the grid (h, w) on which they lie over the picture.

        Raises:
            ValueError: the encoder's tokens are of another width than the adapter was trained with.
        """
        patches = patches_of(self._vision, picture)
        height, width, channels = patches.shape
        if channels != self._width:
            raise ValueError(
                f"clip_vision gives tokens of width {channels}, but the adapter was trained with {self._width}. "
                "Connect the vision encoder that it was trained with."
            )
        comfy.model_management.load_models_gpu([self._network])
        tokens = self._network.model(patches.flatten(0, 1).unsqueeze(0).to(self._network.load_device))
        return tokens.cpu(), (height, width)
