"""Training of Refine-by-Align (arXiv 2412.00306): an object is completed from a reference, in one of two modes.

In *alignment* mode the reference shows all of the object, so that the model learns to find the part that is missing; in
*refinement* mode it shows that part alone. One set of weights learns both: those that make tokens of the reference, and
the U-Net's cross-attentions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..patches.blocks import is_cross_attention
from ..patches.training import Noised, denoise, differentiable, frozen_copy, pass_of, plain
from ..patches.training import encode as frozen_encode
from ..pictures.grid import CELL
from .back_ends import blanked
from .kernel import completion_loss
from .match import bounding_box, grown

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

ALIGNMENT, REFINEMENT = "alignment", "refinement"
MOST_ELLIPSES = 3  # of a drawn part
SMALLEST_PART, LARGEST_PART = 0.02, 0.2  # of an ellipse's area in the object's
LIGHTER = 0.1  # how much lighter or darker, and richer or poorer in contrast, a reference is seen at most


@dataclass(frozen=True, eq=False)
class Example:
    """An object in two pictures.

    Attributes:
        picture: (1, H, W, 3) in [0, 1], sides multiples of a latent's cell.
        mask: (H, W), 0 and 1, the part of the object that is to be completed.
        reference: (1, H', W', 3), all of the object.
        region: (H', W'), 0 and 1, the same part in the reference.
    """

    picture: Tensor
    mask: Tensor
    reference: Tensor
    region: Tensor


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        alignment_share: part of the draws in alignment mode.
        condition_drop: part of the draws with tokens of zeros, which guidance compares with.
        largest_margin: around the part in refinement mode, as a share of its longer side.

    Note:
        The paper's project page, which is all that was read, gives none of these.
    """

    alignment_share: float = 0.5
    condition_drop: float = 0.1
    largest_margin: float = 0.3


@dataclass(frozen=True)
class Draw:
    """What is drawn for an example.

    Attributes:
        mode: ALIGNMENT or REFINEMENT.
        margin: around the part, as a share of its longer side, in refinement mode.
        brightness, contrast: of the reference, 1 as it is.
        timestep: of the noise.
        seed: of the noise.
        is_dropped: whether the tokens are zeros.
    """

    mode: str
    margin: float
    brightness: float
    contrast: float
    timestep: int
    seed: int
    is_dropped: bool


def draw(settings: Settings, timesteps: int, generator: torch.Generator) -> Draw:
    """Draws mode, augmentation and noise for an example.

    Args:
        timesteps: how many the model has.
    """
    mode, margin, brightness, contrast, dropped = torch.rand(5, generator=generator).tolist()
    return Draw(
        ALIGNMENT if mode < settings.alignment_share else REFINEMENT,
        margin * settings.largest_margin,
        1 + (2 * brightness - 1) * LIGHTER,
        1 + (2 * contrast - 1) * LIGHTER,
        int(torch.randint(timesteps, (), generator=generator)),
        int(torch.randint(torch.iinfo(torch.int64).max, (), generator=generator)),
        dropped < settings.condition_drop,
    )


def shown(example: Example, drawn: Draw) -> Tensor:
    """The reference as the model sees it, (1, h, w, 3) in [0, 1]."""
    reference = example.reference
    if drawn.mode == REFINEMENT:
        box = bounding_box(example.region.numpy() > 0)
        reference = grown(box, drawn.margin, (reference.shape[1], reference.shape[2])).cut(reference)
    mean = reference.mean()
    return ((reference - mean) * drawn.contrast + mean * drawn.brightness).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """What is learnt from. B pictures of one size.

    Attributes:
        latents: (B, c, h, w), as the U-Net takes them.
        masks: (B, 1, h, w), 0 and 1, what is to be completed.
        noise: (B, c, h, w).
        timesteps: (B,) whole numbers.
        patches: (B, L, width), the vision encoder's patches of the references as they are shown.
        is_shown: (B,), false where the tokens are zeros.
        inpainting: (B, c', h, w), what a U-Net for inpainting is given beside the latent; c' = 0 for another.
        y: (B, width), what some families add to the timestep.
    """

    latents: Tensor
    masks: Tensor
    noise: Tensor
    timesteps: Tensor
    patches: Tensor
    is_shown: Tensor
    inpainting: Tensor
    y: Tensor | None


