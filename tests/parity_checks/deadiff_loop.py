"""DEADiff's DDIM loop: DEADiffStyle and DEADiffSampler in the host's sampling, against the official application's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import deadiff_support as deadiff
import torch
from torch import Tensor

if TYPE_CHECKING:
    from parity import Golden

RELATIVE_TOLERANCE = 1e-4  # of the standard deviation of what was recorded


def outputs(golden: Golden) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Yields (name, ours, recorded, tolerance) for the latents after each step, the estimates, and the end."""
    t, info = golden.tensors, golden.info
    model, weights, _ = deadiff.golden_unet(golden.path.parent, info["unet"])
    tokens = deadiff.RecordedTokens(weights, t["in.style_tokens"], t["in.content_tokens"], info["content_layer"])
    for run in info["runs"]:
        styled = deadiff.apply(model, tokens, mode=deadiff.NODE_MODES[run["mode"]], strength=run["img_weight"])
        texts = t["in.text"], t["in.uncond_text"]
        found = deadiff.official_loop(styled, t["in.x_T"], *texts, steps=info["requested_steps"], cfg=run["cfg"])
        recorded = {key: t[key] for key in t if key.startswith(f"{run['tag']}.")}
        for name in sorted(recorded):
            want = recorded[name]
            got = found.get(name.removeprefix(f"{run['tag']}."), torch.zeros(0))
            yield name, got, want, RELATIVE_TOLERANCE * want.std().item()
