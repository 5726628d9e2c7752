"""Recordings of RefDrop (arXiv 2405.17661) as files, so that a subject can be kept for good."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from ..core.patches.node_text import text_on_node
from ..core.refdrop.files import load_run, save_run
from ..core.refdrop.past_run import PastRun
from . import files
from .connected import checked
from .refdrop_inputs import RefDropCacheIO


class RefDropSave(io.ComfyNode):
    """Writes a recorded run to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefDropSave",
            display_name="RefDrop Save",
            category="model/patch/reference",
            description=(
                "Saves what RefDrop Record recorded as .safetensors in models/model_patches, so that pictures made "
                "later, after a restart too, follow the same reference. No file is ever overwritten: each gets the "
                "next number."
            ),
            search_aliases=["refdrop", "save reference", "save recording", "keep character"],
            is_output_node=True,
            inputs=[
                RefDropCacheIO.Input("cache", tooltip="The recording, from RefDrop Record."),
                files.prefix_input("refdrop/character"),
            ],
            outputs=[io.String.Output(display_name="filename", tooltip="The file as RefDrop Load lists it.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuses a prefix before anything is sampled; linked text is seen only later."""
        return files.prefix_fault(filename_prefix)

    @classmethod
    @checked
    def execute(cls, cache: PastRun, filename_prefix: str) -> io.NodeOutput:
        """Returns the name of the file that was written; whoever queued the workflow is told, too."""
        return files.saved_output(files.save_own(partial(save_run, cache), filename_prefix))


class RefDropLoad(io.ComfyNode):
    """Reads a recorded run from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefDropLoad",
            display_name="RefDrop Load",
            category="model/loaders",
            description=(
                "Loads a recording that RefDrop Save wrote, for RefDrop Apply. Model, LoRAs, sampler, scheduler, steps "
                "and denoise must be those that were recorded; the node shows the latter."
            ),
            search_aliases=["refdrop", "load reference", "load recording", "kept character"],
            inputs=[
                files.file_input(
                    "recording_name",
                    "A file of RefDrop Save in models/model_patches. Press R after saving to see new ones.",
                )
            ],
            outputs=[
                RefDropCacheIO.Output(display_name="cache", tooltip="The recording, for RefDrop Apply."),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The noise levels that were recorded, for SamplerCustom: then scheduler, steps and denoise "
                    "need not be known.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, recording_name: str) -> io.NodeOutput:
        """Returns the recording and its noise levels."""
        run = load_run(files.model_path(recording_name))
        text_on_node()(f"{run.family}: {run.sampling or f'{len(run.levels)} noise levels'}")
        return io.NodeOutput(run, torch.tensor(run.schedule))

    @classmethod
    def fingerprint_inputs(cls, recording_name: str) -> Any:
        """A file that was replaced is read again."""
        return files.time_of_change(recording_name)
