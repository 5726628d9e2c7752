"""DEADiff's weights: loading them, and making a small file of the released checkpoint."""

from __future__ import annotations

import os
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..core.deadiff.extract import extract, write_file
from ..core.deadiff.loaded import load
from ..core.models import checkpoint
from .connected import checked
from .files import file_input, model_path

DEADiffIO = io.Custom("DEADIFF")
FOLDERS = ("model_patches", "checkpoints")


class DEADiffLoader(io.ComfyNode):
    """Loads what DEADiff adds to a stock SD1.5."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="DEADiffLoader",
            display_name="DEADiff Loader",
            category="model/loaders",
            description=(
                "Loads the Q-Formers, the image attention and the visual encoder of DEADiff from deadiff_v1.ckpt, a "
                ".safetensors of it, or the small file that DEADiff Extract makes. Files are recognised by content."
            ),
            search_aliases=["deadiff", "load deadiff", "Q-Former", "style transfer"],
            inputs=[
                _file_input(),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="CLIP ViT-L/14 to use instead of the visual encoder in the file; needed for files "
                    "extracted without one. The node warns when its weights differ from those in the file.",
                ),
            ],
            outputs=[DEADiffIO.Output(display_name="deadiff", tooltip="DEADiff's weights, for DEADiff Style.")],
        )

    @classmethod
    @checked
    def execute(cls, deadiff_name: str, clip_vision: Any = None) -> io.NodeOutput:
        """Returns the loaded networks."""
        return io.NodeOutput(load(checkpoint.load(model_path(deadiff_name, FOLDERS)), clip_vision))


class DEADiffExtract(io.ComfyNode):
    """Writes the parts of a DEADiff checkpoint that a stock SD1.5 does not have."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="DEADiffExtract",
            display_name="DEADiff Extract",
            category="model/patch/reference",
            description=(
                "Makes a small .safetensors of the 7.6 GB DEADiff checkpoint: only what DEADiff Loader needs, without "
                "the Stable Diffusion inside, unused word embeddings and the second copy of the visual encoder."
            ),
            search_aliases=["deadiff", "convert deadiff", "save deadiff", "prune checkpoint"],
            is_output_node=True,
            inputs=[
                _file_input(),
                io.String.Input(
                    "filename",
                    default="deadiff_v1.safetensors",
                    tooltip="Name of the new file in models/model_patches. A file that exists is never overwritten.",
                ),
                io.Boolean.Input(
                    "visual_encoder",
                    default=True,
                    tooltip="Keep the visual encoder. Without it the file is smaller and DEADiff Loader needs a CLIP "
                    "ViT-L/14 as clip_vision.",
                ),
                io.Boolean.Input(
                    "half",
                    default=False,
                    tooltip="Store matrices in 16 bits: 1.3 instead of 2.2 GB. The result then differs slightly from "
                    "that of the full file.",
                ),
                io.Boolean.Input(
                    "all_words",
                    default=False,
                    optional=True,
                    tooltip="Keep the embeddings of all words, 95 MB more (half of that with half). Needed for subject "
                    "of DEADiff Style alone.",
                ),
            ],
            outputs=[io.String.Output(display_name="filename", tooltip="Name of the file that was written.")],
        )

    @classmethod
    @checked
    def execute(
        cls, deadiff_name: str, filename: str, visual_encoder: bool, half: bool, all_words: bool = False
    ) -> io.NodeOutput:
        """Returns the name of the file that was written."""
        target = _target(filename)
        weights = extract(checkpoint.load(model_path(deadiff_name, FOLDERS)), visual_encoder, half, all_words)
        try:
            write_file(weights, target)
        except FileExistsError:  # it was made in the meantime
            raise _taken(filename) from None
        return io.NodeOutput(os.path.basename(target))


def _file_input() -> io.Input:
    return file_input("deadiff_name", "A DEADiff file in models/model_patches or models/checkpoints.", FOLDERS)


def _target(filename: str) -> str:
    """Where a new file goes.

    Raises:
        ValueError: the name leads elsewhere, has another ending, or is taken.
    """
    if os.path.basename(filename) != filename or not filename.endswith(".safetensors"):
        raise ValueError(f"filename must be a plain name that ends in .safetensors, but is '{filename}'.")
    folder = folder_paths.get_folder_paths(FOLDERS[0])[0]
    os.makedirs(folder, exist_ok=True)
    target = os.path.join(folder, filename)
    if os.path.lexists(target):
        raise _taken(filename)
    return target


def _taken(filename: str) -> ValueError:
    return ValueError(f"models/model_patches already has a file '{filename}'. Choose another filename.")
