"""Trained adapters of Refine-by-Align as files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.refine_by_align.files import load_adapter
from . import files
from .connected import checked

RefineAdapterIO = io.Custom("REFINE_ADAPTER")


class RefineAlignLoad(io.ComfyNode):
    """Reads a trained adapter from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefineAlignLoad",
            display_name="Refine Align Load",
            category="model/loaders",
            description=(
                "Loads an adapter that was trained for Refine by Align, by which a model sees the reference through "
                "its cross-attention, as in the paper, instead of its untrained self-attention."
            ),
            search_aliases=["refine by align", "load adapter", "dinov2", "cross-attention", "image tokens"],
            is_experimental=True,
            inputs=[
                files.file_input(
                    "adapter_name", "A file of a trained adapter in models/model_patches. Press R to see new ones."
                )
            ],
            outputs=[
                RefineAdapterIO.Output(
                    display_name="adapter", tooltip="For Refine by Align, Refine Align and Refine Region."
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        """Returns the adapter."""
        return io.NodeOutput(load_adapter(files.model_path(adapter_name)))

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str) -> Any:
        """A file that was replaced is read again."""
        return files.time_of_change(adapter_name)
