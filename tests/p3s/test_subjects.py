"""P3S with several subjects, in regions, with other negative halves, a biased noise, a ControlNet and a LoRA."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from comfy.controlnet import ControlBase
from families import tiny_model, tiny_prompt
from naive import HiddenStates, labelled_layers
from p3s_support import VISION_WIDTH, fill_zeros
from refattention.core.p3s.adapter import Origin, TrainedAdapter, for_model, new_adapter, trainable, trained_weights
from refattention.core.p3s.settings import Adapter, P3SSettings, Schedule
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.reference_pass import Reference
from sampling import distance, latent, sample
from torch import Tensor

SIZE = (4, 8, 8)
PROMPTS = tiny_prompt("sd15", 1), tiny_prompt("sd15", 2)
VISION = latent(1, 5, VISION_WIDTH, seed=8)
LEFT = torch.zeros(1, 64, 64)
LEFT[..., :32] = 1
RIGHT = 1 - LEFT


def injected(patcher: Any, seed: int = 3, network: Any = None, **settings: Any) -> Any:
    reference = Reference(latent(1, *SIZE, seed=seed), None, 5)
    adapter = None if network is None else Adapter(network, VISION, False)
    return apply_p3s(patcher, P3SSettings(reference, adapter, **settings))


def picture(patcher: Any, **run: Any) -> Tensor:
    return sample(patcher, latent(2, *SIZE), *PROMPTS, **run)


def filled(patcher: Any) -> Any:
    """An adapter with something in it."""
    network = new_adapter(patcher, VISION_WIDTH, seed=0)
    with torch.no_grad():
        fill_zeros(network.model)
    return network


def inside(mask: Tensor | None, tokens: int) -> Tensor:
    side = round(tokens**0.5)
    if mask is None:
        return torch.ones(tokens, dtype=torch.bool)
    return (mask[:, :: 64 // side, :: 64 // side] > 0).flatten()


@pytest.mark.parametrize(
    "regions", [(None, None), (LEFT, RIGHT), (LEFT, None)], ids=["both", "halves", "one in a half"]
)
def test_several_subjects_follow_the_equation_where_they_act(regions: tuple[Any, Any]) -> None:
    """Each query attends to what is injected where it is; what lies outside of a region is as without the node."""
    patcher, states = tiny_model("sd15"), HiddenStates()
    states.attach(patcher)
    strengths, lambdas = (1.0, 0.5), (0.2, 0.6)
    patched = patcher
    for number, (region, strength, value_strength) in enumerate(zip(regions, strengths, lambdas, strict=True)):
        patched = injected(patched, 3 + number, strength=strength, value_strength=value_strength, mask=region)
    picture(patched, steps=1)

    layers = [layer.attn1 for _, layer in labelled_layers(patcher)]
    count = len(layers)
    read = states.inputs[:count], states.inputs[count : 2 * count]
    own, outs = states.inputs[2 * count :], states.outputs[-count:]
    assert len(own) == count
    for number, (layer, z, out) in enumerate(zip(layers, own, outs, strict=True)):
        z = z.double()
        places = [inside(region, z.shape[1]) for region in regions]
        fs = [each[number].double().repeat_interleave(2, 0) for each in read]
        w_q, w_k, w_v = (one.weight.detach().double().T for one in (layer.to_q, layer.to_k, layer.to_v))
        for first in (True, False):
            for second in (True, False):
                queries = (places[0] == first) & (places[1] == second)
                keys, values, added = [z], torch.zeros_like(z), []
                for is_there, f, strength, value_strength, place in zip(
                    (first, second), fs, strengths, lambdas, places, strict=True
                ):
                    if is_there:
                        epsilon = 0.7 * strength
                        keys.append(epsilon * f)
                        values += value_strength * epsilon * f * place[:, None]
                        added.append(epsilon * f)
                values = torch.cat([z + values, *added], 1)
                want = oracle.batched(z[:, queries] @ w_q, torch.cat(keys, 1) @ w_k, values @ w_v, layer.heads)
                with torch.inference_mode():
                    assert queries.sum() == 0 or (out[:, queries] - layer.to_out(want.float())).abs().max() < 1e-4


def test_the_order_of_the_nodes_does_not_matter() -> None:
    network = filled(tiny_model("sd15"))
    one, other = {"seed": 3, "mask": LEFT}, {"seed": 4, "network": network, "strength": 0.5}
    first = picture(injected(injected(tiny_model("sd15"), **one), **other))
    second = picture(injected(injected(tiny_model("sd15"), **other), **one))
    assert distance(first, second) < 1e-4
    for alone in (one, other):
        assert distance(first, picture(injected(tiny_model("sd15"), **alone))) > 1e-3


def test_two_adapters_read_by_their_own_networks() -> None:
    patcher = tiny_model("sd15")
    networks = [filled(patcher), filled(patcher)]
    with torch.no_grad():
        for weight in networks[1].model.zero_hidden.parameters():
            weight.mul_(-1)
    read: list[Tensor] = []
    patched = patcher
    for number, network in enumerate(networks):
        network.model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
        patched = injected(patched, 3 + number, network)
    both = picture(patched, steps=1)
    latents = [patcher.model.process_latent_in(latent(1, *SIZE, seed=seed)) for seed in (3, 4)]
    assert all(torch.equal(each[:1], want) for each, want in zip(read, latents, strict=True))
    for number, network in enumerate(networks):
        assert distance(both, picture(injected(patcher, 3 + number, network), steps=1)) > 1e-3


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_black_region_and_a_white_one(with_adapter: bool) -> None:
    patcher = tiny_model("sd15")
    more = {"network": filled(patcher)} if with_adapter else {}
    assert torch.equal(picture(injected(patcher, mask=torch.zeros(1, 8, 8), **more)), picture(patcher))
    everywhere = picture(injected(patcher, **more))
    assert distance(picture(injected(patcher, mask=torch.ones(1, 8, 8), **more)), everywhere) < 1e-5
    assert distance(picture(injected(patcher, mask=LEFT, **more)), everywhere) > 1e-3


def halves(patcher: Any) -> tuple[Tensor, Tensor]:
    """What the model predicts for the positive and the negative prompt in the first step."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(args: dict[str, Any]) -> Tensor:
        seen.append((args["cond_denoised"].clone(), args["uncond_denoised"].clone()))
        return args["cond"]

    patched = patcher.clone()
    patched.set_model_sampler_cfg_function(record)
    picture(patched, steps=1)
    return seen[0]


