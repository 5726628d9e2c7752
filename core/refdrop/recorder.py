"""Records the keys and values of a sampling run, whose own pictures are references for later runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..models.origin import brought
from ..patches.attention import AttentionCall
from ..patches.bank import KeysValues, KeyValueBank, Record
from ..patches.binding import Binding, Evaluation, Run
from ..patches.blocks import Block
from ..patches.conditionings import Conditionings
from ..patches.families.attentions import Attentions
from ..patches.families.table import attentions_of
from ..patches.passes import Asked, without_sound
from ..patches.reference_pass import Reference, ReferencePass, require_frames, require_pictures
from ..patches.region import require_all_pictures, what_cuts
from ..patches.transfer import kept_tensor
from .recorded_run import RecordedRun

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider

KEY = "refattention.refdrop.record"
NODE = "RefDrop Record"
PREDICT_NOISE = WrappersMP.PREDICT_NOISE


def apply_recorder(model: ModelPatcher, recorded: RecordedRun, given: Reference | None = None) -> ModelPatcher:
    """Returns a clone of the model whose next sampling run is recorded.

    Args:
        given: finished latents to be seen at each noise level in place of what the sampler has got to.
    """
    recording = BINDING.attached(model, (recorded, given))
    # Outside of all others: some leave out whole steps here (LazyCache).
    others = {key: wrappers for key, wrappers in recording.wrappers.get(PREDICT_NOISE, {}).items() if key != KEY}
    recording.wrappers[PREDICT_NOISE] = {KEY: [_predict_noise], **others}
    return recording


def _predict_noise(executor: WrapperExecutor, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Notes that the sampler asks for a step."""
    BINDING.run_of(executor.class_obj.model_options["transformer_options"]).wanted.append(timestep[:1])
    return executor(x, timestep, *args, **kwargs)


class RecorderRun(Run):
    """One sampling run.

    Args:
        asked: the recording that it fills, and what `apply_recorder` was given.
        guider, noise_shape, sigmas: of the run.

    Attributes:
        wanted: noise levels that the sampler asked for, (1,) each.
    """

    def __init__(
        self,
        asked: tuple[RecordedRun, Reference | None],
        guider: CFGGuider,
        noise_shape: Sequence[int],
        sigmas: Tensor,
    ) -> None:
        self.wanted: list[Tensor] = []
        self._recorded, given = asked
        self._attentions = attentions_of(guider.model_patcher, NODE)
        if given is not None:
            if not self._attentions.is_video:
                require_pictures(given.samples, NODE)
            for role, entries in guider.conds.items():
                require_frames(entries, given.samples, role)
        self._frames = self._attentions.frames(noise_shape) if given is None else 1  # a given one is one reference
        pictures = self._frames if self._frames > 1 else noise_shape[0]
        if self._recorded.references > pictures:
            raise ValueError(
                f"{NODE}: batch_references is {self._recorded.references}, but only {pictures} pictures or frames are "
                "sampled. Lower it, or sample more."
            )
        of_picture = self._attentions.of_picture
        self._given = None if given is None else ReferencePass(given, guider.conds, KEY, of_picture)
        self._conditionings = Conditionings(guider.conds)
        self._recorded.begin(sigmas, brought(guider.model_patcher, guider.conds))
        self._levels = len(set(sigmas.tolist()) - {0.0})
        self._size = tuple(noise_shape[2:])
        self._pictures = tuple(noise_shape[:-2])
        self._blocks_seen: list[set[Block]] = []  # of each evaluation

    def seen(self, asked: Asked) -> Tensor:
        """The sampler's latents, or the given ones at that noise level."""
        return asked.x if self._given is None else self._given.noised(asked.model, asked.sigma).to(asked.x)

    def evaluation(self, asked: Asked) -> RecorderEvaluation | None:
        """Records halves that are not recorded at the noise level yet; samplers may see a level twice.

        What other nodes evaluate is left alone.
        """
        halves = zip(self._conditionings.roles(asked.conds), asked.conds, strict=True)
        roles = [role for role, entries in halves if entries is not None]
        known = [role for role in roles if role is not None]
        if len(known) < len(roles) or self._recorded.has(asked.level, known):
            return None
        why, cure = "which cannot be recorded", "Sample no more than a window holds"
        require_all_pictures(asked, self._pictures, NODE, why, cure)
        return RecorderEvaluation(asked, self._recorded, self._attentions, self._frames, self._size)

    def served(self, asked: Asked, evaluation: RecorderEvaluation) -> None:
        """Keeps what an evaluation gave."""
        if evaluation.bank.blocks:
            self._blocks_seen.append(evaluation.bank.blocks)
            roles = self._conditionings.roles(asked.conds)
            self._recorded.put(asked.level, evaluation.bank, roles, self._conditionings, self._levels)

    def finish(self) -> None:
        """Reports.

        Raises:
            RuntimeError: another node skipped steps or layers, so that something is missing.
        """
        seen, whole = self._blocks_seen, max(self._blocks_seen, key=len, default=set())
        # Read together: to read one is to wait for the device.
        wanted = set(torch.cat(self.wanted).tolist()) if self.wanted else set()
        skipped = len([level for level in wanted if not self._recorded.has(level, ())])
        if missing := skipped + sum(blocks != whole for blocks in seen):
            raise RuntimeError(
                f"{NODE} saw only {len(seen) + skipped - missing} of {len(seen) + skipped} steps whole: another node "
                "of this model skips steps or layers (EasyCache, LazyCache, DeepCache). Remove it from the model that "
                "records."
            )
        self._recorded.report()


