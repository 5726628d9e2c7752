"""Finds where Refine-by-Align's adapter aligns best, by the command that users calibrate with.

On spoiled logos that neither the training nor the claims have seen: `python -m world.calibrate` writes the adapter that
`world.export` takes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from refattention_demo.world import draw, expand, record, truth
from safetensors.torch import save_file

from . import export, train_adapters
from .config import ADAPTER_STATE, CALIBRATED, HELD_OUT, ROOT, result

CASES, SMALLEST = 24, 300  # pixels of a logo


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
    number = written = 0
    while written < CASES:
        rng = np.random.default_rng(HELD_OUT + 10**7 + number)
        number += 1
        whole = replace(record.random_record(rng), style="flat")
        if whole.figures[0].character.shirt.logo == "none":
            continue
        spoiled, other = record.spoiled(whole, rng), record.another_view(whole, rng)
        places = truth.logo(whole), truth.logo(other)
        if min(place.sum() for place in places) < SMALLEST:
            continue
        case = folder / f"{written:02}"
        case.mkdir(parents=True)
        pictures = draw.picture(spoiled), _white(places[0]), draw.picture(other), _white(places[1])
        for name, shown in zip(("image", "mask", "reference", "reference_mask"), pictures, strict=True):
            Image.fromarray(shown).save(case / f"{name}.png")
        written += 1


def _white(place: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(place, 255, 0).astype(np.uint8)


if __name__ == "__main__":
    main()
