"""P3S with an adapter, on a small model with the true topology, through the host's sampler."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from naive import HiddenStates, labelled_layers
from refattention.core.p3s.adapter import new_adapter
from refattention.core.p3s.features import FeaturesOf
from refattention.core.p3s.network import P3SNetwork
from refattention.core.p3s.settings import Adapter, P3SSettings, Schedule
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.reference_pass import Reference
from sampling import distance, latent, model, prompt, sample
from torch import Tensor

SIZE = (4, 16, 12)
PROMPTS = prompt("sd15", 1), prompt("sd15", 2)
VISION = latent(1, 5, 24, seed=8)


def injected(patcher: Any, network: Any, identity_at_zero: bool = True, **settings: Any) -> Any:
    reference = Reference(settings.pop("samples", latent(1, *SIZE, seed=3)), None, 5)
    return apply_p3s(patcher, P3SSettings(reference, Adapter(network, VISION, identity_at_zero), **settings))


def trained(patcher: Any) -> Any:
    """An adapter whose zero convolutions are not zero."""
    network = new_adapter(patcher, VISION.shape[-1], seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, weight in network.model.state_dict().items():
        if "zero" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5 * weight.shape[0] ** -0.5)
    return network


def watch(network: Any) -> list[FeaturesOf]:
    """Records what the adapter reads."""
    read: list[FeaturesOf] = []
    network.model.register_forward_hook(lambda module, inputs, output: read.append(output))
    return read


def test_an_untrained_adapter_changes_nothing() -> None:
    plain, noise = model("sd15"), latent(2, *SIZE)
    before = sample(plain, noise, *PROMPTS)
    network = new_adapter(plain, VISION.shape[-1], seed=0)
    assert torch.equal(sample(injected(plain, network), noise, *PROMPTS), before)
    assert distance(sample(injected(plain, network, identity_at_zero=False), noise, *PROMPTS), before) > 1e-2


@pytest.mark.parametrize("is_trained", [False, True])
def test_every_attention_follows_the_equation(is_trained: bool) -> None:
    """Without `identity_at_zero`, also for f = 0: tokens of zeros are among the keys."""
    patcher, states = model("sd15"), HiddenStates()
    states.attach(patcher)
    network = trained(patcher) if is_trained else new_adapter(patcher, VISION.shape[-1], seed=0)
    read = watch(network)
    sample(injected(patcher, network, identity_at_zero=False), latent(2, *SIZE), *PROMPTS, steps=1)

    (features,) = read
    layers = [(label, layer.attn1) for label, layer in labelled_layers(patcher)]
    assert len(states.inputs) == len(layers) == len(features)
    for (block, layer), z, out in zip(layers, states.inputs, states.outputs, strict=True):
        f = features[block, 0].hidden.double().repeat_interleave(2, 0)
        assert bool(f.any()) == is_trained
        z = z.double()
        keys, values = torch.cat([z, 0.7 * f], 1), torch.cat([z + 0.2 * 0.7 * f, 0.7 * f], 1)
        w_q, w_k, w_v = (one.weight.detach().double().T for one in (layer.to_q, layer.to_k, layer.to_v))
        want = oracle.batched(z @ w_q, keys @ w_k, values @ w_v, layer.heads)
        with torch.inference_mode():
            assert (out - layer.to_out(want.float())).abs().max() < 1e-4


def test_cross_attention_gets_the_copys_added() -> None:
    """Seen behind the first cross-attention, where nothing else differs if the self-attentions do not."""
    patcher = model("sd15")
    network = trained(patcher)
    for weight in network.model.zero_hidden.state_dict().values():
        weight.zero_()
    read = watch(network)
    label, first = labelled_layers(patcher)[0]
    behind: list[Tensor] = []
    hook = first.norm3.register_forward_hook(lambda module, inputs, output: behind.append(inputs[0].clone()))
    for one in (patcher, injected(patcher, network)):
        sample(one, latent(2, *SIZE), *PROMPTS, steps=1)
    hook.remove()
    plain, with_cross = behind
    cross = read[0][label, 0].cross.repeat_interleave(2, 0)
    assert cross.any()
    assert (with_cross - plain - 0.7 * cross).abs().max() < 1e-5


def test_the_adapter_reads_once_a_step_for_both_halves_and_not_at_weight_0() -> None:
    patcher, texts = model("sd15"), []
    network = trained(patcher)
    read = watch(network)
    network.model.register_forward_pre_hook(lambda module, inputs: texts.append(inputs[3]))
    patched = injected(patcher, network, schedule=Schedule("decreasing"))
    sample(patched, latent(3, *SIZE), *PROMPTS)
    assert [len(features[("middle", 0), 0].hidden) for features in read] == [2, 2]  # of three steps
    (positive, _), (negative, _) = PROMPTS[0][0], PROMPTS[1][0]
    assert all(torch.equal(text, torch.cat([negative, positive])) for text in texts)


def test_the_copy_starts_as_the_model_itself() -> None:
    """Up to its first attention the copy is the frozen U-Net; there they see the same."""
    patcher, states = model("sd15"), HiddenStates()
    states.attach(patcher)
    unet = patcher.model.diffusion_model
    network: P3SNetwork = new_adapter(patcher, VISION.shape[-1], seed=0).model
    first = network.zero_hidden[0]
    first.weight.data.copy_(torch.eye(len(first.weight)))
    one, timesteps, text = latent(1, *SIZE, seed=3), torch.tensor([300.0]), PROMPTS[0][0][0]
    with torch.inference_mode():
        read = network(one, VISION, timesteps, text)
        patches = patcher.model_options["transformer_options"]["patches"]
        unet(network.encoder(one, VISION), timesteps, text, transformer_options={"patches": patches})
    assert torch.allclose(read[("input", 1), 0].hidden, states.inputs[0], atol=1e-5)
    assert torch.equal(read[("input", 1), 0].hidden, read[("input", 2), 0].hidden)


def test_reference_of_another_size_and_a_mask() -> None:
    patcher, noise = model("sd15"), latent(1, *SIZE)
    network = trained(patcher)
    settings = {"samples": latent(1, 4, 9, 11, seed=3)}
    got = sample(injected(patcher, network, **settings), noise, *PROMPTS)
    masked = sample(injected(patcher, network, subject_mask=torch.eye(9)[None], **settings), noise, *PROMPTS)
    assert got.isfinite().all()
    assert distance(got, masked) > 1e-3
