"""State of one sampling run, and of one evaluation of the model in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.origin import brought
from ..patches.attention import AttentionCall
from ..patches.bank import KeyValueBank, of_each_picture
from ..patches.binding import Evaluation, Run
from ..patches.conditionings import Conditionings
from ..patches.families.table import attentions_of
from ..patches.passes import Asked, without_sound
from ..patches.reference_pass import require_pictures
from ..patches.region import (
    check_mask,
    is_cut_by_others,
    region_weights,
    require_all_pictures,
    require_whole_picture,
    what_cuts,
)
from ..patches.schedule import NoiseRange
from ..patches.selection import Selection
from .kernel import Branch, reference_feature_guidance
from .reader import ReferenceReader
from .settings import RefDropSettings

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

METHOD = "RefDrop"


class RefDropRun(Run):
    """One sampling run: what the nodes asked for, and what is computed once for all steps.

    Args:
        asked: of each RefDrop node of the model.
        guider, noise_shape, sigmas: of the run.
    """

    def __init__(
        self, asked: tuple[RefDropSettings, ...], guider: CFGGuider, noise_shape: Sequence[int], sigmas: Tensor
    ) -> None:
        self.attentions = attentions_of(guider.model_patcher, METHOD)
        self.frames = self.attentions.frames(noise_shape)
        self.latent_size = tuple(noise_shape[-2:])
        self._pictures = tuple(noise_shape[:-2])
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self._ranges = {each: NoiseRange.of(sampling, each.start_percent, each.end_percent) for each in asked}
        has_recording = any(each.recorded is not None for each in asked)
        loras = brought(guider.model_patcher, guider.conds) if has_recording else {}
        for each in asked:
            _check_batch(each, noise_shape[0], self.frames)
            check_mask(each.mask, noise_shape, METHOD)
            # Some picture models paint several layers at once, as frames.
            if each.reference is not None and not self.attentions.is_video and noise_shape[2] == 1:
                require_pictures(each.reference.samples, METHOD)
            if each.recorded is not None:
                # Once more: patches may have come after the node.
                each.recorded.check(guider.model_patcher, each.blocks)
                each.recorded.check_prompts(loras)
                each.recorded.check_schedule(sigmas, self._ranges[each])
        self._readers = {
            each: ReferenceReader(each, each.reference, guider, sigmas, self.attentions)
            for each in asked
            if each.reference is not None
        }
        self.selections = {each: Selection(each.reference_mask) for each in asked}
        self._conditionings = Conditionings(guider.conds)
        self._weights: dict[tuple[RefDropSettings, tuple[int, int], int, torch.device], Tensor] = {}

    @property
    def latents(self) -> list[Tensor]:
        """The references."""
        return [reader.latents for reader in self._readers.values()]

    @property
    def held(self) -> int:
        """The keys and values of all references."""
        return sum(reader.held for reader in self._readers.values())

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """The references' own conditionings."""
        return [entry for reader in self._readers.values() for entry in reader.own_prompts]

    def evaluation(self, asked: Asked) -> RefDropEvaluation | None:
        """Looks at the references at the evaluation's noise level, or takes what was seen of them earlier."""
        active = [each for each, where in self._ranges.items() if asked.level in where]
        if not active:
            return None
        for each in active:
            self._require_all_pictures(each, asked)
        banks = {each: self._readers[each].look(asked) for each in active if each in self._readers}
        for each in active:
            if each.recorded is not None:
                banks[each] = each.recorded.look(asked.level, asked.conds, self._conditionings, each.share_conditional)
        return RefDropEvaluation(self, asked, active, banks)

    def _require_all_pictures(self, settings: RefDropSettings, asked: Asked) -> None:
        reader = self._readers.get(settings)
        if settings.is_from_batch:
            why, cure = "so the first of them is another one each time", "Connect reference_latent"
        elif settings.mask is not None and len(settings.mask) > 1:
            why, cure = "and there is a mask for each picture", "Give one mask for all"
        elif reader is not None and reader.prompts_each > 1:
            why, cure = "and each picture has a prompt of its own", "Give one prompt for all"
        else:
            return
        require_all_pictures(asked, self._pictures, METHOD, why, cure)

    def close(self) -> None:
        """Lets go of what the references' own conditioning holds, and reports."""
        for reader in self._readers.values():
            reader.close()

    def weight(self, settings: RefDropSettings, call: AttentionCall) -> float | Tensor:
        """Strength for each token: a float, or (1 or B, N, 1) where it is not the same for all."""
        leading = settings.batch_references if settings.is_from_batch and self.frames > 1 else 0
        if settings.mask is None and not leading:
            return settings.strength
        key = (settings, call.grid, call.frames, call.q.device)
        if key not in self._weights:
            mask = torch.ones(1, 1, 1) if settings.mask is None else settings.mask
            weights = region_weights(mask, call, METHOD)
            weights[:, : leading * call.grid[0] * call.grid[1]] = 0
            self._weights[key] = settings.strength * weights
        return self._weights[key].to(call.q.dtype)


