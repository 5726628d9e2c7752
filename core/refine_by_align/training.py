"""Training of Refine-by-Align (arXiv 2412.00306): an object is completed from a reference, in one of two modes.

In *alignment* mode the reference shows all of the object, so that the model learns to find the part that is missing; in
*refinement* mode it shows that part alone. One set of weights learns both: those that make tokens of the reference, and
the U-Net's cross-attentions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional as F

from ..patches.blocks import is_cross_attention
from ..patches.blockwise import differentiable
from ..patches.frozen import Noised, encode, frozen_copy, plain
from .back_ends import blanked
from .kernel import completion_loss
from .match import bounding_box, grown
from .window import CELL

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

ALIGNMENT, REFINEMENT = "alignment", "refinement"
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
        learning_rate: of AdamW.
        alignment_share: part of the draws in alignment mode.
        condition_drop: part of the draws with tokens of zeros, which guidance compares with.
        largest_margin: around the part in refinement mode, as a share of its longer side.
        batch_size: examples in a step.
        seed: of the draws.

    Note:
        The paper's page gives none of these.
    """

    learning_rate: float = 1e-5
    alignment_share: float = 0.5
    condition_drop: float = 0.1
    largest_margin: float = 0.3
    batch_size: int = 4
    seed: int = 0


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


class Completion:
    """Learns to complete objects; must be made and used outside of the host's inference mode.

    Args:
        model: the base model, whose context is as wide as the network's tokens; it is not touched.
        network: makes tokens (1, L, C) of patches (1, L, width), in float32; its weights are changed in place.
        read: the vision encoder's patches (h, w, width) of a picture (1, H, W, 3).
        encode: the VAE, (1, H, W, 3) -> (1, c, H / 8, W / 8).
        prompt: what the model is told beside the tokens, in the host's form; its text is not read.
        settings: how.

    Attributes:
        unet: a copy of the model's, whose cross-attentions are trained.
    """

    def __init__(
        self,
        model: ModelPatcher,
        network: Any,
        read: Callable[[Tensor], Tensor],
        encode: Callable[[Tensor], Tensor],
        prompt: list[Any],
        settings: Settings,
    ) -> None:
        self.settings = settings
        self.unet = frozen_copy(model, torch.float32)
        self._device = model.load_device
        self._model, self._network = model, network.to(self._device)
        self._read, self._encode, self._prompt = read, encode, prompt
        self._sampling = model.get_model_object("model_sampling")
        trained = [weight for name, weight in self.unet.named_parameters() if is_cross_attention(name)]
        for weight in trained:
            weight.requires_grad_(True)
        self._optimizer = torch.optim.AdamW([*network.parameters(), *trained], lr=settings.learning_rate)

    def draw(self, generator: torch.Generator) -> Draw:
        """Draws what else the loss of an example needs."""
        return draw(self.settings, len(self._sampling.sigmas), generator)

    def step(self, examples: Sequence[Example], draws: Sequence[Draw]) -> float:
        """One step of the optimiser; returns the loss."""
        loss = self.loss(examples, draws)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def loss(self, examples: Sequence[Example], draws: Sequence[Draw]) -> Tensor:
        """What it costs to complete examples whose pictures are of one size, a scalar.

        Raises:
            ValueError: nothing is to be completed in one of them.
        """
        for example in examples:
            if not example.mask.any() or not example.region.any():
                raise ValueError("The mask or region of a picture to be trained with is empty. Mark a part in both.")
        inputs = [self._inputs(example, drawn) for example, drawn in zip(examples, draws, strict=True)]
        latents, masks, noise, patches, inpainting = (
            torch.cat(each).to(self._device) for each in zip(*inputs, strict=True)
        )
        timesteps = torch.tensor([drawn.timestep for drawn in draws])
        noised = Noised(self._sampling, latents, noise, timesteps, torch.float32)
        kept = torch.tensor([not drawn.is_dropped for drawn in draws], device=self._device)
        context = self._network(patches) * kept[:, None, None]
        y = encode(self._model, self._prompt, latents[:1]).y
        y = None if y is None else y.expand(len(latents), -1)
        options = {"optimized_attention_override": differentiable}
        entering = torch.cat([noised.entering, inpainting], dim=1)
        out = self.unet(entering, noised.timesteps, context, y, None, options)
        return completion_loss(noised.predicted(out), noise, masks)

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


def train(completion: Completion, examples: Sequence[Example], steps: int) -> list[float]:
    """Trains on examples drawn with their modes, and returns the loss of each step.

    Raises:
        RuntimeError: a loss is not a number any more.
    """
    settings, history = completion.settings, list[float]()
    generator = torch.Generator().manual_seed(settings.seed)
    logging.getLogger(__name__).info("Training an adapter: %d steps.", steps)
    progress = comfy.utils.ProgressBar(steps)
    for step in range(steps):
        comfy.model_management.throw_exception_if_processing_interrupted()
        chosen = torch.randint(len(examples), (settings.batch_size,), generator=generator).tolist()
        draws = [completion.draw(generator) for _ in chosen]
        history.append(completion.step([examples[number] for number in chosen], draws))
        if not math.isfinite(history[-1]):
            raise RuntimeError(
                f"Training of the model diverged in step {step + 1}: the loss is {history[-1]}. Lower learning_rate."
            )
        progress.update(1)
    return history
