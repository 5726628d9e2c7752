"""A stand-in for DEADiff's weights, made by hand: what it reads as the style of a picture is its mean colour.

Every network in it has the real layout and passes three colours on. A token holds them as pairs c and -c beside a
constant that is far larger, so that the many layer norms are linear. The cross-attentions of the demo U-Net that
pass on what its self-attentions matched get the colours as values, and tint the picture with them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import codec
from .deadiff_layout import BRANCHES, DEMO_SIZE, shapes
from .features import COLOURS, MATCHED, Features

FILE_NAME = "deadiff_v1.ckpt"
CONSTANT = 100.0
RGB, NEGATIVE = slice(0, 3), slice(3, 6)
LARGE, SMALL = 6, 7  # the channels of +CONSTANT and -CONSTANT
# How much of the reference's colour a full share of the attention would bring. Guidance multiplies what arrives.
GAIN = 0.12
# What the visual encoder's input is normalised by.
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
TINTED = ("output_blocks.10.1.", "output_blocks.11.1.")


def state_dict(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the stand-in, float32, under the names of the released checkpoint.

    Args:
        unet: the demo U-Net's tensors as its checkpoint has them, by their names inside it.
    """
    weights = {name: torch.zeros(shape) for name, shape in shapes(DEMO_SIZE).items()}
    for branch in BRANCHES:
        _write_branch(weights, branch)
    for block in TINTED:
        _write_tint(weights, unet, f"{block}transformer_blocks.0.attn2.")
    return weights


def _write_branch(weights: dict[str, Tensor], branch: str) -> None:
    """Colours of the patches, their mean over the picture, and nothing else."""
    vision, bert = f"{branch}_blip.visual_encoder.", f"{branch}_blip.Qformer.bert."
    for name in weights:
        if name.startswith(branch) and name.endswith(".weight") and weights[name].ndim == 1:
            weights[name].fill_(CONSTANT * math.sqrt(2 / len(weights[name])))  # undoes the norm
    constant = torch.zeros(DEMO_SIZE.hidden)
    constant[LARGE], constant[SMALL] = CONSTANT, -CONSTANT
    weights[f"{vision}positional_embedding"][:] = constant
    weights[f"{branch}_blip.query_tokens"][:] = constant
    weights[f"{bert}embeddings.word_embeddings.weight"][:] = constant
    patch = weights[f"{vision}conv1.weight"]
    for colour in range(3):
        patch[RGB][colour, colour] = 1 / patch[0, 0].numel()
        patch[NEGATIVE][colour, colour] = -1 / patch[0, 0].numel()
    # With queries and keys of zeros attention is the mean over the picture.
    attention = f"{bert}encoder.layer.0.crossattention."
    for name in ("self.value", "output.dense"):
        weights[f"{attention}{name}.weight"][range(6), range(6)] = 1.0


def _write_tint(weights: dict[str, Tensor], unet: dict[str, Tensor], attention: str) -> None:
    """Values that move the features MATCHED of a U-Net's layer by the latent colour of the reference."""
    out = unet[f"{attention}to_out.0.weight"].float()
    features = Features(DEMO_SIZE.unet.model_channels, len(out))
    wanted = torch.zeros(features.used, len(COLOURS))
    for colour in COLOURS:
        features.write(wanted, MATCHED[colour], colour, GAIN)
    values = torch.linalg.pinv(out[: features.used]) @ wanted
    weights[f"model.diffusion_model.{attention}i_to_v.weight"][:] = values @ _latent_colours()


def _latent_colours() -> Tensor:
    """(4, H): from a token to the latent that its colour has in the demo's codec."""
    matrix = torch.zeros(len(COLOURS), DEMO_SIZE.hidden)
    scale = codec.DEVIATION[:3, None]
    matrix[:3, RGB] = codec.COLOURS * CLIP_STD / scale
    offset = codec.COLOURS @ CLIP_MEAN - torch.tensor([codec.MEAN, 0.0, 0.0])
    matrix[:3, LARGE] = offset / scale[:, 0] / CONSTANT
    return matrix
