"""Small models and short sampling runs for the tests."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable, Sequence
from typing import Any

import comfy.hooks
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from refattention_demo.loading import load
from torch import Tensor

FAMILIES = ["sd15", "sdxl"]


@functools.cache
def _random_model(family: str) -> ModelPatcher:
    patcher, _, _ = load(family)
    generator = torch.Generator().manual_seed(0)
    for name, weight in patcher.model.diffusion_model.state_dict().items():
        fan_in = weight[0].numel() if weight.ndim > 1 else 0
        random = torch.randn(weight.shape, generator=generator)
        weight.copy_(random * fan_in**-0.5 if fan_in else 0.1 * random + name.endswith("weight"))
    return patcher


def model(family: str) -> ModelPatcher:
    """A fresh clone of the family's demo model with plain random weights: tame enough to compare numbers."""
    return _random_model(family).clone()


def held_in(patcher: ModelPatcher, dtype: torch.dtype) -> ModelPatcher:
    """The model as ComfyUI loads its file in another precision."""
    kept = (patcher.model.model_config, getattr(patcher.model, "current_patcher", None))
    network = copy.deepcopy(patcher.model, {id(each): each for each in kept})
    network.diffusion_model.to(dtype)
    return ModelPatcher(network, patcher.load_device, patcher.offload_device)


def prompt(family: str, seed: int, tokens: int = 77) -> list[Any]:
    """A conditioning with random text features in the form the host's text nodes give."""
    config = model(family).model.model_config.unet_config
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, config["context_dim"], generator=generator)
    adm = config.get("adm_in_channels")
    if not adm:
        return [[text, {}]]
    return [[text, {"pooled_output": torch.randn(1, adm - 6 * 256, generator=generator)}]]


def latent(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(
    patcher: ModelPatcher,
    noise: Tensor,
    positive: list[Any],
    negative: list[Any],
    *,
    steps: int = 3,
    cfg: float = 5.0,
    sampler: str = "euler",
    seed: int = 7,
    callback: Callable[..., None] | None = None,
) -> Tensor:
    """What KSampler does with an empty latent."""
    with torch.inference_mode():
        return comfy.sample.sample(
            patcher,
            noise,
            steps,
            cfg,
            sampler,
            "normal",
            positive,
            negative,
            torch.zeros_like(noise),
            seed=seed,
            callback=callback,
            disable_pbar=True,
        )


def distance(got: Tensor, want: Tensor) -> float:
    """Largest difference, in units of the latents' spread where that is more than 1."""
    return ((got - want).abs().max() / want.std().clamp(min=1)).item()


def bringing(prompt: list[Any], weights: dict[str, Any], keyframes: Sequence[tuple[float, float]] = ()) -> list[Any]:
    """A prompt that brings changes of the model's weights along, as Create Hook LoRA makes it.

    Args:
        weights: as `ModelPatcher.add_patches` takes them.
        keyframes: starts and strengths; without them it is 1 all the time.
    """
    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.0)
    hook.weights, hook.need_weight_init = weights, False
    for start, strength in keyframes:
        hook.hook_keyframe.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return [[text, {**options, "hooks": group}] for text, options in prompt]


def guide_all(patcher: ModelPatcher) -> frozenset[tuple[str, int]]:
    """All attention blocks of a model."""
    from refattention.core.patches.unet import self_attention_blocks

    return frozenset(self_attention_blocks(patcher.model.diffusion_model))


def check_model_stays(patcher: ModelPatcher, patch: Callable[[ModelPatcher], ModelPatcher], *prompts: Any) -> None:
    """A patch changes the picture, but neither the model it is connected to nor what that paints."""
    noise = latent(1, 4, 16, 12)
    before, options = sample(patcher, noise, *prompts), str(patcher.model_options)
    assert distance(sample(patch(patcher), noise, *prompts), before) > 1e-3
    assert torch.equal(sample(patcher, noise, *prompts), before)
    assert str(patcher.model_options) == options and not patcher.wrappers


def check_halves(
    monkeypatch: pytest.MonkeyPatch,
    base: Callable[[], ModelPatcher],
    patch: Callable[[ModelPatcher], Any],
    run: Callable[[Any], Tensor],
) -> None:
    """It does not matter which half of the guidance comes first, nor whether memory is short and each comes alone.

    Args:
        base: makes a model, which `patch` patches and `run` samples with.
    """
    together, swapped, watched, calls = run(patch(base())), base(), base(), []
    swapped.add_wrapper_with_key(
        WrappersMP.CALC_COND_BATCH, "swap", lambda ex, m, conds, *rest: ex(m, conds[::-1], *rest)[::-1]
    )
    assert distance(run(patch(swapped)), together) < 1e-5
    watched.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "watch", lambda ex, *a, **k: calls.append(a[5]["cond_or_uncond"]) or ex(*a, **k)
    )
    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device: 0)
    assert distance(run(patch(watched)), together) < 1e-4
    assert calls and all(len(call) == 1 for call in calls)


def check_nothing_stays(run: Callable[..., Tensor]) -> None:
    """Runs, cancelled ones too, leave no tensor behind, and the next gives the same.

    Args:
        run: samples; takes a `callback`.
    """

    def cancel(*_: Any) -> None:
        raise InterruptProcessingException

    want = run()
    before = _live_tensors()
    run()
    for _ in range(2):
        with pytest.raises(InterruptProcessingException):
            run(callback=cancel)
    assert _live_tensors() <= before
    assert torch.equal(run(), want)


def _live_tensors() -> set[int]:
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if issubclass(type(thing), Tensor)}
