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
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.base import unet_weights
from ..patches.attention import route_self_attention
from ..patches.blockwise import differentiable, pass_of
from ..patches.frozen import Noised, Prompt, denoise, frozen_copy, plain
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
        gradient_checkpointing: recomputes blocks for their gradients, instead of keeping what is in them.
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
    """The loss of one step, and L_LDM and L_ac in it; scalars."""

    loss: Tensor
    denoising: Tensor
    consistency: Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the objective takes. B targets of one size.

    Attributes:
        targets: (B, c, h, w), latents as the U-Net takes them.
        reference: (1, c, h', w'), the latent that the adapter reads, for all of them.
        vision: (1, L, width), the vision encoder's tokens of the reference.
        subject: where the subject is in the reference.
        context: (B, tokens, width), the texts.
        y: (B, width), what some families add to the timestep.
        timesteps: (B,) whole numbers.
        noise: (B, c, h, w).
    """

    targets: Tensor
    reference: Tensor
    vision: Tensor
    subject: Subject
    context: Tensor
    y: Tensor | None
    timesteps: Tensor
    noise: Tensor


class Objective(nn.Module):
    """An adapter's network around the frozen U-Net, with its losses; outside of ComfyUI's inference mode.

    Injection is Eq. 7 with tokens of zeros among the keys and eps_t = 1: the schedule belongs to inference.

    Args:
        model: the base model; it is not touched.
        network: a P3SNetwork in float32; its weights are changed in place.
        settings: how.

    Attributes:
        dtype: that is computed in.
    """

    def __init__(self, model: ModelPatcher, network: Any, settings: Settings) -> None:
        super().__init__()
        mixed = settings.mixed_precision
        # Weights, gradients, and the two moments of the optimiser, in float32; the frozen weights; room to compute.
        trained = 16 * sum(w.numel() for w in network.parameters())
        frozen = (2 if mixed else 4) * sum(w.numel() for w in unet_weights(model).values())
        room = comfy.model_management.minimum_inference_memory()
        comfy.model_management.free_memory(trained + frozen + room, model.load_device)
        self.network = network.to(model.load_device)
        self.settings = settings
        # Where bfloat16 is emulated, it only saves memory: there it is what the frozen weights are kept in, no more.
        computes_half = mixed and comfy.model_management.should_use_bf16(model.load_device)
        self.dtype = torch.bfloat16 if computes_half else torch.float32
        # In lists: what is frozen belongs neither to the weights that are saved nor to those that processes exchange.
        self._sampling = [model.get_model_object("model_sampling")]
        self._unet = [frozen_copy(model, torch.bfloat16 if mixed else torch.float32)]

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """The losses of a batch: "loss", the sum of "denoising", L_LDM, and gamma times "consistency", L_ac."""
        noised = Noised(self._sampling[0], inputs.targets, inputs.noise, inputs.timesteps, self.dtype)
        # From the end: with "last" only the frozen U-Net's last layer and the one of the copy that feeds it.
        pairs = list(self.network.feeds.items())
        pairs = pairs if self.settings.where == ALL else pairs[-1:]
        copied = CrossMaps(self.network.unet, [copy for _, copy in pairs])
        original = CrossMaps(self._unet[0], [layer for layer, _ in pairs])
        out = self._predict(noised.entering, noised.timesteps, inputs, [copied.see], [original.see])
        denoising = F.mse_loss(noised.predicted(out), inputs.noise)
        compared = [
            attention_consistency(copied.map(copy), original.map(layer), self.settings.average) for layer, copy in pairs
        ]
        consistency = torch.stack(compared).mean()
        loss = denoising + self.settings.gamma * consistency
        return {"loss": loss, "denoising": denoising, "consistency": consistency}

    def denoised(self, inputs: Inputs, x: Tensor, sigma: Tensor) -> Tensor:
        """The targets without noise, predicted from x (B, c, h, w) at a noise level (B,); for samplers."""

        def predict(entering: Tensor, told: Tensor) -> Tensor:
            return self._predict(entering.to(self.dtype), told, inputs, [], [])

        return denoise(self._sampling[0], predict, x, sigma)

    def _predict(
        self, x: Tensor, timesteps: Tensor, inputs: Inputs, see_copied: list[Any], see_original: list[Any]
    ) -> Tensor:
        """The frozen U-Net's output; the lists hold what sees the cross-attentions of copy and original."""
        evaluate = pass_of(self.settings.gradient_checkpointing)
        count = len(x)
        latent, vision = (each.to(x).expand(count, *each.shape[1:]) for each in (inputs.reference, inputs.vision))
        context, y = inputs.context.to(x), None if inputs.y is None else inputs.y.to(x)
        options = {"optimized_attention_override": differentiable, "patches": {"attn2_patch": see_copied}}
        features = self.network(latent, vision, timesteps, context, y, options, evaluate)
        # Every target is a chunk of its own.
        options = {
            "cond_or_uncond": [0] * count,
            "uuids": list(range(count)),
            "optimized_attention_override": differentiable,
            "patches": {"attn2_patch": see_original},
        }
        hidden = ReadByAdapter(features, self._unet[0], identity_at_zero=False)
        injecting = P3SEvaluation(inputs.subject, hidden, 1.0, self.settings.value_strength)
        options = with_cross(route_self_attention(options, injecting.inject), features, 1.0)
        return evaluate(self._unet[0], x, timesteps, context, y, None, options)


