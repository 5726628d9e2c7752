"""Leffa on recorded weights and inputs (float32) through the pack's nodes, the host's U-Net classes and its sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import bootstrap
import torch
from torch import Tensor

if TYPE_CHECKING:
    from parity import Golden

bootstrap.prepare_host(exact=True)

import comfy.samplers
from comfy.k_diffusion.sampling import sample_ddpm
from refattention.core.leffa.loader import LeffaParts, from_state_dict
from refattention.core.leffa.wrappers import attach_reference_unet
from refattention.nodes.leffa import EVERY_STEP, ONCE, LeffaTryOn


class RecordedVAE:
    """Hands out the recorded latents: the first call is for the masked person, the second for the reference."""

    def __init__(self, *latents: Tensor) -> None:
        self._latents = list(latents)

    def encode(self, picture: Tensor) -> Tensor:
        """Checks that the picture has the size of the recorded latent."""
        latent = self._latents.pop(0)
        assert picture.shape[1] == 8 * latent.shape[-2] and picture.shape[2] == 8 * latent.shape[-1]
        return latent


class Recorded:
    """The golden's tensors and models."""

    def __init__(self, golden: Golden) -> None:
        self.t = {name.removeprefix("golden."): value for name, value in golden.tensors.items()}
        self.info = golden.info
        weights = {name: value.float() for name, value in golden.tensors.items() if name.startswith("unet")}
        config = golden.info["model"]["comfyui_unet_config"]
        heads = {key: config[key] for key in ("num_heads", "num_head_channels")}
        self.parts: LeffaParts = from_state_dict(weights, golden.path.name, heads)
        self.model = attach_reference_unet(self.parts.generative, self.parts.reference, 1 << 30)

    def node(self, reference: str) -> tuple[Any, ...]:
        """model, positive, negative and latent of the try-on node."""
        t = self.t
        generative = self.parts.generative.model
        vae = RecordedVAE(*(generative.process_latent_out(t[f"in.{n}_latent"]) for n in ("masked_image", "ref")))
        densepose = t["in.densepose_pixel_u8"].movedim(1, -1) / 255
        mask = t["in.mask_pixel"][:, 0].float()
        garment = torch.zeros(*(8 * side for side in t["in.ref_latent"].shape[-2:]), 3)
        garment = garment.expand(len(t["in.ref_latent"]), -1, -1, -1)
        person = torch.zeros_like(densepose)
        return tuple(LeffaTryOn.execute(self.model, vae, person, garment, densepose, mask, reference, 1, True))


