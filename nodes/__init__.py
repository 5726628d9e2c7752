"""The pack's nodes."""

from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .deadiff import DEADiffStyle
from .deadiff_files import DEADiffExtract, DEADiffLoader
from .deadiff_sampler import DEADiffEulerSampler, DEADiffSampler
from .leffa import LeffaLoader, LeffaPoseTransfer, LeffaTryOn
from .leffa_body_map import LeffaBodyMap
from .leffa_densepose import LeffaDensePose
from .leffa_flow import LeffaFlow
from .leffa_mask import LeffaMask, LeffaRepaint
from .leffa_prepare import LeffaFit, LeffaSigmas
from .p3s import P3SInject
from .p3s_files import P3SLoad, P3SSave
from .p3s_train import P3STrain
from .point_mask import PointMask
from .refdrop import RefDropApply, RefDropVideo
from .refdrop_files import RefDropLoad, RefDropSave
from .refdrop_record import RefDropRecord
from .refine_by_align import RefineByAlign
from .refine_by_align_files import RefineAlignLoad
from .refine_by_align_probe import AttentionProbe
from .refine_by_align_stages import RefineAlign, RefineRegion
from .template_pictures import put_pictures


class RefAttentionExtension(ComfyExtension):
    """Lists the nodes for ComfyUI."""

    async def on_load(self) -> None:
        """Runs once, at ComfyUI's start."""
        put_pictures(Path(folder_paths.get_input_directory()))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the node classes."""
        return [
            *(RefDropApply, RefDropVideo, RefDropRecord, RefDropSave, RefDropLoad),
            *(PointMask, P3SInject, P3STrain, P3SSave, P3SLoad),
            *(DEADiffLoader, DEADiffStyle, DEADiffSampler, DEADiffEulerSampler, DEADiffExtract),
            *(LeffaLoader, LeffaTryOn, LeffaPoseTransfer, LeffaMask, LeffaRepaint, LeffaFlow),
            *(LeffaBodyMap, LeffaDensePose, LeffaSigmas, LeffaFit),
            *(RefineByAlign, RefineAlign, RefineRegion, RefineAlignLoad, AttentionProbe),
        ]
