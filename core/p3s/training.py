"""Training of P3S-Diffusion (arXiv 2412.19533): `L = L_LDM + gamma L_ac`, Eq. 14 and 15, for the adapter alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor
from torch.nn import functional as F

from ..patches.attention import Options, route_self_attention
from ..patches.blockwise import checkpointed, differentiable
from ..patches.frozen import Noised, Prompt, frozen_copy, plain
from .features import FeaturesOf
from .kernel import MEAN, attention_consistency
from .maps import CrossMaps
from .run import P3SEvaluation, Subject
from .trained import ReadByAdapter, with_cross

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

LAST, ALL = "last", "all"
WHERE = [LAST, ALL]


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are the paper's where it says so.

    Attributes:
        epochs: how often each picture is seen.
        learning_rate: of AdamW.
        gamma: weight of L_ac.
        where: cross-attentions that L_ac compares: the last, or all.
        average: what L_ac is divided by, one of the kernel's AVERAGES.
        condition_drop: part of the pictures that are seen with the empty prompt.
        batch_size: pictures in a step.
        value_strength: lambda of Eq. 7.
        gradient_checkpointing: computes blocks anew for their gradients, instead of keeping what is in them.
        mixed_precision: keeps the frozen weights in bfloat16 and computes in it, unless the device is slow at that, as
            CPUs are; the adapter's weights and the optimiser stay in float32.
        seed: of the draws.
    """

    epochs: int = 60
    learning_rate: float = 1e-5
    gamma: float = 0.1
    where: str = LAST
    average: str = MEAN
    condition_drop: float = 0.1
    batch_size: int = 1
    value_strength: float = 0.2
    gradient_checkpointing: bool = True
    mixed_precision: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is learnt from. P pictures of one size.

    Attributes:
        latents: (P, c, h, w), as the U-Net takes them.
        vision: (P, L, width), the vision encoder's tokens.
        masks: (P, H, W), the subject in each; None is all of them.
        prompt, empty: the subject's text, and that of dropped conditions.
    """

    latents: Tensor
    vision: Tensor
    masks: Tensor | None
    prompt: Prompt
    empty: Prompt


@dataclass(frozen=True, eq=False)
class Batch:
    """The draws of one step. B targets.

    Attributes:
        targets: (B,) which pictures are to be denoised.
        reference: the picture that the adapter reads, for all of them.
        timesteps: (B,).
        noise: (B, c, h, w).
        dropped: (B,) which have the empty prompt.
    """

    targets: Tensor
    reference: int
    timesteps: Tensor
    noise: Tensor
    dropped: Tensor


@dataclass(frozen=True, eq=False)
class Losses:
    """L_LDM and L_ac of one step, scalars."""

    denoising: Tensor
    consistency: Tensor


class Trainer:
    """Trains an adapter's network; must be made and used outside of the host's inference mode.

    Injection is Eq. 7 with tokens of zeros among the keys and eps_t = 1: the schedule belongs to inference.

    Args:
        model: the base model; it is not touched.
        network: a P3SNetwork in float32; its weights are changed in place.
        pictures: what to learn from.
        settings: how.
    """

    def __init__(self, model: ModelPatcher, network: Any, pictures: Pictures, settings: Settings) -> None:
        # Weights, gradients, and the two moments of the optimiser, in float32.
        comfy.model_management.free_memory(16 * sum(w.numel() for w in network.parameters()), model.load_device)
        self.network = network.to(model.load_device)
        self.settings = settings
        self.pictures = len(pictures.latents)
        self._pictures = replace(pictures, latents=plain(pictures.latents), vision=plain(pictures.vision))
        masks = pictures.masks
        self._subjects = [Subject(None if masks is None else masks[at : at + 1]) for at in range(self.pictures)]
        self._device = model.load_device
        mixed = settings.mixed_precision
        # Where bfloat16 is emulated, it only saves memory: there it is what the frozen weights are kept in, no more.
        computes_half = mixed and comfy.model_management.should_use_bf16(model.load_device)
        self._dtype = torch.bfloat16 if computes_half else torch.float32
        self._sampling = model.get_model_object("model_sampling")
        self._unet = frozen_copy(model, torch.bfloat16 if mixed else torch.float32)
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
        self._evaluate = checkpointed if settings.gradient_checkpointing else UNetModel.__call__
        # From the end: with "last" only the frozen U-Net's last layer and the one of the copy that feeds it.
        pairs = list(network.feeds.items())
        self._pairs = pairs if settings.where == ALL else pairs[-1:]

    def draw(self, targets: Tensor, generator: torch.Generator) -> Batch:
        """Draws what else a step needs for its targets (B,)."""
        count, latents = len(targets), self._pictures.latents
        steps = len(self._sampling.sigmas)
        return Batch(
            targets,
            int(torch.randint(len(latents), (), generator=generator)),
            torch.randint(steps, (count,), generator=generator),
            torch.randn(count, *latents.shape[1:], generator=generator),
            torch.rand(count, generator=generator) < self.settings.condition_drop,
        )

    def step(self, batch: Batch) -> Losses:
        """One step of the optimiser."""
        losses = self.losses(batch)
        self._optimizer.zero_grad()
        (losses.denoising + self.settings.gamma * losses.consistency).backward()
        self._optimizer.step()
        return losses

    def losses(self, batch: Batch) -> Losses:
        """What a batch costs."""
        noise, latents = batch.noise.to(self._device), self._pictures.latents[batch.targets].to(self._device)
        noised = Noised(self._sampling, latents, noise, batch.timesteps, self._dtype)
        context, y = self._texts(batch.dropped)

        copied = CrossMaps(self.network.unet, [copy for _, copy in self._pairs])
        original = CrossMaps(self._unet, [layer for layer, _ in self._pairs])
        features = self._read(batch, noised.timesteps, context, y, copied)
        options = self._injection(batch, features, original)
        out = self._evaluate(self._unet, noised.entering, noised.timesteps, context, y, None, options)
        return Losses(F.mse_loss(noised.predicted(out), noise), self._consistency(copied, original))

    def _texts(self, dropped: Tensor) -> tuple[Tensor, Tensor | None]:
        """Context and y of a batch's pictures."""
        chosen = [self._pictures.empty if drop else self._pictures.prompt for drop in dropped.tolist()]
        context = torch.cat([prompt.context for prompt in chosen]).to(self._device, self._dtype)
        ys = [prompt.y for prompt in chosen if prompt.y is not None]
        return context, torch.cat(ys).to(self._device, self._dtype) if ys else None

    def _read(self, batch: Batch, timesteps: Tensor, context: Tensor, y: Tensor | None, maps: CrossMaps) -> FeaturesOf:
        """What the adapter reads from the reference, for each target."""
        one = slice(batch.reference, batch.reference + 1)
        latent, vision = (
            tensor[one].to(self._device, self._dtype).expand(len(batch.targets), *tensor.shape[1:])
            for tensor in (self._pictures.latents, self._pictures.vision)
        )
        options = {"optimized_attention_override": differentiable, "patches": {"attn2_patch": [maps.see]}}
        return self.network(latent, vision, timesteps, context, y, options, self._evaluate)

    def _injection(self, batch: Batch, features: FeaturesOf, maps: CrossMaps) -> Options:
        """transformer_options of the frozen U-Net; every target is a chunk of its own."""
        options = {
            "cond_or_uncond": [0] * len(batch.targets),
            "uuids": list(range(len(batch.targets))),
            "optimized_attention_override": differentiable,
            "patches": {"attn2_patch": [maps.see]},
        }
        hidden = ReadByAdapter(features, self._unet, identity_at_zero=False)
        injecting = P3SEvaluation(self._subjects[batch.reference], hidden, 1.0, self.settings.value_strength)
        return with_cross(route_self_attention(options, injecting.inject), features, 1.0)

    def _consistency(self, copied: CrossMaps, original: CrossMaps) -> Tensor:
        """L_ac, the mean over the layers that are compared."""
        losses = [
            attention_consistency(copied.map(copy), original.map(layer), self.settings.average)
            for layer, copy in self._pairs
        ]
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class Watch:
    """What is done while a training runs.

    Attributes:
        preview: makes a picture for the host's progress bar, in the host's form; None shows none.
        every: steps from one preview to the next.
        interrupted: called when the training is cancelled, before the host is told.
    """

    preview: Callable[[], Any] | None = None
    every: int = 0
    interrupted: Callable[[], None] = lambda: None

    def picture(self, step: int) -> Any:
        """The preview after a step, if one is due."""
        return None if self.preview is None or not self.every or step % self.every else self.preview()


