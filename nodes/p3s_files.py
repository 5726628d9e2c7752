"""Adapters of P3S as files."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..core.p3s.adapter import TrainedAdapter
from ..core.p3s.files import load_adapter, save_adapter
from . import files
from .connected import checked

P3SAdapterIO = io.Custom("P3S_ADAPTER")
INTERRUPTED = "p3s/interrupted"


class P3SSave(io.ComfyNode):
    """Writes a trained subject to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="P3SSave",
            display_name="P3S Save",
            category="model/patch/reference",
            description=(
                "Saves the adapter that P3S Train made as .safetensors in models/model_patches, with what it was "
                "trained for beside the weights. No file is ever overwritten: each gets the next number."
            ),
            search_aliases=["p3s", "save adapter", "save subject", "export adapter"],
            is_output_node=True,
            inputs=[
                P3SAdapterIO.Input("adapter", tooltip="The trained subject, from P3S Train."),
                files.prefix_input("p3s/subject"),
            ],
            outputs=[io.String.Output(display_name="filename", tooltip="The file as P3S Load lists it.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuses a prefix before the training starts; linked text is seen only later."""
        return files.prefix_fault(filename_prefix)

    @classmethod
    @checked
    def execute(cls, adapter: TrainedAdapter, filename_prefix: str) -> io.NodeOutput:
        """Returns the name of the file that was written; whoever queued the workflow is told, too."""
        return files.saved_output(save_subject(adapter, filename_prefix))


class P3SLoad(io.ComfyNode):
    """Reads a trained subject from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="P3SLoad",
            display_name="P3S Load",
            category="model/loaders",
            description="Loads an adapter that P3S Save wrote, for P3S Inject.",
            search_aliases=["p3s", "load adapter", "load subject", "trained subject"],
            inputs=[
                files.file_input(
                    "adapter_name", "A file of P3S Save in models/model_patches. Press R after saving to see new ones."
                )
            ],
            outputs=[
                P3SAdapterIO.Output(display_name="adapter", tooltip="The trained subject, for P3S Inject."),
                io.String.Output(
                    display_name="prompt", tooltip="The text it was trained with; prompts name the subject like that."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        """Returns the adapter and its prompt."""
        adapter = load_adapter(files.model_path(adapter_name))
        return io.NodeOutput(adapter, adapter.origin.prompt)

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str) -> Any:
        """A file that was replaced is read again."""
        return files.time_of_change(adapter_name)


def save_subject(adapter: TrainedAdapter, prefix: str) -> str:
    """Saves an adapter under the next free number and returns the name that P3S Load lists.

    Raises:
        ValueError: the prefix leads out of models/model_patches.
        RuntimeError: the folder cannot be written to, or the disk is full.
        Both say where else the adapter was saved, if anywhere.
    """
    try:
        return files.save_own(partial(save_adapter, adapter), prefix)
    except (ValueError, RuntimeError) as error:
        if place := _save_elsewhere(adapter):
            first = str(error).split(". ", 1)[0].removesuffix(".")
            error.args = (f"{first}. What was trained is kept in {place}; move it to models/model_patches.",)
        raise


def save_interrupted(adapter: TrainedAdapter) -> str:
    """Saves the adapter of a training that ended early, wherever that is possible, and says where."""
    try:
        return f"P3S Load has what there is so far as {save_subject(adapter, INTERRUPTED)}."
    except (ValueError, RuntimeError) as error:
        return str(error)


def states_folder() -> str:
    """Where trainings leave their state."""
    return os.path.join(folder_paths.get_output_directory(), "p3s")


def _save_elsewhere(adapter: TrainedAdapter) -> str | None:
    """Saves an adapter where models/model_patches does not let it; None if that is impossible, too."""
    for root in (folder_paths.get_output_directory(), tempfile.gettempdir()):
        try:
            return files.save_numbered(partial(save_adapter, adapter), root, INTERRUPTED)
        except RuntimeError:
            continue
    return None
