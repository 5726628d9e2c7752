"""The host's Load CLIP Vision without the blocks that do nothing.

The host knows vision encoders by their size, so the demo's have 24 blocks where one or three would do. The others pass
on what they get, and take nine tenths of the time.
"""

from __future__ import annotations

from typing import Any

import folder_paths
from comfy import clip_vision
from comfy_api.latest import io

from .vision import SHORT_LOADER


class ShortCLIPVisionLoader(io.ComfyNode):
    """Gives the hidden states that the stock loader's encoder gives, bit for bit, the last and the last but one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id=SHORT_LOADER,
            display_name="Load CLIP Vision (Demo)",
            category="demo",
            inputs=[io.Combo.Input("clip_name", options=folder_paths.get_filename_list("clip_vision"))],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, clip_name: str) -> io.NodeOutput:
        """Runs the node."""
        loaded = clip_vision.load(folder_paths.get_full_path_or_raise("clip_vision", clip_name))
        shorten(loaded.model.vision_model.encoder.layers)
        return io.NodeOutput(loaded)


def shorten(blocks: Any) -> None:
    """Drops the blocks at the end that add nothing, but for one: the hidden states before the last block are used, too.

    Args:
        blocks: a ModuleList, changed in place.
    """
    acting = [number for number, block in enumerate(blocks) if _adds(block)]
    del blocks[max(acting) + 2 :]


def _adds(block: Any) -> bool:
    return any(each.any() for layer in (block.self_attn.out_proj, block.mlp.fc2) for each in (layer.weight, layer.bias))
