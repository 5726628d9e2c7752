"""What other packs put between ComfyUI's sampler and the model, rebuilt in a few lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed, timestep_embedding
from comfy.samplers import cond_cat, get_area_and_mult
from comfy.utils import repeat_to_batch_size
from torch import Tensor


class TiledSampling:
    """Passes the picture tile by tile, several at once, as tiled diffusion does: dim 0 holds tile after tile.

    Args:
        side: of a tile, in latents.
        at_once: tiles in a forward pass.
    """

    def __init__(self, side: int, at_once: int) -> None:
        self.side = side
        self.at_once = at_once

    def attach(self, patcher: Any) -> Any:
        patched = patcher.clone()
        patched.set_model_unet_function_wrapper(self)
        return patched

    def __call__(self, model_function: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x, out = args["input"], torch.zeros_like(args["input"])
        corners = [(y, x0) for y in range(0, x.shape[-2], self.side) for x0 in range(0, x.shape[-1], self.side)]
        places = [(..., slice(y, y + self.side), slice(x0, x0 + self.side)) for y, x0 in corners]
        for start in range(0, len(places), self.at_once):
            some = places[start : start + self.at_once]
            tiles = torch.cat([x[place] for place in some])

            def repeated(value: Any, count: int = len(tiles)) -> Any:
                return repeat_to_batch_size(value, count) if isinstance(value, Tensor) else value

            inputs = {name: repeated(value) for name, value in args["c"].items()}
            done = model_function(tiles, repeated(args["timestep"]), **inputs)
            for place, tile in zip(some, done.split(len(x)), strict=True):
                out[place] = tile
        return out


class OwnLayers:
    """Runs the U-Net's layers by itself and never asks ComfyUI to, as DeepCache does.

    Args:
        interval: of so many steps one is computed, the others repeat what its deepest layers gave.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.step = 0
        self.deep: Tensor | None = None

    def attach(self, patcher: Any) -> Any:
        patched = patcher.clone()
        self.model = patched.model
        patched.set_model_unet_function_wrapper(self)
        return patched

    def __call__(self, model_function: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x, sigma, c = args["input"], args["timestep"], args["c"]
        unet, sampling, options = self.model.diffusion_model, self.model.model_sampling, c["transformer_options"]
        text, h = c["c_crossattn"], sampling.calculate_input(sigma, x)
        embedded = unet.time_embed(timestep_embedding(sampling.timestep(sigma).float(), unet.model_channels))
        skips = []
        for number, block in enumerate(unet.input_blocks):
            options["block"] = ("input", number)
            h = forward_timestep_embed(block, h, embedded, text, options)
            skips.append(h)
        if self.step % self.interval == 0:
            options["block"] = ("middle", 0)
            self.deep = forward_timestep_embed(unet.middle_block, h, embedded, text, options)
        h = self.deep
        for number, block in enumerate(unet.output_blocks):
            options["block"] = ("output", number)
            h = torch.cat([h, skips.pop()], dim=1)
            shape = skips[-1].shape if skips else None
            h = forward_timestep_embed(block, h, embedded, text, options, shape)
        self.step += 1
        return sampling.calculate_denoised(sigma, unet.out(h), x)


def with_own_evaluation(patcher: Any) -> Any:
    """Passes each prompt through the model by itself, past ComfyUI's `calc_cond_batch`, as regional prompting may."""

    def evaluate(args: dict[str, Any]) -> list[Tensor]:
        model, x, sigma, options = args["model"], args["input"], args["sigma"], args["model_options"]
        found = []
        for half, entries in enumerate(args["conds"]):
            inputs = cond_cat([get_area_and_mult(entry, x, sigma).conditioning for entry in (entries or [])[:1]])
            inputs["transformer_options"] = {**options["transformer_options"], "cond_or_uncond": [half]}
            found.append(model.apply_model(x, sigma, **inputs) if entries else torch.zeros_like(x))
        return found

    patched = patcher.clone()
    patched.set_model_sampler_calc_cond_batch_function(evaluate)
    return patched


class OneBlock(torch.nn.Module):
    """Puts one block in place of all of Flux's for the time of a pass, as first-block caches do."""

    def attach(self, patcher: Any) -> Any:
        patched = patcher.clone()
        self.__dict__["model"] = patched.model.diffusion_model  # not a part of this module
        patched.set_model_unet_function_wrapper(self.around)
        return patched

    def around(self, model_function: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        own = {name: getattr(self.model, name) for name in ("double_blocks", "single_blocks")}
        self.__dict__["own"] = own
        self.model.double_blocks, self.model.single_blocks = torch.nn.ModuleList([self]), torch.nn.ModuleList()
        try:
            return model_function(args["input"], args["timestep"], **args["c"])
        finally:
            for name, blocks in own.items():
                setattr(self.model, name, blocks)

    def forward(self, img: Tensor, txt: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        for block in self.own["double_blocks"]:
            img, txt = block(img=img, txt=txt, **inputs)
        both = torch.cat([txt, img], 1)
        for block in self.own["single_blocks"]:
            both = block(both, **inputs)
        return both[:, txt.shape[1] :], txt
