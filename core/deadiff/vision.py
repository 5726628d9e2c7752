"""The visual encoder: ComfyUI's CLIP ViT up to the block whose tokens DEADiff reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import comfy.clip_model
import comfy.clip_vision
import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from comfy.model_patcher import CoreModelPatcher
from torch import Tensor

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher

# DEADiff reads the tokens before the last of ViT-L's 24 blocks.
BLOCKS = 23


class VisionTower:
    """A ViT under ComfyUI's memory management, cut off after some blocks.

    Attributes:
        patcher: manages its memory.
        width: V, of its tokens.
        image_size: side of the square pictures that it takes.
    """

    def __init__(self, patcher: ModelPatcher, vision_model: Any, blocks: int) -> None:
        self.patcher = patcher
        self._model = vision_model
        self._blocks = blocks
        patches, self.width = vision_model.embeddings.position_embedding.weight.shape
        self.image_size = round((patches - 1) ** 0.5) * vision_model.embeddings.patch_embedding.kernel_size[0]

    def features(self, pixels: Tensor) -> Tensor:
        """All tokens, the class token first, without a norm at the end.

        Args:
            pixels: (S, 3, image_size, image_size) float32, normalised as CLIP wants it, on the encoder's device.

        Returns:
            (S, 1 + patches, V).
        """
        x = self._model.pre_layrnorm(self._model.embeddings(pixels))
        attention = optimized_attention_for_device(x.device, small_input=True)
        for block in self._model.encoder.layers[: self._blocks]:
            x = block(x, None, attention)
        return x

    def weights(self) -> dict[str, Tensor]:
        """The weights that take part, under ComfyUI's names."""
        unused = tuple(f"encoder.layers.{n}." for n in range(self._blocks, len(self._model.encoder.layers)))
        weights = self._model.state_dict()
        return {k: v for k, v in weights.items() if not k.startswith((*unused, "post_layernorm."))}


def tower_from_weights(weights: Mapping[str, Tensor], heads: int | None) -> VisionTower:
    """Builds the encoder that a DEADiff checkpoint carries; it keeps the types that the weights have in the file.

    Args:
        weights: tensors under the names of OpenAI's CLIP ("conv1.weight", "transformer.resblocks.0.ln_1.weight", …).
        heads: number of attention heads; None: one for each 64 channels.

    Raises:
        KeyError: a weight is missing.
    """
    width, _, patch, _ = weights["conv1.weight"].shape
    layers = len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")})
    config = {
        "model_type": "clip_vision_model",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads or max(width // 64, 1),
        "intermediate_size": weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "num_channels": 3,
        "patch_size": patch,
        "image_size": round((len(weights["positional_embedding"]) - 1) ** 0.5) * patch,
    }
    model = comfy.clip_model.CLIPVision(config, torch.float32, torch.device("meta"), comfy.ops.manual_cast)
    del model.post_layernorm  # after the tokens that are read
    converted = comfy.clip_vision.convert_to_transformers(dict(weights), "")
    named = {key.removeprefix("vision_model."): tensor for key, tensor in converted.items()}
    wanted = model.state_dict().keys()
    model.load_state_dict({key: named[key] for key in wanted}, assign=True)
    model.requires_grad_(False).eval()
    return VisionTower(managed(model), model, layers)


def tower_from_clip_vision(clip_vision: ClipVisionModel) -> VisionTower:
    """ComfyUI's CLIP_VISION, cut off where DEADiff reads it."""
    return VisionTower(clip_vision.patcher, clip_vision.model.vision_model, BLOCKS)


def managed(model: torch.nn.Module) -> Any:
    """A ModelPatcher for a network that lies on the CPU."""
    device = comfy.model_management.get_torch_device()
    return CoreModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
