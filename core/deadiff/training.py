"""Training of DEADiff (arXiv 2403.06951): the objective and where the new weights start. Pure torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

# (noised latents, timesteps, style tokens, content tokens) -> predicted noise
Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def initial_projections(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The start of the image projections: copies of the text's, so that image tokens speak the text's language.

    Args:
        unet: tensors of a Stable Diffusion U-Net, with any prefix.

    Returns:
        a copy of each `attn2.to_k` and `attn2.to_v` as `attn2.i_to_k` and `attn2.i_to_v`.

    Raises:
        ValueError: there are none.
    """
    copies = {
        key.replace(".attn2.to_", ".attn2.i_to_"): tensor.detach().clone()
        for key, tensor in unet.items()
        if key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    }
    if not copies:
        raise ValueError("The weights have no cross-attention (attn2.to_k, attn2.to_v). Give those of an SD1.5 U-Net.")
    return copies


def non_reconstructive_loss(
    predict: Predict,
    target: Tensor,
    reference_tokens: Tensor,
    shared: str,
    timesteps: Tensor,
    noise: Tensor,
    alphas_cumprod: Tensor,
) -> Tensor:
    """The denoising loss of a picture that is not the reference, but shares its style (or its content) with it.

        L = | eps - eps_theta(sqrt(a_t) z + sqrt(1 - a_t) eps, t, text of the target, tokens of the reference) |^2

    As the two pictures differ in everything else, the tokens can lower the loss only by what they share.

    Args:
        predict: the U-Net with the target's text.
        target: (B, C, h, w), z, latents of the pictures to be denoised.
        reference_tokens: (B, Q, H), read from the paired reference by the branch of that name; gradients flow.
        shared: "style" or "content", what the pair has in common. The other branch's tokens are zeros.
        timesteps: (B,) integers.
        noise: (B, C, h, w), eps.
        alphas_cumprod: (timesteps of the schedule,).

    Returns:
        scalar, the mean over all elements.

    Raises:
        ValueError: `shared` is another word, or the pairs are not as many as the targets.
    """
    if shared not in ("style", "content"):
        raise ValueError(f"shared must be 'style' or 'content', but is '{shared}'.")
    if len(reference_tokens) != len(target):
        raise ValueError(f"{len(reference_tokens)} references do not pair with {len(target)} targets.")
    alpha = alphas_cumprod[timesteps].to(target)[:, None, None, None]
    noised = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
    empty = torch.zeros_like(reference_tokens)
    style, content = (reference_tokens, empty) if shared == "style" else (empty, reference_tokens)
    return F.mse_loss(predict(noised, timesteps, style, content), noise)
