"""Refine-by-Align's trained back end against the training-free one, on the same pictures and by their templates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from refattention_demo.world import draw, truth
from world_host import WorldHost, inputs, node_id

from . import refine
from .point_mask import overlap
from .reading import Reader
from .refine import PAPER, Case
from .rows import Findings, above, columns

# Each chosen on other pictures than those of the claims; the adapter's file carries what tools/calibrate_align.py found
FREE = {"timesteps": str(refine.BEST[0]), "layers": refine.BEST[1], "margin": 0.6, "strength": 0.6, "cfg": 4.0}
TRAINED = {"timesteps": "auto", "layers": "auto", "margin": 0.15, "strength": 1.0, "cfg": 2.0}


def run(host: WorldHost, count: int) -> Findings:
    """Measures both on that many pictures."""
    chosen, reader = refine.cases(count), Reader()
    for number, case in enumerate(chosen):
        refine.put_pictures(host, number, case)
    free, trained = (
        columns([measured(host, filled(name, settings, case, n), case, reader) for n, case in enumerate(chosen)])
        for name, settings in (("refine_by_align", FREE), ("refine_trained", TRAINED))
    )
    gain = {name: trained[name] - free[name] for name in free}
    better = "than the training-free one"
    return Findings(
        PAPER,
        [
            above(
                PAPER, f"the trained back end finds the part better {better}",
                "IoU of the map with the logo in the reference, trained minus training-free", gain["iou"],
            ),
            above(
                PAPER, f"the trained back end repairs better {better}",
                "colour error in the logo's square, training-free minus trained", -gain["error"],
            ),
            above(
                PAPER, "its logos are read more often than those of the training-free one",
                "chance of the right logo, trained minus training-free", gain["logo"],
            ),
        ],
    )  # fmt: skip


def filled(name: str, settings: dict[str, Any], case: Case, number: int) -> dict[str, Any]:
    """A template with this case's pictures, and a preview of what it finds."""
    graph = refine.filled(name, case, number)
    inputs(graph, "RefineByAlign").update(
        settings, working_size=draw.SIZE, context=3.0, minimum_contrast=0.0, steps=refine.STEPS, denoise=1.0,
        feather=0, seed=number,
    )  # fmt: skip
    found = [node_id(graph, "RefineByAlign"), 3]
    graph["map"] = {"class_type": "MaskPreview", "inputs": {"mask": found}, "_meta": {"title": "map"}}
    return graph


def measured(host: WorldHost, graph: dict[str, Any], case: Case, reader: Reader) -> dict[str, float]:
    """Overlap of what is found with the logo, and what the picture is like."""
    outputs = host.run(graph)["outputs"]

    def picture(node: str) -> NDArray[np.float32]:
        (file,) = host.images({"outputs": {node: outputs[node]}})
        return np.asarray(np.asarray(Image.open(file).convert("RGB"), np.float32) / 255)

    return {
        "iou": overlap(picture("map")[..., 0] > 0.5, truth.logo(case.reference)),
        **refine.quality(picture(node_id(graph, "SaveImage")), case, reader),
    }
