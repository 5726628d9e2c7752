"""SD1.5's U-Net at the demo's width in the host's own class, and sampling from it."""

from __future__ import annotations

import math

import torch
from refattention_demo.families import SD15
from torch import Tensor, nn

from . import host  # noqa: F401 - makes comfy importable
from .device import DEVICE, IS_CPU, half, pixels_last, placed
from .fast import OPTIONS, with_fast_norms

STEPS, SAMPLED_STEPS = 1000, 14


def build() -> nn.Module:
    """The U-Net with weights to begin with, on the device."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    size = SD15.unet
    blocks, depth = size.num_res_blocks, size.transformer_depth
    model = UNetModel(
        image_size=32,
        in_channels=size.in_channels,
        out_channels=size.out_channels,
        model_channels=size.model_channels,
        num_res_blocks=[blocks] * len(size.channel_mult),
        channel_mult=size.channel_mult,
        num_heads=size.num_heads,
        use_spatial_transformer=True,
        transformer_depth=[level for level in depth for _ in range(blocks)],
        transformer_depth_output=[level for level in depth for _ in range(blocks + 1)],
        transformer_depth_middle=[level for level in depth if level][-1],
        context_dim=size.context_dim,
        use_linear_in_transformer=False,
        legacy=False,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    for name, module in model.named_modules():
        _initialise(name, module)
    return placed(with_fast_norms(model) if IS_CPU else model)


@torch.no_grad()
def _initialise(name: str, module: nn.Module) -> None:
    """Unit gain; what adds to a stream of features begins small, and the answer begins at zero."""
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return
    gain = 0.0 if name == "out.2" else 0.1 if name.endswith(("out_layers.3", "proj_out")) else 1.0
    if name.endswith(("to_out.0", "ff.net.2")):
        gain = 0.5
    nn.init.trunc_normal_(module.weight, std=1.0)
    module.weight.mul_(gain / math.sqrt(module.weight[0].numel()))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def signal() -> Tensor:
    """Cumulative product of alpha at each of the 1000 steps of SD1.5's schedule."""
    from comfy.ldm.modules.diffusionmodules.util import make_beta_schedule

    return torch.cumprod(1 - make_beta_schedule("linear", STEPS, 0.00085, 0.012), 0).float()


def noise_of(model: nn.Module, x: Tensor, steps: Tensor, context: Tensor) -> Tensor:
    """The predicted noise, in half precision inside."""
    with half():
        options = dict(OPTIONS) if IS_CPU else {}
        return model(pixels_last(x), steps.to(DEVICE).float(), context=context, transformer_options=options).float()


@torch.no_grad()
def sample(model: nn.Module, named: Tensor, nothing: Tensor, noise: Tensor, guidance: float) -> Tensor:
    """Euler's method from pure noise.

    Args:
        named: (B, 77, D) text; nothing: (1, 77, D) of the empty text.
        noise: (B, 4, H, W) of standard deviation 1, on the device.

    Returns:
        (B, 4, H, W) latents of standard deviation 1, about.
    """
    level = ((1 - signal()) / signal()).sqrt()
    steps = torch.linspace(STEPS - 1, 0, SAMPLED_STEPS + 1).round().long()[:-1]
    sigmas = torch.cat([level[steps], torch.zeros(1)])
    context = torch.cat([named, nothing.expand(len(named), -1, -1)])
    x = noise * sigmas[0]
    for step, sigma, following in zip(steps, sigmas, sigmas[1:], strict=False):
        scaled = (x / (sigma**2 + 1).sqrt()).repeat(2, 1, 1, 1)
        with_text, without = noise_of(model, scaled, step.expand(len(scaled)), context).chunk(2)
        x = x + (without + guidance * (with_text - without)) * (following - sigma)
    return x
