"""Patch features of ComfyUI's vision encoders, from any layer and at any resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch
from comfy.clip_model import CLIPVisionModelProjection, clip_preprocess
from comfy.image_encoders.dino2 import Dinov2Model
from comfy.image_encoders.dino3 import DINOv3ViTModel
from comfy.ldm.modules.attention import optimized_attention_for_device
from comfy.ops import cast_to_input
from torch import Tensor
from torch.nn import functional as F

from ..kernels import grid

# How a picture that is not square is fitted to the encoder's square.
FITS = grid.FITS
RESOLUTIONS = {"native": 1.0, "1.5x": 1.5, "2x": 2.0, "3x": 3.0, "4x": 4.0}
# Squares, and tokens, that go through the encoder at once; between them the cancel button is checked.
CHUNK, TOKENS = 8, 1 << 13


class PatchEncoder:
    """A CLIP_VISION of ComfyUI, read patch by patch."""

    def __init__(self, clip_vision: Any, layer: int, fit: str = grid.STRETCH, resolution: str = "native") -> None:
        """Takes what CLIPVisionLoader gives.

        Args:
            clip_vision: CLIP, SigLIP, SigLIP 2, DINOv2 or DINOv3.
            layer: the block whose hidden states are the features, from 0; negative from the end.
            fit: one of FITS.
            resolution: one of RESOLUTIONS, against the one the encoder was made for.

        Raises:
            RuntimeError: the encoder is of another kind.
            ValueError: the encoder has no such block.
        """
        kind = type(clip_vision.model)
        if kind not in READERS:
            raise RuntimeError(
                f"clip_vision is a {kind.__name__}, which gives no patch tokens that could be compared. Connect a "
                "CLIP, SigLIP or DINO encoder from the Load CLIP Vision node."
            )
        list_blocks, self._read = READERS[kind]
        blocks = len(list_blocks(clip_vision.model))
        if not -blocks <= layer < blocks:
            raise ValueError(
                f"layer is {layer}, but this encoder has {blocks} layers: 0 to {blocks - 1}, or -{blocks} to -1."
            )
        self._vision, self._layer, self._fit = clip_vision, layer % blocks, fit
        self.patch: int = clip_vision.config.get("patch_size", 14)
        self.side = round(_native_side(clip_vision, self.patch) * RESOLUTIONS[resolution])

    def layout(self, height: int, width: int) -> grid.Layout:
        """How pictures of a size are laid out in the encoder's squares."""
        return grid.layout(height, width, self._fit, self.side, self.patch)

    def features(self, image: Tensor, layout: grid.Layout) -> Tensor:
        """Hidden states of a picture's patches.

        Args:
            image: (H, W, 3) in [0, 1].
            layout: for its size.

        Returns:
            (h, w, C) float32 on the CPU, on the layout's grid.

        Raises:
            RuntimeError: the encoder gave fewer tokens than there are patches.
        """
        squares = layout.cut(image, self._vision.image_mean)
        at_once = min(len(squares), max(1, min(CHUNK, TOKENS // self.side**2)))
        comfy.model_management.load_models_gpu([self._vision.patcher], memory_required=at_once * self._memory)
        return layout.join(torch.cat([self._encode(part) for part in squares.split(at_once)]))

    @property
    def _memory(self) -> int:
        """Bytes that a square needs on its way: twelve times the hidden states, and its pixels four times."""
        width = self._vision.config.get("hidden_size", 1024)
        return 4 * self.side**2 * (12 * width + 4 * 3 * self.patch**2)

    def _encode(self, squares: Tensor) -> Tensor:
        """(B, S, S, 3) -> (B, side, side, C)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        vision, size = self._vision, self.side * self.patch
        squares = squares.to(vision.load_device)
        pixels = clip_preprocess(squares, size, vision.image_mean, vision.image_std, crop=False).float()
        tokens = self._read(vision.model, pixels, self._layer)
        # Class and register tokens come first.
        special = tokens.shape[1] - self.side**2
        if special < 0:
            raise RuntimeError(
                f"clip_vision gives {tokens.shape[1]} tokens for a picture of {self.side} x {self.side} patches, so it "
                "has no patch tokens that could be compared. Connect another encoder."
            )
        return tokens[:, special:].unflatten(1, (self.side, self.side)).float().cpu()


def whole_picture_tokens(clip_vision: Any, images: Tensor) -> Tensor:
    """(B, L, width): a vision encoder's last hidden states for pictures (B, H, W, 3), each squeezed to its square."""
    return clip_vision.encode_image(images, crop=False)["last_hidden_state"].float().cpu()


def _native_side(clip_vision: Any, patch: int) -> int:
    """Patches along the square the encoder was made for; one that takes any size names their number instead."""
    if clip_vision.image_size > 0:
        return int(clip_vision.image_size) // patch
    return int(clip_vision.config.get("num_patches", 256) ** 0.5)


def _read_clip(model: Any, pixels: Tensor, layer: int) -> Tensor:
    vision = model.vision_model
    embed = vision.embeddings
    tokens = _embed_clip(embed, pixels) if hasattr(embed, "class_embedding") else embed(pixels)
    tokens = vision.pre_layrnorm(tokens)
    attention = optimized_attention_for_device(tokens.device, small_input=True)
    # Not by the host's encoder, which goes on to the end
    for block in vision.encoder.layers[: layer + 1]:
        tokens = block(tokens, None, attention)
    return tokens


def _embed_clip(embed: Any, pixels: Tensor) -> Tensor:
    """ComfyUI's CLIP and SigLIP embeddings, but for pictures of any size."""
    patches = embed.patch_embedding(pixels)
    positions = cast_to_input(embed.position_embedding.weight, patches)
    special = 0 if embed.class_embedding is None else 1
    tokens = patches.flatten(2).transpose(1, 2)
    if special:
        tokens = torch.cat([cast_to_input(embed.class_embedding, tokens).expand(len(tokens), 1, -1), tokens], dim=1)
    if tokens.shape[1] != len(positions):
        side = int((len(positions) - special) ** 0.5)
        table = positions[special:].T.unflatten(1, (side, side)).unsqueeze(0)
        table = F.interpolate(table.float(), size=patches.shape[2:], mode="bicubic").to(positions)
        positions = torch.cat([positions[:special], table.flatten(2)[0].T])
    return tokens + positions


def _read_dino2(model: Any, pixels: Tensor, layer: int) -> Tensor:
    tokens = model.embeddings(pixels)
    attention = optimized_attention_for_device(tokens.device, small_input=True)
    for block in model.encoder.layer[: layer + 1]:
        tokens = block(tokens, attention)
    return tokens


def _read_dino3(model: Any, pixels: Tensor, layer: int) -> Tensor:
    tokens, positions = model.embeddings(pixels), model.rope_embeddings(pixels)
    for block in model.layer[: layer + 1]:
        tokens = block(tokens, position_embeddings=positions)
    return tokens


# For each kind of encoder: its blocks, and its hidden states after one of them.
Reader = Callable[[Any, Tensor, int], Tensor]
READERS: dict[type, tuple[Callable[[Any], Any], Reader]] = {
    CLIPVisionModelProjection: (lambda model: model.vision_model.encoder.layers, _read_clip),
    Dinov2Model: (lambda model: model.encoder.layer, _read_dino2),
    DINOv3ViTModel: (lambda model: model.layer, _read_dino3),
}
