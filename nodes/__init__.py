"""The pack's nodes."""

from comfy_api.latest import ComfyExtension, io

from .p3s import P3SInject
from .point_mask import PointMask
from .refdrop import RefDropApply


class RefAttentionExtension(ComfyExtension):
    """Lists the nodes for the host."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the node classes."""
        return [P3SInject, PointMask, RefDropApply]