def outputs(golden: Golden) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Yields (name, ours, recorded, tolerance) for each recorded output."""
    recorded = Recorded(golden)
    tolerance = golden.info["suggested_float32_tolerances"]
    with torch.inference_mode():
        yield from _inputs(recorded)
        yield from _features(recorded, tolerance)
        yield from _single(recorded, tolerance)
        for mode in sorted({name.split(".")[1] for name in recorded.t if name.endswith(".latents")}):
            yield from _loop(recorded, mode, tolerance)


def _inputs(recorded: Recorded) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    t = recorded.t
    _, positive, _, latent = recorded.node(EVERY_STEP)
    concat = positive[0][1]["noise_concat"]
    yield "in.mask_latent", concat[:, :1], t["in.mask_latent"], 0.0
    yield "in.masked_image_latent", concat[:, 1:5], t["in.masked_image_latent"], 1e-5
    yield "in.densepose_latent", concat[:, 5:], t["in.densepose_latent"], 1e-6
    yield "latent", latent["samples"], torch.zeros_like(t["in.latent"]), 0.0
    sigmas = recorded.model.model.model_sampling.sigmas
    yield "sched.alphas_cumprod", 1 / (sigmas.double() ** 2 + 1), t["sched.alphas_cumprod"].double(), 1e-5


def _features(recorded: Recorded, tolerance: dict[str, Any]) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    latent = recorded.t["in.ref_latent"]
    both = torch.cat([torch.zeros_like(latent), latent])
    features = recorded.parts.reference.model.features(both, recorded.t["in.timestep"][:1])
    for number, feature in enumerate(features):
        want = recorded.t[f"ref_feature.{number:02d}"]
        for half, ours, theirs in zip(("uncond", "cond"), feature.chunk(2), want.chunk(2), strict=True):
            yield f"ref_feature.{number:02d}.{half}", ours, theirs, tolerance[f"ref_feature_{half}_half"]


def _watch(patcher: Any, seen: list[dict[str, Tensor]]) -> None:
    """Records the noise predictions of each evaluation, from the denoised pictures that the sampler gets."""

    def predictions(args: dict[str, Any]) -> Tensor:
        x, sigma = args["input"], args["sigma"].reshape(-1, 1, 1, 1)
        names = {"used": "denoised", "cond": "cond_denoised", "uncond": "uncond_denoised"}
        seen.append({name: (x - args[key]) / sigma for name, key in names.items()})
        return args["denoised"]

    patcher.set_model_sampler_post_cfg_function(predictions)


def _run(
    recorded: Recorded, reference: str, cfg: float, sampler: Callable[..., Tensor], sigmas: Tensor, noise: Tensor
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The stock sampling path; returns the result and the predictions of each evaluation."""
    model, positive, negative, latent = recorded.node(reference)
    seen: list[dict[str, Tensor]] = []
    _watch(model, seen)
    ksampler = comfy.samplers.KSAMPLER(sampler)
    result = comfy.samplers.sample(
        model, noise, positive, negative, cfg, model.load_device, ksampler, sigmas, model.model_options,
        latent_image=latent["samples"], disable_pbar=True,
    )  # fmt: skip
    return model.model.process_latent_in(result), seen


def _single(recorded: Recorded, tolerance: dict[str, Any]) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    t, scale = recorded.t, recorded.info["inputs"]["guidance_scale"]
    sigma = recorded.model.model.model_sampling.sigma(t["in.timestep"][:1])

    def one_evaluation(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        return model(x, sigmas[:1].expand(len(x)), **extra_args)

    sigmas = torch.cat([sigma, torch.zeros(1)])
    seen = _run(recorded, EVERY_STEP, scale, one_evaluation, sigmas, t["in.latent"])[1][0]
    guided = seen["uncond"] + scale * (seen["cond"] - seen["uncond"])
    ours = {"noise_uncond": seen["uncond"], "noise_cond": seen["cond"], "noise_cfg": guided}
    for name, value in {**ours, "noise_rescaled": seen["used"]}.items():
        yield f"single.{name}", value, t[f"single.{name}"], tolerance["single_noise"]


def _loop(recorded: Recorded, mode: str, tolerance: dict[str, Any]) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    t = recorded.t
    steps = len(t["loop.timesteps"])
    noise = iter(t["loop.step_noise"])
    trace: list[Tensor] = []

    def recorded_noise(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        def keep(state: dict[str, Any]) -> None:
            trace.append(state["x"] / (1 + state["sigma"] ** 2) ** 0.5)

        return sample_ddpm(
            model, x, sigmas, extra_args, callback=keep, disable=True, noise_sampler=lambda *_: next(noise)
        )

    cfg = 1.0 if mode == "nocfg" else recorded.info["inputs"]["guidance_in_loop"]
    sampling = recorded.model.model.model_sampling
    sigmas = torch.cat([sampling.sigma(t["loop.timesteps"]), torch.zeros(1)])
    if 1000 % steps == 0:
        stock = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)
        yield f"loop.{mode}.ddim_uniform", stock, sigmas, 1e-4
    reference = ONCE if mode == "accel" else EVERY_STEP
    result, seen = _run(recorded, reference, cfg, recorded_noise, sigmas, t["loop.start_noise"])
    latents = torch.stack([*trace[1:], result])
    yield f"loop.{mode}.latents", latents, t[f"loop.{mode}.latents"], tolerance["loop_latents"]
    for name in ("used", "cond", "uncond"):
        want = t.get(f"loop.{mode}.noise_{name}")
        if want is not None:
            got = torch.stack([one[name] for one in seen])
            yield f"loop.{mode}.noise_{name}", got, want, tolerance["loop_noise"]