class Trainer:
    """Trains an adapter's network on pictures of one size; must be made and used outside of ComfyUI's inference mode.

    Args:
        model: the base model; it is not touched.
        network: a P3SNetwork in float32; its weights are changed in place.
        pictures: what to learn from.
        settings: how.
    """

    def __init__(self, model: ModelPatcher, network: Any, pictures: Pictures, settings: Settings) -> None:
        self.network, self.settings = network, settings
        self.pictures = len(pictures.latents)
        self._pictures = replace(pictures, latents=plain(pictures.latents), vision=plain(pictures.vision))
        masks = pictures.masks
        self._subjects = [Subject(None if masks is None else masks[at : at + 1]) for at in range(self.pictures)]
        self._device = model.load_device
        self._timesteps = len(model.get_model_object("model_sampling").sigmas)
        self._objective = Objective(model, network, settings)
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)

    def draw(self, targets: Tensor, generator: torch.Generator) -> Batch:
        """Draws what else a step needs for its targets (B,)."""
        count, latents = len(targets), self._pictures.latents
        return Batch(
            targets,
            int(torch.randint(len(latents), (), generator=generator)),
            torch.randint(self._timesteps, (count,), generator=generator),
            torch.randn(count, *latents.shape[1:], generator=generator),
            torch.rand(count, generator=generator) < self.settings.condition_drop,
        )

    def step(self, batch: Batch) -> Losses:
        """One step of the optimiser."""
        losses = self.losses(batch)
        self._optimizer.zero_grad()
        losses.loss.backward()
        self._optimizer.step()
        return losses

    def losses(self, batch: Batch) -> Losses:
        """The losses of a batch."""
        pictures, one = self._pictures, slice(batch.reference, batch.reference + 1)
        prompts = [pictures.empty if drop else pictures.prompt for drop in batch.dropped.tolist()]
        ys = [prompt.y for prompt in prompts if prompt.y is not None]
        found = self._objective(
            Inputs(
                pictures.latents[batch.targets].to(self._device),
                pictures.latents[one].to(self._device),
                pictures.vision[one].to(self._device),
                self._subjects[batch.reference],
                torch.cat([prompt.context for prompt in prompts]).to(self._device),
                torch.cat(ys).to(self._device) if ys else None,
                batch.timesteps,
                batch.noise.to(self._device),
            )
        )
        return Losses(**found)


@dataclass(frozen=True)
class Watch:
    """What is done while a training runs.

    Attributes:
        preview: makes a picture for ComfyUI's progress bar, in ComfyUI's form; None shows none.
        every: steps from one preview to the next.
    """

    preview: Callable[[], Any] | None = None
    every: int = 0

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
        RuntimeError: a loss became infinite or not a number.
    """
    settings, history = trainer.settings, list[tuple[float, float]]()
    generator = torch.Generator().manual_seed(settings.seed)
    total = steps_of(trainer.pictures, settings)
    logging.getLogger(__name__).info("Training an adapter: %d steps.", total)
    progress = comfy.utils.ProgressBar(total)
    for _ in range(settings.epochs):
        for targets in torch.randperm(trainer.pictures, generator=generator).split(settings.batch_size):
            comfy.model_management.throw_exception_if_processing_interrupted()
            history.append(_checked(trainer.step(trainer.draw(targets, generator)), len(history)))
            progress.update_absolute(len(history), total, watch.picture(len(history)))
    return history


def _checked(losses: Losses, step: int) -> tuple[float, float]:
    values = losses.denoising.item(), losses.consistency.item()
    if not all(map(math.isfinite, values)):
        raise RuntimeError(f"Training diverged in step {step + 1}: the loss is {values[0]}. Lower learning_rate.")
    return values
