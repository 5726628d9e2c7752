"""P3S on U-Nets that take more than the latent, and on a model with a LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import UNET, TinyFamily, random_model
from p3s_support import VISION_WIDTH, fill_zeros
from refattention.core.models.base import fingerprint
from refattention.core.p3s.adapter import Origin, TrainedAdapter, for_model, trainable, trained_weights
from refattention.core.p3s.layout import source_name, table
from refattention.core.p3s.network import P3SNetwork
from refattention.core.p3s.settings import Adapter, P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.training import frozen_copy
from sampling import distance, latent, sample
from torch import Tensor

FIRST = "input_blocks.0.0.weight"
CONFIG = {**UNET, "context_dim": 24, "num_classes": None}
MORE = {"inpainting": ("SD15", 9), "instruction": ("SD15_instructpix2pix", 8)}


def prompt(seed: int) -> list[Any]:
    return [[latent(1, 5, 24, seed=seed), {}]]


def made(host_class: str, channels: int) -> Any:
    return random_model(TinyFamily(host_class, {**CONFIG, "in_channels": channels}, (4, 8, 12)))


@pytest.fixture(scope="module")
def base() -> Any:
    return made("SD15", 4)


@pytest.fixture(scope="module", params=MORE.values(), ids=MORE)
def larger(request: pytest.FixtureRequest, base: Any) -> Any:
    """The same model with further inputs, to which it is blind."""
    patcher = made(*request.param)
    with torch.no_grad():
        for name, weight in patcher.model.diffusion_model.state_dict().items():
            own = base.model.diffusion_model.state_dict()[name]
            if name == FIRST:
                weight.zero_()
                weight[:, :4] = own
            else:
                weight.copy_(own)
    return patcher


def picture(patcher: Any) -> Tensor:
    return sample(patcher, latent(2, 4, 8, 12), prompt(1), prompt(2), cfg=4.0)


def injected(patcher: Any, adapter: TrainedAdapter | None = None) -> Any:
    part = adapter and Adapter(for_model(adapter, patcher, "SD15"), latent(1, 5, VISION_WIDTH, seed=8))
    return apply_p3s(patcher, P3SSettings(Reference(latent(1, 4, 6, 10, seed=3), None, 5), part))


def test_without_training_it_injects_as_into_the_model_without_further_inputs(base: Any, larger: Any) -> None:
    got, want = picture(injected(larger)), picture(injected(base))
    assert distance(want, picture(base)) > 1e-4
    assert distance(got, want) < 1e-5


def test_an_adapter_of_the_base_fits_both(base: Any, larger: Any) -> None:
    network = trainable(base, VISION_WIDTH, seed=0)
    with torch.no_grad():
        fill_zeros(network)
    origin = Origin("SD15", fingerprint(base), VISION_WIDTH, "sks", "dog", "a photo of sks dog", {})
    adapter = TrainedAdapter(trained_weights(network, base), origin)
    got, want = picture(injected(larger, adapter)), picture(injected(base, adapter))
    assert distance(want, picture(base)) > 1e-4
    assert distance(got, want) < 1e-5


def test_training_with_one_is_refused(larger: Any) -> None:
    message = r"P3S Train needs a U-Net that takes the 4 channels of a latent, but this one takes [89]: an inpainting"
    with pytest.raises(RuntimeError, match=message):
        trainable(larger, VISION_WIDTH, seed=0)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_the_copy_starts_with_the_lora_that_the_frozen_unet_has(base: Any, is_loaded: bool) -> None:
    patcher = base.clone()
    keys = [key for key in patcher.model_state_dict() if key.endswith("attn1.to_k.weight")]
    plain = {key: patcher.get_model_object(key).clone() for key in keys}
    lora = {key: latent(*plain[key].shape, seed=number) for number, key in enumerate(keys)}
    assert len(patcher.add_patches({key: (change,) for key, change in lora.items()}, 0.5)) == len(keys)
    if is_loaded:
        picture(patcher)
    network: P3SNetwork = trainable(patcher, VISION_WIDTH, seed=0)
    frozen = frozen_copy(patcher, torch.float32).state_dict()
    compared = 0
    for name, weight in network.unet.state_dict().items():
        source = source_name(name, table(patcher.model.model_config.unet_config))
        assert torch.equal(weight, frozen[source])
        key = f"diffusion_model.{source}"
        if key in lora:
            assert torch.allclose(weight, plain[key] + 0.5 * lora[key])
            compared += 1
    assert compared
