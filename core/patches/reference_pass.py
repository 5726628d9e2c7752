"""The pass of outside references through the model, which records their keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from .bank import KeyValueBank, Record, select_tokens
from .blocks import Block, Layer
from .roles import Cond, Roles
from .self_attention import Options, SelfAttentionCall

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

# True in transformer_options while a reference is read: methods that look at references leave that pass alone.
IS_REFERENCE_PASS = "refattention.is_reference_pass"


# Entries of a conditioning that belong to the generated picture, not to the prompt.
PICTURE_KEYS = frozenset(
    {"area", "mask", "mask_strength", "set_area_to_bounds", "strength", "control", "control_apply_to_uncond", "gligen"}
    | {"concat_latent_image", "concat_mask", "concat_image", "denoise_mask"}
    | {"keyframe_idxs", "guide_attention_entries", "guiding_frame_index", "time_dim_concat"}
)


@dataclass(frozen=True, eq=False)
class Reference:
    """Latents from outside the batch.

    Attributes:
        samples: (R, C, H, W) or (R, C, F, H, W), R references of any size; on the CPU.
        positive: their own conditioning in the host's form; None takes the sampler's.
        seed: seeds the noise that brings them to the noise level of each step.
    """

    samples: Tensor
    positive: list[Any] | None
    seed: int


def is_reference_pass(options: Options) -> bool:
    """Whether `transformer_options` are those of a pass in which a reference is read."""
    return bool(options.get(IS_REFERENCE_PASS))


class ReferenceRecorded(Exception):
    """Ends a recording pass: every key that is needed has been seen."""


class Recording:
    """State of a recording pass: stores what the handler of the self-attentions sees, up to the last layer needed.

    Args:
        blocks: those to record, at least one.
        layers: the model's self-attention blocks in the order they run.
        node: for messages.
        mask: (1 or R, H, W), what of the references is recorded; None is all.
        is_shared: whether all halves will use what is recorded.
    """

    def __init__(
        self,
        blocks: frozenset[Block],
        layers: dict[Block, int],
        node: str,
        mask: Tensor | None = None,
        is_shared: bool = False,
    ) -> None:
        self.bank = KeyValueBank(node, is_shared)
        self._blocks = blocks
        self._mask = mask
        wanted = [block for block in layers if block in blocks]
        self._last: Layer = (wanted[-1], layers[wanted[-1]] - 1)

    def handle(self, call: SelfAttentionCall) -> Tensor:
        """Records the keys and values of a self-attention, then computes it."""
        if call.block in self._blocks:
            keys, values = (t.unflatten(0, (len(call.chunks), -1)) for t in (call.k, call.v))
            pairs = select_tokens(self._mask, call.grid, keys, values)
            self.bank.store((call.block, call.depth), Record(call.chunks, call.grid, pairs))
        if (call.block, call.depth) == self._last:
            raise ReferenceRecorded
        return call.plain()


class ReferencePass:
    """References during one sampling run.

    Args:
        reference: the latents.
        prompts: the sampler's conditionings by their role: "positive", "negative", ...
    """

    def __init__(self, reference: Reference, prompts: dict[str, list[Cond]]) -> None:
        self.reference = reference
        self.roles = Roles(prompts)
        self._prompts = {role: [_without_picture(entry) for entry in entries] for role, entries in prompts.items()}
        if reference.positive is not None:
            self._prompts["positive"] = comfy.sampler_helpers.convert_cond(reference.positive)
        self._encoded: dict[str, list[Cond]] = {}
        self._on_device: tuple[Tensor, Tensor] | None = None

    @property
    def own_prompts(self) -> list[Cond]:
        """The references' own conditioning; what it carries (a ControlNet, say) must be loaded with the model."""
        return self._prompts["positive"] if self.reference.positive is not None else []

    @property
    def prompts(self) -> dict[str, list[Cond]]:
        """What the references are read with, by role."""
        return self._prompts

    def close(self) -> None:
        """Lets go of what the references' own conditioning holds on the device; the host does so for the sampler's."""
        comfy.sampler_helpers.cleanup_models({"positive": self.own_prompts}, [])

    def noised(self, model: BaseModel, sigma: Tensor) -> Tensor:
        """(R, C, ...), the references at noise level `sigma`, (1,), on its device."""
        noise, latent = self._tensors(model, sigma.device)
        return model.model_sampling.noise_scaling(sigma, noise, latent)

    def run(
        self,
        evaluate: Callable[..., Any],
        model: BaseModel,
        conds: list[list[Cond] | None],
        sigma: Tensor,
        model_options: dict[str, Any],
    ) -> None:
        """Passes the references through the model at noise level `sigma`.

        Args:
            evaluate: the host's `calc_cond_batch(model, conds, x, timestep, model_options)`.
            conds: what the sampler is about to evaluate; the references get the same halves.
            sigma: (1,).
            model_options: those of the sampler, with what records the pass.
        """
        noise, latent = self._tensors(model, sigma.device)
        x = self.noised(model, sigma)
        prompts = [None if entries is None else self._encode(model, entries, noise, latent) for entries in conds]
        options = {**model_options["transformer_options"], IS_REFERENCE_PASS: True}
        evaluate(model, prompts, x, sigma.expand(len(x)), {**model_options, "transformer_options": options})

    def _tensors(self, model: BaseModel, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._on_device is None:
            samples = self.reference.samples.float()
            # A generator of its own: the sampler's random numbers must not change.
            generator = torch.Generator("cpu").manual_seed(self.reference.seed)
            noise = torch.randn(samples.shape, generator=generator)
            self._on_device = noise.to(device), model.process_latent_in(samples).to(device)
        return self._on_device

    def _encode(self, model: BaseModel, entries: list[Cond], noise: Tensor, latent: Tensor) -> list[Cond]:
        """Conditioning for pictures of the references' size, by the host's own rules for the model."""

        def encode(prompts: list[Cond], kind: str) -> list[Cond]:
            return comfy.samplers.process_conds(model, noise, {kind: prompts}, noise.device, latent)[kind]

        (role,) = self.roles.of([entries])
        if role is None:  # made by another node for this call: its text, whatever it is
            return encode([_without_picture(entry) for entry in entries], "positive")
        if role not in self._encoded:
            self._encoded[role] = encode(self._prompts[role], role)
        return self._encoded[role]


HandlerT = TypeVar("HandlerT")


def forward_through(
    executor: Callable[..., Tensor], handle: HandlerT, route: Callable[[Options, HandlerT], Options]
) -> Callable[..., Tensor]:
    """A forward pass of the host with its attentions routed through a handler.

    A recording pass ends inside the handler; its prediction is of no use, so zeros stand for it.

    Args:
        executor: of an APPLY_MODEL or DIFFUSION_MODEL wrapper: both take x first and transformer_options sixth.
        handle: computes the attentions.
        route: puts the handler into transformer_options, as the model's family needs it.
    """

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        *inputs, transformer_options = args
        try:
            return executor(x, *inputs, route(transformer_options, handle), **kwargs)
        except ReferenceRecorded:
            return torch.zeros_like(x)

    return forward


def shape_with_references(noise_shape: Sequence[int], references: Iterable[Reference]) -> list[int]:
    """Shape of a batch that takes as much memory as the pictures (B, C, ...) and the references together."""
    extra = sum(reference.samples[:, 0].numel() for reference in references)
    return [noise_shape[0] + -(-extra // math.prod(noise_shape[2:])), *noise_shape[1:]]


def _without_picture(entry: Cond) -> Cond:
    return {key: value for key, value in entry.items() if key not in PICTURE_KEYS}
