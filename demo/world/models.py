"""The trained models as files in a ComfyUI's model folders, under the names that the pack's templates have."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from .. import deadiff, vision, weights
from ..families import SD15
from . import expand

ABOUT = "Trained on drawings of ComfyUI-RefAttention's world. Not the model known by this file name."
FOLDER = Path(__file__).with_name("weights")
# The compact files; what is not trained yet is not there.
BASE, VISION, LEFFA, DEADIFF, REFINE, CLASSIFIER = (
    f"{name}.safetensors" for name in ("base", "vision", "leffa", "deadiff", "refine", "classifier")
)


def write(models: Path, compact: Path = FOLDER) -> None:
    """Writes all that is trained; a file that is there stays.

    Args:
        models: the model folders' folder.
        compact: the folder of the compact files.
    """
    base = load_file(compact / BASE)
    parts = {
        BASE: (f"checkpoints/{SD15.file_name}", expand.checkpoint),
        VISION: (f"clip_vision/{vision.FILE_NAME}", expand.vision),
        LEFFA: ("diffusion_models/virtual_tryon.pth", lambda own: expand.leffa(own, base)),
        DEADIFF: (f"model_patches/{deadiff.FILE_NAME}", dict),
    }
    for name, (target, expanded) in parts.items():
        if (compact / name).exists():
            (models / target).parent.mkdir(parents=True, exist_ok=True)
            weights.write(models / target, lambda: expanded(load_file(compact / name)), ABOUT)  # noqa: B023 - at once
    if (compact / REFINE).exists():
        folder = models / "model_patches"
        folder.mkdir(parents=True, exist_ok=True)
        weights.copy(compact / REFINE, folder / "refine_align.safetensors")  # what it says of itself is part of it
