"""The pack's nodes."""

from comfy_api.latest import ComfyExtension, io

from .leffa import LeffaLoader, LeffaPoseTransfer, LeffaTryOn
from .leffa_flow import LeffaFlow
from .leffa_mask import LeffaMask, LeffaRepaint
from .refdrop import RefDropApply


class RefAttentionExtension(ComfyExtension):
    """Lists the nodes for the host."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the node classes."""
        return [RefDropApply, LeffaLoader, LeffaTryOn, LeffaPoseTransfer, LeffaMask, LeffaRepaint, LeffaFlow]
