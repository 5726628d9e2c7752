"""The demo folder as a ComfyUI extension: the small models' configurations, and a few nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .configs import register


class DemoExtension(ComfyExtension):
    """Makes the demo checkpoints loadable by the host's stock loaders."""

    async def on_load(self) -> None:
        """Runs once, before any checkpoint is loaded."""
        register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Stand-ins, and a loader that saves time."""
        from .other_packs import NODES
        from .short_vision import ShortCLIPVisionLoader

        return [*NODES, ShortCLIPVisionLoader]
