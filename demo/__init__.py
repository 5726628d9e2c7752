"""Small stand-in models for the demo host and the tests. Not part of the pack that users install."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension


async def comfy_entrypoint() -> ComfyExtension:
    """Called by the demo host, which then recognises the demo checkpoints like any other."""
    from .extension import DemoExtension

    return DemoExtension()
