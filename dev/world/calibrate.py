"""Finds where Refine-by-Align's adapter aligns best, by the command that users calibrate with.

On spoiled logos that neither the training nor the claims have seen: `python -m world.calibrate` writes the adapter that
`world.export` takes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from refattention_demo.world import draw, expand, truth
from safetensors.torch import save_file

from . import export, train_adapters
from .config import ADAPTER_STATE, CALIBRATED, ROOT, result
from .spoiled_logos import held_out

CASES = 24


def main() -> None:
    """Writes the cases and the vision encoder, and runs the command."""
    train_adapters.write_models()
    folder, encoder = ADAPTER_STATE / "calibration", ADAPTER_STATE / "clip_vision.safetensors"
    shutil.rmtree(folder, ignore_errors=True)
    _write_cases(folder / "cases")
    save_file(expand.vision(export.vision()), encoder)
    command = [sys.executable, str(ROOT / "tools" / "calibrate_align.py"), folder / "cases", train_adapters.BASE]
    command += ["--adapter", result("refine"), "--clip-vision", encoder, "--extension", ROOT / "demo" / "known.py"]
    command += ["--cpu", "--output", CALIBRATED.with_suffix("")]
    subprocess.run([str(each) for each in command], cwd=ROOT, check=True)


def _write_cases(folder: Path) -> None:
    for number, each in enumerate(held_out(10**7, CASES)):
        case = folder / f"{number:02}"
        case.mkdir(parents=True)
        pictures = {
            "image": draw.picture(each.spoiled),
            "mask": _white(truth.logo(each.whole)),
            "reference": draw.picture(each.reference),
            "reference_mask": _white(truth.logo(each.reference)),
        }
        for name, shown in pictures.items():
            Image.fromarray(shown).save(case / f"{name}.png")


def _white(place: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(place, 255, 0).astype(np.uint8)


if __name__ == "__main__":
    main()
