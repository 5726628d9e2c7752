"""Every method after every other one on one compiled model gives what it gives on the model itself.

ComfyUI compiles without a check that the patches are those of the pass that was compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from naive_deadiff import random_image
from p3s_support import Codec, adapter, inject
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.unet import self_attention_blocks
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import latent, model, prompt, sample
from torch import Tensor

NOISE = latent(2, 4, 16, 12)
PROMPTS = prompt("sd15", 1), prompt("sd15", 2)


def refdrop(patcher: Any, **settings: Any) -> Any:
    blocks = frozenset(self_attention_blocks(patcher.model.diffusion_model))
    return apply_refdrop(patcher, RefDropSettings(0.4, blocks, **settings))


METHODS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda patcher: patcher,
    "RefDrop": lambda patcher: refdrop(patcher, reference=Reference(latent(1, 4, 9, 11, seed=3), None, 5)),
    "RefDrop in the batch": refdrop,
    "P3S": lambda patcher: inject(patcher, vae=Codec()),
    "P3S with adapter": lambda patcher: inject(patcher, adapter=adapter()),
    "DEADiff": lambda patcher: apply_deadiff(patcher, DEADiffSettings(random_image(patcher))),
    "both": lambda patcher: apply_deadiff(refdrop(patcher), DEADiffSettings(random_image(patcher))),
}


def picture(patcher: Any) -> Tensor:
    return sample(patcher, NOISE, *PROMPTS, steps=2)


def every_pair_in_a_row(names: list[str]) -> list[str]:
    """A walk over the names in which each comes right after each other one, and after itself."""
    walk = names[:1]
    left = {(one, other) for one in names for other in names}
    while left:
        one = walk[-1]
        other = next((name for name in names if (one, name) in left), None) or next(first for first, _ in sorted(left))
        left.discard((one, other))
        walk.append(other)
    return walk


@pytest.fixture(scope="module")
def pictures() -> dict[str, Tensor]:
    """What each method gives without compiling."""
    return {name: picture(apply(model("sd15"))) for name, apply in METHODS.items()}


def test_every_method_after_every_other_one(pictures: dict[str, Tensor]) -> None:
    compiled = model("sd15")
    set_torch_compile_wrapper(compiled, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    patched = {name: apply(compiled) for name, apply in METHODS.items()}
    before = None
    for name in every_pair_in_a_row(list(METHODS)):
        assert torch.equal(picture(patched[name]), pictures[name]), f"{name} after {before}"
        before = name


def test_the_order_of_the_nodes_does_not_matter(pictures: dict[str, Tensor]) -> None:
    for name, apply in METHODS.items():
        compiled = apply(model("sd15"))
        set_torch_compile_wrapper(compiled, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
        assert torch.equal(picture(compiled), pictures[name]), name