@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_negative_half_is_the_plain_model_without_injection(with_adapter: bool) -> None:
    patcher = tiny_model("sd15")
    more = {"network": filled(patcher)} if with_adapter else {}
    plain, same = halves(patcher), halves(injected(patcher, **more))
    got = halves(injected(patcher, negative="no injection", **more))
    assert distance(got[0], same[0]) < 1e-5 and distance(got[1], plain[1]) < 1e-5
    assert distance(same[1], plain[1]) > 1e-4


def test_the_negative_half_reads_an_empty_reference() -> None:
    patcher = tiny_model("sd15")
    network, read = filled(patcher), []
    network.model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[:2]))
    same, got = (
        halves(injected(patcher, network=network, negative=way)) for way in ("same reference", "empty reference")
    )
    assert distance(got[0], same[0]) < 1e-5 and distance(got[1], same[1]) > 1e-3
    for latents, vision in read[1:]:
        negative = [not each.any() for each in latents]
        assert sum(negative) == 1 and [not each.any() for each in vision] == negative


def test_an_empty_reference_needs_an_adapter() -> None:
    with pytest.raises(ValueError, match="negative is 'empty reference', but only an adapter can read one"):
        injected(tiny_model("sd15"), negative="empty reference")


def test_a_biased_noise_is_the_noise_with_the_reference_added() -> None:
    patcher, noise = tiny_model("sd15"), latent(2, *SIZE)
    reference = patcher.model.process_latent_in(latent(1, *SIZE, seed=3))
    want = sample(injected(patcher), noise + 0.1 * reference, *PROMPTS)
    assert distance(sample(injected(patcher, noise_bias=0.1), noise, *PROMPTS), want) < 1e-5
    assert distance(want, sample(injected(patcher), noise, *PROMPTS)) > 1e-3
    masked = sample(injected(patcher, noise_bias=0.1, subject_mask=LEFT, mask=RIGHT), noise, *PROMPTS)
    unbiased = sample(injected(patcher, subject_mask=LEFT, mask=RIGHT), noise, *PROMPTS)
    assert torch.equal(masked, unbiased)  # where the subject may act, it is not
    still = torch.zeros(1, *SIZE)  # a second stage, which goes on from a picture with its noise
    assert torch.equal(
        sample(injected(patcher, noise_bias=0.1), still, *PROMPTS), sample(injected(patcher), still, *PROMPTS)
    )