class RefDropEvaluation(Evaluation):
    """One evaluation of the sampler: the active settings with their references' keys and values."""

    def __init__(
        self,
        run: RefDropRun,
        asked: Asked,
        active: list[RefDropSettings],
        banks: dict[RefDropSettings, KeyValueBank],
    ) -> None:
        super().__init__()
        self._run = run
        self._asked = asked
        self._active = active
        self.blocks = frozenset().union(*(each.blocks for each in active))
        self._banks = banks

    def forward(self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One forward pass; a part of the picture is refused where there is a mask over the whole of it."""
        latents = without_sound(x, kwargs.get("latent_shapes"))
        if any(each.mask is not None for each in self._active):
            require_whole_picture(latents, self._asked, self._run.latent_size, METHOD)
        if any(each.is_from_batch for each in self._active) and is_cut_by_others(latents, self._asked):
            raise RuntimeError(
                f"{METHOD}: {what_cuts(self._asked, self._run.latent_size)} cuts the pictures into tiles or the video "
                "into pieces, so the rest sees only a part of the reference. Connect reference_latent, or remove that."
            )
        *inputs, options = args
        return executor(x, *inputs, self._run.attentions.route(latents, kwargs, options, self._guide), **kwargs)

    def _guide(self, call: AttentionCall) -> Tensor:
        """Computes one self-attention, guided where its block is chosen."""
        chosen = [each for each in self._active if call.block in each.blocks]
        branches = [branch for each in chosen for branch in self._branches(each, call)]
        if not branches:
            return call.plain()
        self.acted.add(call.block)
        joint = None if call.joint is None else call.joint()
        return reference_feature_guidance(call.attend, call.q, call.k, call.v, len(call.chunks), branches, joint)

    def _branches(self, settings: RefDropSettings, call: AttentionCall) -> list[Branch]:
        first = settings.batch_references if settings.is_from_batch and self._run.frames == 1 else 0
        weight = self._run.weight(settings, call)
        if isinstance(weight, Tensor) and len(weight) > 1:
            weight = weight[first:]
        if (settings.is_from_batch or settings.concat) and call.q.shape[0] != call.k.shape[0]:
            raise RuntimeError(
                f"{METHOD}: another patch (HyperTile?) cuts the queries into tiles, which works only with a "
                "reference_latent and in mode rfg. Remove that patch."
            )
        pairs = self._keys_values(settings, call)
        if settings.concat:
            keys, values = (torch.cat(tokens, dim=-2) for tokens in zip(*pairs, strict=True))
            pairs = [(keys, values)]
        return [Branch(weight, keys, values, first, settings.concat) for keys, values in pairs]

    def _keys_values(self, settings: RefDropSettings, call: AttentionCall) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each reference, on the call's device: (G, M, C), or (G, B, M, C) where samples differ."""
        selection = self._run.selections[settings]
        if settings in self._banks:
            bank = self._banks[settings]
            pairs = bank.keys_values(call.layer, call.chunks, call.k)
            if pairs[0][0].ndim > call.k.ndim:
                tiles = len(call.q) // len(call.k)  # of the queries (HyperTile)
                pictures = len(call.k) // len(call.chunks)
                return [(of_each_picture(k, pictures, tiles), of_each_picture(v, pictures, tiles)) for k, v in pairs]
            if settings.recorded is None or settings.reference_mask is None:
                return pairs  # a reference of its own is recorded as selected
            keys, values = (torch.stack(tensors, dim=1) for tensors in zip(*pairs, strict=True))
            return selection.of(bank.grid(call.layer), keys, values)
        chunks, references = len(call.chunks), settings.batch_references
        if self._run.frames == 1:
            keys, values = (t.unflatten(0, (chunks, -1))[:, :references] for t in (call.k, call.v))
            return selection.of(call.grid, keys, values)
        keys, values = (t.unflatten(1, (self._run.frames, -1))[:, :references] for t in (call.k, call.v))
        pairs = selection.of(call.grid, keys, values)
        return [(keys.unflatten(0, (chunks, -1)), values.unflatten(0, (chunks, -1))) for keys, values in pairs]


def _check_batch(settings: RefDropSettings, batch: int, frames: int) -> None:
    there = f"a batch of {batch}" if frames == 1 else f"a video of {frames} frames"
    if settings.is_from_batch and settings.batch_references >= (batch if frames == 1 else frames):
        raise ValueError(
            f"{METHOD} has no reference: reference_latent is not connected, and with batch_references = "
            f"{settings.batch_references} {there} leaves nothing to guide. Connect reference_latent (a picture "
            f"goes through VAE Encode), or sample at least {settings.batch_references + 1}."
        )