class RecorderEvaluation(Evaluation):
    """One evaluation: keeps the keys and values that its self-attentions see."""

    def __init__(
        self,
        asked: Asked,
        recorded: RecordedRun,
        attentions: Attentions,
        frames: int,
        size: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.bank = KeyValueBank(NODE)
        self._asked = asked
        self._recorded = recorded
        self.blocks = recorded.blocks
        self._attentions = attentions
        self._frames = frames
        self._size = size

    def forward(self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One forward pass.

        Raises:
            RuntimeError: the pass sees only a part of the picture.
        """
        latents = without_sound(x, kwargs.get("latent_shapes"))
        if tuple(latents.shape[2:]) != self._size:
            raise RuntimeError(
                f"{NODE}: {what_cuts(self._asked, self._size[-2:])} has the model work on a part of the picture, which "
                "cannot be recorded. Remove that; prompts can be limited with masks instead of areas."
            )
        *inputs, options = args
        return executor(x, *inputs, self._attentions.route(latents, kwargs, options, self._record), **kwargs)

    def _record(self, call: AttentionCall) -> Tensor:
        """Copies the keys and values of the references, then computes the attention."""
        if call.block in self._recorded.blocks:
            pairs = [(self._kept(keys), self._kept(values)) for keys, values in self._leading(call)]
            self.bank.store(call.layer, Record(call.chunks, call.grid, pairs))
            self.acted.add(call.block)
        return call.plain()

    def _leading(self, call: AttentionCall) -> list[KeysValues]:
        """(G, M, C) keys and values of the first pictures of the batch, or frames of its first video."""
        keys, values = (t.unflatten(0, (len(call.chunks), -1)) for t in (call.k, call.v))
        if self._frames > 1:
            keys, values = (t[:, 0].unflatten(1, (self._frames, -1)) for t in (keys, values))
        count = self._recorded.references
        return list(zip(keys[:, :count].unbind(1), values[:, :count].unbind(1), strict=True))

    def _kept(self, tensor: Tensor) -> Tensor:
        return kept_tensor(tensor, self._recorded.is_half)


BINDING = Binding(KEY, NODE, RecorderRun)
