"""Random combinations of family, batch, sizes, masks, references, halves and sampler against the oracle.

`make fuzz` runs a thousand of them; REFATTENTION_FUZZ=<number> as many as wanted. A case is its number, so that one
that failed can be run alone.
"""

from __future__ import annotations

import os
import random
from typing import Any

import comfy.model_patcher
import pytest
import torch
from families import FAMILIES, VIDEO, tiny_latent, tiny_model, tiny_prompt
from naive_families import NaiveFamilyRefDrop
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, sample
from torch import Tensor

# Two steps of heun turn a difference of 1e-6 in the first noise of these untrained models into 4e-4, the other samplers
# into 1e-5.
LIMITS = {"heun": 2e-3}
LIMIT = 2e-4
# All that the host takes for these.
WHOLE_TOKENS = {"hunyuan", "mochi", "cosmos", "kandinsky5", "kandinsky5_image"}
TWO_FRAMES = {"cogvideo15"}  # are a token
# Their references need a prompt of their own, or a size of the picture's, or more than a few pixels.
NOT_DRAWN = {"pid", "scail", "hidream_o1", "wan_vace"}
CASES = int(os.environ.get("REFATTENTION_FUZZ", "30"))


def blobs(generator: torch.Generator, count: int) -> Tensor:
    """Masks that cover about half."""
    return (torch.rand(count, 5, 6, generator=generator) > 0.5).float().index_fill(1, torch.tensor([2]), 1.0)


def draw(number: int) -> dict[str, Any]:
    """A case."""
    rng = random.Random(number)
    family = rng.choice([family for family in FAMILIES if family not in NOT_DRAWN])
    step = 2 if family in WHOLE_TOKENS else 1

    def draw_size() -> tuple[int, int]:
        return rng.randrange(4, 12, step), rng.randrange(4, 12, step)

    size = draw_size()
    leading = rng.randint(1, 2)
    case = {
        "family": family,
        "size": size,
        "frames": rng.randint(3, 4) * (1 + (family in TWO_FRAMES)) if family in VIDEO else 0,
        "leading": leading,
        "source": rng.choice(["latent", "batch"]),
        "strength": rng.choice([-0.4, -0.1, 0.2, 0.45]),
        "is_masked": rng.random() < 0.4,
        "is_reference_masked": rng.random() < 0.4,
        "is_split": rng.random() < 0.3,
        "is_cached": rng.random() < 0.3,
        "cfg": rng.choice([1.0, 3.0]),
        "sampler": rng.choice(["euler", "heun", "dpmpp_2m", "ddim"]),
    }
    from_batch = case["source"] == "batch" and family not in VIDEO
    case["batch"] = leading + 1 if from_batch else rng.randint(1, 2)
    # A reference mask in the oracle is on the picture's own grid.
    case["reference_size"] = size if case["is_reference_masked"] else draw_size()
    return case


@pytest.mark.parametrize("number", range(CASES))
def test_equals_the_oracle(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw(number)
    family, count, is_latent = case["family"], case["leading"], case["source"] == "latent"
    generator = torch.Generator().manual_seed(number)
    mask = blobs(generator, 1) if case["is_masked"] else None
    seen = blobs(generator, 1) if case["is_reference_masked"] else None
    samples = [tiny_latent(family, 1, 100 + i, case["reference_size"], frames=1) for i in range(count)]
    if family == "svd":  # there several latents are the frames of one video
        samples, count = (samples[:1], 1) if is_latent else (samples, count)
    patcher = tiny_model(family)
    guide = RefDropSettings(
        case["strength"],
        frozenset(attentions_of(patcher, "test").blocks),
        Reference(torch.cat(samples), None, 5) if is_latent else None,
        batch_references=count,
        mask=mask,
        reference_mask=seen,
        cache=ReferenceCache(2**26) if case["is_cached"] else None,
    )
    shape = torch.cat(samples).shape
    noises = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(5)).split(1)
    theirs = NaiveFamilyRefDrop(
        family,
        case["strength"],
        list(zip(samples, noises, strict=True)) if is_latent else [],
        leading=count,
        mask=None if mask is None else mask[0],
        reference_mask=None if seen is None else seen[0],
    ).attach(tiny_model(family))
    if case["is_split"]:
        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    noise = tiny_latent(family, case["batch"], number, case["size"], case["frames"])
    prompts = tiny_prompt(family, 1), tiny_prompt(family, 2)
    settings = {"steps": 2, "cfg": case["cfg"], "sampler": case["sampler"]}
    ours = apply_refdrop(patcher, guide)
    want = sample(theirs, noise, *prompts, **settings)
    for _ in range(1 + case["is_cached"]):  # the second time from the cache
        assert distance(sample(ours, noise, *prompts, **settings), want) < LIMITS.get(case["sampler"], LIMIT), case