def test_a_learned_weight_takes_the_place_of_the_schedule() -> None:
    patcher = tiny_model("sd15")
    network = trainable(patcher, VISION_WIDTH, seed=0, learned_weight=True)
    with torch.no_grad():
        fill_zeros(network)
        network.weight.out.weight.fill_(0.3)
        network.weight.out.bias.fill_(-0.2)
        hidden = network.weight.hidden.weight.double().flatten() + network.weight.hidden.bias.double()
        learned = 1 + (0.3 * hidden * hidden.sigmoid()).sum().item() - 0.2  # at t / T = 1
    family = type(patcher.model.model_config).__name__
    origin = Origin(family, "", VISION_WIDTH, "", "", "", {})
    adapter = for_model(TrainedAdapter(trained_weights(network, patcher), origin), patcher, family)
    got = picture(injected(patcher, network=adapter, schedule=Schedule("learned")), steps=1)
    want = picture(injected(patcher, network=adapter, schedule=Schedule("fixed"), strength=learned), steps=1)
    assert distance(got, want) < 1e-5
    with pytest.raises(ValueError, match="schedule is 'learned', but the adapter has no weight that was learned"):
        injected(patcher, network=filled(patcher), schedule=Schedule("learned"))


class Control(ControlBase):
    """Stands in for a ControlNet: adds something in the middle of the U-Net, and remembers what it is asked about."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount, self.sizes = amount, list[tuple[int, ...]]()

    def get_control(self, x_noisy: Tensor, *args: Any) -> dict[str, list[Tensor]]:
        self.sizes.append(tuple(x_noisy.shape))
        count, _, height, width = x_noisy.shape
        added = self.amount * latent(1, 64, height // 2, width // 2, seed=9)
        return {"input": [], "middle": [added.expand(count, -1, -1, -1)], "output": []}


def controlled(amount: float) -> tuple[list[Any], list[Any], Control]:
    control = Control(amount)
    positive, negative = (
        [[text, {**options, "control": control, "control_apply_to_uncond": True}]] for ((text, options),) in PROMPTS
    )
    return positive, negative, control


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_controlnet_acts_on_the_picture_and_not_on_what_is_read(with_adapter: bool) -> None:
    patcher, noise = tiny_model("sd15"), latent(2, *SIZE)
    patched = injected(patcher, network=filled(patcher) if with_adapter else None)
    *nothing, _ = controlled(0.0)
    *something, control = controlled(1.0)
    alone = sample(patched, noise, *PROMPTS, steps=2)
    assert torch.equal(sample(patched, noise, *nothing, steps=2), alone)
    got = sample(patched, noise, *something, steps=2)
    assert distance(got, alone) > 1e-3
    assert distance(got, sample(patcher, noise, *something, steps=2)) > 1e-3
    assert all(size[1:] == SIZE for size in control.sizes) and len(control.sizes) == 4  # not of the reference's passes


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_lora_is_as_if_its_weights_were_the_models(with_adapter: bool) -> None:
    """Also with an adapter that was made without it; the copy keeps its own weights."""
    patcher = tiny_model("sd15")
    network = filled(patcher) if with_adapter else None
    keys = [key for key in patcher.model_state_dict() if key.endswith(("attn1.to_k.weight", "attn2.to_v.weight"))]
    change = {key: 0.05 * latent(*patcher.get_model_object(key).shape, seed=at) for at, key in enumerate(keys)}
    with_lora = patcher.clone()
    with_lora.add_patches({key: (each,) for key, each in change.items()}, 1.0)
    got, plain = picture(injected(with_lora, network=network)), picture(injected(patcher, network=network))
    merged = tiny_model("sd15")
    kept = {key: merged.get_model_object(key).clone() for key in keys}
    try:
        with torch.inference_mode():
            for key, each in change.items():
                merged.get_model_object(key).add_(each)
        want = picture(injected(merged, network=network))
    finally:
        with torch.inference_mode():
            for key, each in kept.items():
                merged.get_model_object(key).copy_(each)
    assert distance(got, want) < 1e-4
    assert distance(got, plain) > 1e-3
    assert torch.equal(picture(injected(patcher, network=network)), plain)
