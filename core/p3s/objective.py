"""What a training minimises: `L = L_LDM + gamma L_ac`, P3S-Diffusion (arXiv 2412.19533), Eq. 14 and 15."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.base import unet_weights
from ..patches.attention import route_self_attention
from ..patches.blocks import Layer
from ..patches.selection import Tokens
from ..patches.training import Noised, denoise, differentiable, frozen_copy, pass_of
from .features import FeaturesOf, weighted
from .injection import Injection, Part
from .kernel import MEAN, attention_consistency, on_grid
from .maps import CrossMaps
from .settings import BOTH, TEXT
from .trained import ReadByAdapter, with_cross

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

LAST, ALL, SUMMED, NOWHERE = "last", "all", "all summed", "none"
WHERE = [LAST, ALL, SUMMED, NOWHERE]
DROPS = [BOTH, TEXT]


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are the paper's where it says so.

    Attributes:
        epochs: how often each picture is seen.
        learning_rate: of AdamW.
        gamma: weight of L_ac.
        where: cross-attentions that L_ac compares, one of WHERE: the last, the mean or the sum over all, none.
        average: what L_ac is divided by, one of the kernel's AVERAGES.
        condition_drop: part of the pictures that are seen without their conditions.
        dropped: which conditions those are, one of DROPS; the text, or also the reference, in whose place the adapter
            reads a latent and tokens of zeros.
        batch_size: pictures in a step.
        value_strength: lambda of Eq. 7.
        rngr: whether the RNGR encoder is trained; without it, I'' of Eq. 4 is I'.
        learned_weight: whether the weight of the injection is learnt as a function of t / T; else it is 1.
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
    dropped: str = BOTH
    batch_size: int = 1
    value_strength: float = 0.2
    rngr: bool = True
    learned_weight: bool = False
    gradient_checkpointing: bool = True
    mixed_precision: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the objective takes. B targets of one size.

    Attributes:
        targets: (B, c, h, w), latents as the U-Net takes them.
        reference: (1 or B, c, h', w'), the latents that the adapter reads, of any size.
        vision: (1 or B, L, width), the vision encoder's tokens of the references.
        subject: where the subject is in the reference.
        context: (B, tokens, width), the texts.
        y: (B, width), what some families add to the timestep.
        timesteps: (B,) whole numbers.
        noise: (B, c, h, w).
        absent: (B,) which targets are seen without their reference; None is none of them.
    """

    targets: Tensor
    reference: Tensor
    vision: Tensor
    subject: Tokens
    context: Tensor
    y: Tensor | None
    timesteps: Tensor
    noise: Tensor
    absent: Tensor | None = None

    def read(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, h', w') and (B, L, width), what the adapter reads for each target: zeros where that is absent."""
        count = len(self.targets)
        rows = [each.to(like).expand(count, *each.shape[1:]) for each in (self.reference, self.vision)]
        if self.absent is not None and self.absent.any():
            present = ~self.absent.to(like.device)
            rows = [each * present.view(-1, *[1] * (each.ndim - 1)) for each in rows]
        return rows[0], rows[1]


class Objective(nn.Module):
    """An adapter's network around the frozen U-Net, with its losses; outside of ComfyUI's inference mode.

    Injection is Eq. 7 with tokens of zeros among the keys. eps_t is 1, because the schedule belongs to inference,
    unless the network has learnt a weight.

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

    @property
    def frozen(self) -> UNetModel:
        """The frozen U-Net, with the model's LoRAs."""
        return self._unet[0]

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """The losses of a batch: "loss", the sum of "denoising", L_LDM, and gamma times "consistency", L_ac."""
        noised = Noised(self._sampling[0], inputs.targets, inputs.noise, inputs.timesteps, self.dtype)
        pairs = self._compared()
        copied = CrossMaps(self.network.unet, [copy for _, copy in pairs])
        original = CrossMaps(self._unet[0], [layer for layer, _ in pairs])
        out = self._predict(noised.entering, noised.timesteps, inputs, [copied.see], [original.see])
        denoising = F.mse_loss(noised.predicted(out), inputs.noise)
        compared = [self._consistency(copied, copy, original, layer) for layer, copy in pairs]
        total = torch.stack(compared or [torch.zeros_like(denoising)]).sum()
        consistency = total / len(compared) if self.settings.where == ALL else total
        loss = denoising + self.settings.gamma * consistency
        return {"loss": loss, "denoising": denoising, "consistency": consistency}

    def denoised(self, inputs: Inputs, x: Tensor, sigma: Tensor) -> Tensor:
        """The targets without noise, predicted from x (B, c, h, w) at a noise level (B,); for samplers."""

        def predict(entering: Tensor, told: Tensor) -> Tensor:
            return self._predict(entering.to(self.dtype), told, inputs, [], [])

        return denoise(self._sampling[0], predict, x, sigma)

    def _compared(self) -> list[tuple[Layer, Layer]]:
        """Layers of the frozen U-Net whose maps L_ac compares, each with the one of the copy that feeds it."""
        pairs = list(self.network.feeds.items())
        return {LAST: pairs[-1:], NOWHERE: []}.get(self.settings.where, pairs)

    def _consistency(self, copied: CrossMaps, copy: Layer, original: CrossMaps, layer: Layer) -> Tensor:
        """L_ac of one layer; a reference of another size is compared where it would lie, stretched over the target."""
        seen = on_grid(copied.map(copy), copied.grid(copy), original.grid(layer))
        return attention_consistency(seen, original.map(layer), self.settings.average)

    def _predict(
        self, x: Tensor, timesteps: Tensor, inputs: Inputs, see_copied: list[Any], see_original: list[Any]
    ) -> Tensor:
        """The frozen U-Net's output; the lists hold what sees the cross-attentions of copy and original."""
        evaluate = pass_of(self.settings.gradient_checkpointing)
        count = len(x)
        context, y = inputs.context.to(x), None if inputs.y is None else inputs.y.to(x)
        options = {"optimized_attention_override": differentiable, "patches": {"attn2_patch": see_copied}}
        features: FeaturesOf = self.network(*inputs.read(x), timesteps, context, y, options, evaluate)
        if self.network.weight is not None:
            last = len(self._sampling[0].sigmas) - 1
            features = weighted(features, self.network.weight((timesteps / last).to(x.dtype)))
        # Every target is a chunk of its own.
        options = {
            "cond_or_uncond": [0] * count,
            "uuids": list(range(count)),
            "optimized_attention_override": differentiable,
            "patches": {"attn2_patch": see_original},
        }
        hidden = ReadByAdapter(features, self._unet[0], identity_at_zero=False)
        part = Part(inputs.subject, hidden, 1.0, self.settings.value_strength)
        options = with_cross(route_self_attention(options, Injection([part]).inject), features, 1.0)
        return evaluate(self._unet[0], x, timesteps, context, y, None, options)