class Completion(nn.Module):
    """Learns to complete objects; must be made and used outside of ComfyUI's inference mode.

    Args:
        model: the base model, whose context is as wide as the network's tokens; it is not touched.
        network: makes tokens (1, L, C) of patches (1, L, width), in float32; its weights are changed in place.

    Attributes:
        unet: a copy of the model's, whose cross-attentions are trained.
        gradient_checkpointing: recomputes blocks for their gradients, instead of keeping what is in them.
    """

    def __init__(self, model: ModelPatcher, network: nn.Module) -> None:
        super().__init__()
        self.unet = frozen_copy(model, torch.float32)
        self.network = network.to(model.load_device)
        self.gradient_checkpointing = False
        self._sampling = [model.get_model_object("model_sampling")]  # in a list: its buffers belong to the model
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(is_cross_attention(name))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of completing a batch, "loss"."""
        noised = Noised(self._sampling[0], batch.latents, batch.noise, batch.timesteps, torch.float32)
        out = self._predict(noised.entering, noised.timesteps, batch)
        return {"loss": completion_loss(noised.predicted(out), batch.noise, batch.masks)}

    def denoised(self, batch: Batch, x: Tensor, sigma: Tensor) -> Tensor:
        """The batch's pictures without noise, predicted from x (B, c, h, w) at a noise level (B,); for samplers."""
        return denoise(self._sampling[0], lambda entering, told: self._predict(entering, told, batch), x, sigma)

    def _predict(self, x: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        context = self.network(batch.patches) * batch.is_shown.to(x.device)[:, None, None]
        options = {"optimized_attention_override": differentiable}
        entering = torch.cat([x, batch.inpainting], dim=1)
        return pass_of(self.gradient_checkpointing)(self.unet, entering, timesteps, context, batch.y, None, options)


class Preparing:
    """Makes batches of examples.

    Args:
        model: the base model.
        read: the vision encoder's patches (h, w, width) of a picture (1, H, W, 3).
        encode: the VAE, (1, H, W, 3) -> (1, c, H / 8, W / 8).
        prompt: what the model is told beside the tokens, in ComfyUI's form; its text is not read.
    """

    def __init__(
        self,
        model: ModelPatcher,
        read: Callable[[Tensor], Tensor],
        encode: Callable[[Tensor], Tensor],
        prompt: list[Any],
    ) -> None:
        self._model, self._read, self._encode, self._prompt = model, read, encode, prompt

    def batch(self, examples: Sequence[Example], draws: Sequence[Draw]) -> Batch:
        """A batch of pictures of one size.

        Raises:
            ValueError: nothing is to be completed in one of them.
        """
        for example in examples:
            if not example.mask.any() or not example.region.any():
                raise ValueError("The mask or region of a picture to be trained with is empty. Mark a part in both.")
        device = self._model.load_device
        inputs = [self._inputs(example, drawn) for example, drawn in zip(examples, draws, strict=True)]
        latents, masks, noise, patches, inpainting = (torch.cat(each).to(device) for each in zip(*inputs, strict=True))
        y = frozen_encode(self._model, self._prompt, latents[:1]).y
        return Batch(
            latents,
            masks,
            noise,
            torch.tensor([drawn.timestep for drawn in draws]),
            patches,
            torch.tensor([not drawn.is_dropped for drawn in draws]),
            inpainting,
            None if y is None else y.expand(len(latents), -1),
        )

    def _inputs(self, example: Example, drawn: Draw) -> tuple[Tensor, ...]:
        """Latent, mask, noise, patches, and what a U-Net for inpainting is given beside the latent; with B = 1."""
        base, size = self._model.model, [side // CELL for side in example.mask.shape]
        mask = F.adaptive_max_pool2d(example.mask[None, None], size)
        latent = plain(base.process_latent_in(self._encode(example.picture)).cpu())
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(drawn.seed))
        patches = plain(self._read(shown(example, drawn))).flatten(0, 1).unsqueeze(0)
        inpainting = latent[:, :0]
        if base.concat_keys:
            hidden = self._encode(blanked(example.picture, mask))
            inpainting = plain(
                base.concat_cond(noise=latent, device=latent.device, concat_mask=mask, concat_latent_image=hidden)
            )
        return latent, mask, noise, patches, inpainting


def drawn_part(inside: Tensor, generator: torch.Generator) -> Tensor:
    """A part of an object as an artifact might cover it: a few overlapping ellipses around a place in it.

    Args:
        inside: (H, W), 0 and 1, the object.

    Returns:
        (H, W), 0 and 1, inside the object and never empty.
    """
    rows, columns = torch.nonzero(inside, as_tuple=True)
    area = len(rows)
    at = int(torch.randint(area, (), generator=generator))
    centre = torch.stack([rows[at], columns[at]]).float()
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in inside.shape), indexing="ij")
    part = torch.zeros_like(inside)
    for _ in range(int(torch.randint(1, MOST_ELLIPSES + 1, (), generator=generator))):
        share, aspect, angle, dy, dx = torch.rand(5, generator=generator).tolist()
        size = math.sqrt(area * (SMALLEST_PART + share * (LARGEST_PART - SMALLEST_PART)) / math.pi)
        long, short = size * (1 + aspect), size / (1 + aspect)
        down, right = y - centre[0] - (dy - 0.5) * size, x - centre[1] - (dx - 0.5) * size
        turned = math.cos(angle * math.pi), math.sin(angle * math.pi)
        along, across = down * turned[0] + right * turned[1], right * turned[0] - down * turned[1]
        part = torch.maximum(part, ((along / long) ** 2 + (across / short) ** 2 <= 1).float())
    part = part * (inside > 0)
    part[rows[at], columns[at]] = 1
    return part


def carried(part: Tensor, correspondence: Tensor, size: tuple[int, int], gap: int = 2) -> Tensor:
    """A part of a picture where a reference shows it.

    Args:
        part: (H, W), 0 and 1.
        correspondence: (H, W, 2), x and y of each pixel's place in the reference, in its pixels; NaN where hidden.
        size: (H', W') of the reference.
        gap: pixels between places that are filled.

    Returns:
        (H', W'), 0 and 1: the places of the part's pixels with the gaps between them filled; maybe empty.
    """
    places = correspondence[part > 0]
    places = places[~places.isnan().any(-1)].round().long()
    height, width = size
    places = places[((places >= 0) & (places < torch.tensor([width, height]))).all(-1)]
    region = torch.zeros(size)
    region[places[:, 1], places[:, 0]] = 1
    # What lies between places that are neighbours in the picture: closing.
    widened = F.max_pool2d(region[None, None], 2 * gap + 1, 1, gap)
    return 1 - F.max_pool2d(1 - widened, 2 * gap + 1, 1, gap)[0, 0]
