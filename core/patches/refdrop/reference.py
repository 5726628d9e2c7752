"""The pass of outside references through the model, which records their keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...blocks import Block
from ...kernels.masks import covered_tokens
from ..self_attention import SelfAttentionCall
from .guide import Guide, Reference

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

Cond = dict[str, Any]  # one conditioning entry of the host
Layer = tuple[Block, int]
Chunk = tuple[int, object]  # index into the list of conditionings, uuid of the conditioning
KeysValues = tuple[Tensor, Tensor]

# Entries of a conditioning that belong to the generated picture, not to the prompt.
PICTURE_KEYS = frozenset(
    {"area", "mask", "mask_strength", "set_area_to_bounds", "strength", "control", "control_apply_to_uncond", "gligen"}
    | {"concat_latent_image", "concat_mask", "concat_image"}
)


class ReferenceRecorded(Exception):
    """Ends a recording pass: every key that is needed has been seen."""


@dataclass(frozen=True, eq=False)
class Record:
    """What one forward pass recorded at one layer: for each reference keys and values of (G, M, C)."""

    chunks: list[Chunk]
    pairs: list[KeysValues]


class KeyValueBank:
    """Keys and values of one guide's references at one noise level."""

    def __init__(self) -> None:
        self._records: dict[Layer, list[Record]] = {}

    def store(self, layer: Layer, record: Record) -> None:
        """Keeps a record; the host may need several forward passes for all chunks."""
        self._records.setdefault(layer, []).append(record)

    def keys_values(self, layer: Layer, chunks: list[Chunk], device: torch.device) -> list[KeysValues]:
        """(G, M, C) keys and values of each reference, for the chunks of a forward pass on a device."""
        rows = [self._find(layer, chunk) for chunk in chunks]
        record = rows[0][0]
        if rows == [(record, row) for row in range(len(record.chunks))]:
            # the usual case: the same halves in the same order, nothing to copy
            return [(keys.to(device), values.to(device)) for keys, values in record.pairs]

        def gather(reference: int, part: int) -> Tensor:
            return torch.stack([source.pairs[reference][part][row].to(device) for source, row in rows])

        return [(gather(reference, 0), gather(reference, 1)) for reference in range(len(record.pairs))]

    def _find(self, layer: Layer, chunk: Chunk) -> tuple[Record, int]:
        # The same prompt has the same uuid in both passes. A prompt of the reference's own, or the copy of a
        # conditioning that the host makes for an area, does not: then the half it belongs to decides.
        places = [(record, row) for record in self._records.get(layer, []) for row in range(len(record.chunks))]
        half = [place for place in places if place[0].chunks[place[1]][0] == chunk[0]]
        same = [place for place in half if place[0].chunks[place[1]] == chunk]
        if not half:
            raise RuntimeError(
                "RefDropApply: the prompt of the reference is switched off at a step where the sampler's prompt is on. "
                "Give reference_positive the whole range from 0 to 1."
            )
        return (same or half)[0]


class Recording:
    """State of a recording pass: stores what the handler of the self-attentions sees, up to the last layer needed."""

    def __init__(self, guide: Guide, layers: dict[Block, int]) -> None:
        self.bank = KeyValueBank()
        self._guide = guide
        wanted = [block for block in layers if block in guide.blocks]
        self._last: Layer = (wanted[-1], layers[wanted[-1]] - 1)

    def handle(self, call: SelfAttentionCall) -> Tensor:
        """Records the keys and values of a self-attention, then computes it."""
        if call.block in self._guide.blocks:
            keys, values = (t.unflatten(0, (len(call.chunks), -1)) for t in (call.k, call.v))
            pairs = select_tokens(self._guide.reference_mask, call.grid, keys, values)
            self.bank.store((call.block, call.depth), Record(call.chunks, pairs))
        if (call.block, call.depth) == self._last:
            raise ReferenceRecorded
        return call.attend(call.q, call.k, call.v)


