"""ComfyUI-RefAttention: reference-attention methods as ComfyUI nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI; the import stays inside so that the package itself loads without ComfyUI."""
    from .nodes import RefAttentionExtension

    return RefAttentionExtension()
