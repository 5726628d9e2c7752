"""`make demo`: runs the workflows and puts the pictures of each on a sheet: RefDrop at several strengths, a try-on."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

import demo_leffa
from demo_host import PHOTO, demo_host, load_workflow, set_inputs
from host import ROOT, HeadlessHost, HostError, WorkflowError

OUT = ROOT / "out" / "demo"
STRENGTHS = (-0.3, 0.0, 0.3, 0.6)
CELL, LABEL, GAP = 320, 32, 12


def generate(host: HeadlessHost, strength: float, folder: Path) -> Path:
    """Runs the workflow once and returns where its picture was copied to."""
    started = time.monotonic()
    entry = host.run(set_inputs(load_workflow(), "RefDropApply", strength=strength))
    target = folder / f"refdrop_strength_{strength:+.1f}.png"
    shutil.copyfile(host.images(entry)[0], target)
    print(f"demo: strength {strength:+.1f} done in {time.monotonic() - started:.1f} s", flush=True)
    return target


def contact_sheet(cells: Sequence[tuple[str, Path]]) -> Image.Image:
    """The pictures side by side, each fitted into a square with its label below."""
    font = ImageFont.load_default(size=18)
    sheet = Image.new("RGB", (GAP + len(cells) * (CELL + GAP), CELL + LABEL + 2 * GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, path) in enumerate(cells):
        left = GAP + column * (CELL + GAP)
        with Image.open(path) as picture:
            fitted = ImageOps.contain(picture.convert("RGB"), (CELL, CELL), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (CELL - fitted.width) // 2, GAP + (CELL - fitted.height) // 2))
        draw.text((left + CELL / 2, GAP + CELL + LABEL / 2), label, fill="black", font=font, anchor="mm")
    return sheet


def run_demo(folder: Path) -> list[str]:
    """Runs the workflows and returns the names of the contact sheets."""
    folder.mkdir(parents=True, exist_ok=True)
    print("demo: starting a headless ComfyUI with the demo models", flush=True)
    with demo_host() as host:
        results = [(f"strength {strength:g}", generate(host, strength, folder)) for strength in STRENGTHS]
        sheets = {"refdrop": [("reference", PHOTO), *results], "leffa": demo_leffa.generate(host, folder)}
        names = [f"{method}_contact_sheet.png" for method in sheets]
        for name, cells in zip(names, sheets.values(), strict=True):
            contact_sheet(cells).save(folder / name)
    return names


def main() -> int:
    """Exit status 0 when every picture was written."""
    # So that a plain `kill` leaves through the with statement, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sheets = run_demo(OUT)
    except KeyboardInterrupt:
        print("demo stopped", file=sys.stderr)
        return 130
    except (HostError, WorkflowError, TimeoutError, OSError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    print(f"demo: pictures are in {OUT}, all of them on {' and '.join(sheets)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