def select_tokens(mask: Tensor | None, grid: tuple[int, int], keys: Tensor, values: Tensor) -> list[KeysValues]:
    """Splits (G, R, M, C) keys and values into R pairs of (G, m, C) with the tokens that a reference mask selects."""
    pairs = list(zip(keys.unbind(1), values.unbind(1), strict=True))
    if mask is None:
        return pairs
    masks = mask.float().expand(len(pairs), -1, -1)
    tokens = [covered_tokens(one, grid).to(keys.device) for one in masks]
    return [(k[:, index], v[:, index]) for (k, v), index in zip(pairs, tokens, strict=True)]


class ReferencePass:
    """One guide's references during one sampling run."""

    def __init__(self, guide: Guide, reference: Reference, prompts: dict[str, list[Cond]]) -> None:
        self._guide = guide
        self._reference = reference
        self._prompts = {role: [_without_picture(entry) for entry in entries] for role, entries in prompts.items()}
        if reference.positive is not None:
            self._prompts["positive"] = comfy.sampler_helpers.convert_cond(reference.positive)
        self._encoded: dict[str, list[Cond]] = {}
        self._on_device: tuple[Tensor, Tensor] | None = None

    @property
    def own_prompts(self) -> list[Cond]:
        """The references' own conditioning; what it carries (a ControlNet, say) must be loaded with the model."""
        return self._prompts["positive"] if self._reference.positive is not None else []

    def close(self) -> None:
        """Lets go of what the references' own conditioning holds on the device; the host does so for the sampler's."""
        comfy.sampler_helpers.cleanup_models({"positive": self.own_prompts}, [])

    def record(
        self,
        evaluate: Callable[..., Any],
        model: BaseModel,
        conds: list[list[Cond] | None],
        roles: list[str | None],
        sigma: Tensor,
        options: Callable[[Recording], dict[str, Any]],
        layers: dict[Block, int],
    ) -> KeyValueBank:
        """Runs the references through the model at noise level `sigma`.

        Args:
            evaluate: the host's `calc_cond_batch(model, conds, x, timestep, model_options)`.
            conds: what the sampler is about to evaluate; the references get the same halves.
            roles: for each of them its name in the guider ("positive", "negative", ...), None if unknown.
            sigma: (1,).
            options: makes the model_options that carry the recording.
            layers: the model's self-attention blocks in the order they run.
        """
        noise, latent = self._tensors(model, sigma.device)
        x = model.model_sampling.noise_scaling(sigma, noise, latent)
        prompts = [
            None if entries is None else self._encode(model, role, entries, noise, latent)
            for role, entries in zip(roles, conds, strict=True)
        ]
        recording = Recording(self._guide, layers)
        evaluate(model, prompts, x, sigma.expand(len(x)), options(recording))
        return recording.bank

    def _tensors(self, model: BaseModel, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._on_device is None:
            samples = self._reference.samples.float()
            # A generator of its own: the sampler's random numbers must not change.
            generator = torch.Generator("cpu").manual_seed(self._reference.seed)
            noise = torch.randn(samples.shape, generator=generator)
            self._on_device = noise.to(device), model.process_latent_in(samples).to(device)
        return self._on_device

    def _encode(
        self, model: BaseModel, role: str | None, entries: list[Cond], noise: Tensor, latent: Tensor
    ) -> list[Cond]:
        """Conditioning for pictures of the references' size, by the host's own rules for the model."""

        def encode(prompts: list[Cond], kind: str) -> list[Cond]:
            return comfy.samplers.process_conds(model, noise, {kind: prompts}, noise.device, latent)[kind]

        if role is None:  # made by another node for this call: its text, whatever it is
            return encode([_without_picture(entry) for entry in entries], "positive")
        if role not in self._encoded:
            self._encoded[role] = encode(self._prompts[role], role)
        return self._encoded[role]


def _without_picture(entry: Cond) -> Cond:
    return {key: value for key, value in entry.items() if key not in PICTURE_KEYS}