def steps_of(pictures: int, settings: Settings) -> int:
    """How many steps a training takes."""
    return settings.epochs * -(-pictures // settings.batch_size)


def train(trainer: Trainer, watch: Watch) -> list[tuple[float, float]]:
    """Trains for all epochs, each of which shows every picture once, in an order of its own.

    Returns:
        L_LDM and L_ac of each step.

    Raises:
        RuntimeError: a loss is not a number any more.
    """
    settings, history = trainer.settings, list[tuple[float, float]]()
    generator = torch.Generator().manual_seed(settings.seed)
    total = steps_of(trainer.pictures, settings)
    logging.getLogger(__name__).info("Training an adapter: %d steps.", total)
    progress = comfy.utils.ProgressBar(total)
    try:
        for _ in range(settings.epochs):
            for targets in torch.randperm(trainer.pictures, generator=generator).split(settings.batch_size):
                comfy.model_management.throw_exception_if_processing_interrupted()
                history.append(_checked(trainer.step(trainer.draw(targets, generator)), len(history)))
                progress.update_absolute(len(history), total, watch.picture(len(history)))
    except comfy.model_management.InterruptProcessingException:
        watch.interrupted()
        raise
    return history


def _checked(losses: Losses, step: int) -> tuple[float, float]:
    values = losses.denoising.item(), losses.consistency.item()
    if not all(map(math.isfinite, values)):
        raise RuntimeError(f"Training diverged in step {step + 1}: the loss is {values[0]}. Lower learning_rate.")
    return values
