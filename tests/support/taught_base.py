"""A base model that was taught a few pictures beforehand, each by a text of its own.

Methods that keep the U-Net frozen can only bring out what it can paint. One that merely knows pictures of the kind sees
most of a picture through its noise, so that nothing told beside it lowers the loss to a tenth. This one paints what it
is told, and is lost without those texts, which no training is given.
"""

from __future__ import annotations

import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from refattention.core.patches.blocks import is_cross_attention
from refattention.core.patches.training import Noised, differentiable, frozen_copy, plain
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from training.plan import generator_of
from transformers import get_cosine_schedule_with_warmup

UNET = "model.diffusion_model."
EACH, RATE, WARMUP = 4, 1e-3, 10  # noises of each picture to a step
SPREAD = 1.16  # of a text's numbers, as the world's texts have it

Weights = dict[str, Tensor]


def taught(weights: Weights, pictures: Tensor, steps: int) -> Weights:
    """A checkpoint whose U-Net has learnt pictures (N, H, W, 3) in all of its weights.

    Its cross-attentions are drawn anew first: what the world's U-Net was told changed little in such small pictures.
    """
    model, _, vae, _ = comfy.sd.load_state_dict_guess_config(dict(weights))
    latents = plain(model.model.process_latent_in(vae.encode(pictures)))
    unet = frozen_copy(model, torch.float32).train().requires_grad_(True)
    _draw_cross_attentions(unet)
    _learn(unet, model.get_model_object("model_sampling"), latents, steps)
    return weights | {UNET + name: each for name, each in unet.state_dict().items()}


def _draw_cross_attentions(unet: UNetModel) -> None:
    generator = generator_of(0)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if is_cross_attention(name) and weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)


def _learn(unet: UNetModel, sampling: object, latents: Tensor, steps: int) -> None:
    """Plain training, without a running mean."""
    generator, weights = generator_of(0), list(unet.parameters())
    width = unet.middle_block[1].transformer_blocks[0].attn2.to_k.weight.shape[1]
    texts = SPREAD * torch.randn(len(latents), 1, width, generator=generator_of(5))
    latents, texts = latents.repeat(EACH, 1, 1, 1), texts.repeat(EACH, 1, 1)
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    options = {"optimized_attention_override": differentiable}
    for _ in range(steps):
        timesteps = torch.randint(1000, (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noised = Noised(sampling, latents, noise, timesteps, torch.float32)
        out = unet(noised.entering, noised.timesteps, texts, None, None, options)
        F.mse_loss(noised.predicted(out), noise).backward()
        clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
