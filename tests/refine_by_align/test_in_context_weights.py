"""Editing models whose weights are changed by a LoRA or kept in codes: the same as with the weights written out."""

from __future__ import annotations

from typing import Any

import comfy.ops
import pytest
import torch
from editing import EDITING, AnyCodec, editing_family, editing_model, prompt
from families import random_model, tiny_latent
from refattention.core.patches.families.table import attentions_of
from refattention.core.refine_by_align.back_ends import IN_CONTEXT
from refattention.core.refine_by_align.in_context import in_context_maps
from refattention.core.refine_by_align.kernel import group_of_mask
from refattention.core.refine_by_align.observe import Look, layers_of
from refattention.nodes.refine_by_align_stages import RefineRegion
from sampling import distance
from torch import Tensor

MASK = torch.zeros(64, 48)
MASK[16:50, 8:30] = 1


def maps(name: str, patcher: Any) -> Tensor:
    """All maps in a row."""
    picture, reference = (tiny_latent(name, seed=seed) for seed in (0, 1))
    look = Look(frozenset(layers_of(attentions_of(patcher, "Node"))), (261,), 3)

    def groups(grid: tuple[int, int]) -> Tensor:
        return group_of_mask(MASK, grid)

    with torch.inference_mode():
        (found,) = in_context_maps(patcher, prompt(name, 1), picture, [reference], look, groups, "Node")
    return torch.cat([each.flatten() for each in found.values()])


def painted(name: str, patcher: Any) -> Tensor:
    """With half the references' strength, where the pack itself computes attention."""
    generator = torch.Generator().manual_seed(0)
    image, reference = torch.rand(2, 1, 96, 96, 3, generator=generator)
    mask = torch.zeros(1, 96, 96)
    mask[:, 30:60, 30:60] = 1
    steps = {"seed": 3, "steps": 1, "cfg": 1.0, "denoise": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    work = {"context": 4.0, "working_size": 96, "feather": 0, "areas": "one by one"}
    prompts = prompt(name, 1), prompt(name, 2)
    with torch.inference_mode():
        given = {"image": image, "mask": mask, "reference_image": reference, "strength": 0.5, "back_end": IN_CONTEXT}
        return RefineRegion.execute(patcher, AnyCodec(name), *prompts, **given, **steps, **work).args[0]


@pytest.mark.parametrize("name", EDITING)
def test_a_lora_acts_as_if_its_sum_were_the_models_weights(name: str) -> None:
    """Bit for bit, in the map and in what is painted; the connected model keeps its own."""
    plain = editing_model(name)
    keys = [
        key
        for key in plain.model_state_dict()
        if key.endswith(("qkv.weight", "to_q.weight", "linear1.weight", "wq.weight"))
    ]
    generator = torch.Generator().manual_seed(7)
    change = {key: torch.randn(plain.get_model_object(key).shape, generator=generator) * 0.2 for key in keys}
    before = maps(name, plain)
    lora, merged = editing_model(name), random_model(editing_family(name))
    assert len(lora.add_patches({key: (each,) for key, each in change.items()}, 0.5)) == len(keys) > 0
    with torch.no_grad():
        for key, each in change.items():
            merged.get_model_object(key).add_(0.5 * each)
    want = maps(name, merged)
    assert torch.equal(maps(name, lora), want) and not torch.allclose(want, before, rtol=1e-2)
    assert torch.equal(painted(name, lora), painted(name, merged))
    assert torch.equal(maps(name, plain), before)


class Coded(comfy.ops.manual_cast):
    """Layers as loaders of GGUF files bring them: weights in codes of a byte, written out when a layer runs."""

    class Linear(comfy.ops.manual_cast.Linear):
        """Has a scale for each of its outputs."""

        def encode(self) -> Tensor:
            """Keeps the weight in codes alone, and returns what they stand for."""
            weight = self.weight.detach()
            self.scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
            self.codes = (weight / self.scale).round().to(torch.int8)
            self.weight = torch.nn.Parameter(torch.full_like(weight, torch.nan), requires_grad=False)
            return self.codes * self.scale

        def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
            """With the weight written out."""
            return torch.nn.functional.linear(x, self.codes * self.scale, self.bias)


@pytest.mark.parametrize("name", EDITING)
def test_weights_in_codes_act_as_what_they_stand_for(name: str) -> None:
    """Bit for bit; who reads a weight past its layer gets NaN. The codes themselves are a little off."""
    plain, coded = editing_model(name), random_model(editing_family(name), operations=Coded)
    written_out = random_model(editing_family(name))
    with torch.no_grad():
        for key, module in coded.model.diffusion_model.named_modules():
            if isinstance(module, Coded.Linear):
                written_out.model.diffusion_model.get_submodule(key).weight.copy_(module.encode())
    want, before = maps(name, written_out), maps(name, plain)
    assert torch.equal(maps(name, coded), want)
    assert 0 < distance(want, before) < 0.1 * before.max()
    assert torch.equal(painted(name, coded), painted(name, written_out))
