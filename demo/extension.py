"""The demo folder as a ComfyUI extension: the small models' configurations, and stand-ins for other packs' nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .configs import register


class DemoExtension(ComfyExtension):
    """Makes the demo checkpoints loadable by the host's stock loaders."""

    async def on_load(self) -> None:
        """Runs once, before any checkpoint is loaded."""
        register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Stand-ins alone; the demo has no nodes of its own."""
        from .other_packs import NODES

        return [*NODES]
