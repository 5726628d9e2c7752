"""State of one sampling run, and of one evaluation of the model in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..patches.attention import AttentionCall, Options, chunks_of, route_self_attention
from ..patches.binding import Evaluation, Run
from ..patches.blocks import Layer
from ..patches.families.unet import UNetAttentions
from ..patches.passes import Asked, may_change_inputs
from ..patches.region import require_all_pictures
from ..patches.schedule import on_cpu, step_of
from ..patches.unet import self_attention_layers
from .equal_halves import share_equal_halves
from .reference import KEY, REFERENCES, Reference
from .settings import LeffaSettings
from .tokens import FeatureCache, ReferenceTokens

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider

Looks = dict[Reference, ReferenceTokens]
Observer = Callable[[AttentionCall, BasicTransformerBlock, list[Tensor]], None]

OBSERVER = f"{KEY}.observer"  # in transformer_options: an `Observer` of one run


class LeffaRun(Run):
    """One sampling run: what the references contribute at the timestep that is current for them."""

    def __init__(self, settings: LeffaSettings, guider: CFGGuider, noise_shape: Sequence[int], sigmas: Tensor) -> None:
        _check_size(noise_shape, guider.conds)
        self._interval = settings.interval
        self._attentions = UNetAttentions(guider.model_patcher.model.diffusion_model)
        entries = [entry for prompts in guider.conds.values() for entry in prompts]
        self._references = {one for entry in entries for one in entry.get(REFERENCES, ())}
        self._pictures = tuple(noise_shape[:-2])
        self._differ = any(len(set(entry.get(REFERENCES, ()))) > 1 for entry in entries)
        self._sampling = on_cpu(guider.model_patcher.get_model_object("model_sampling"))
        self._sigmas = sigmas.cpu()
        self._latents: dict[tuple[Reference, torch.device], Tensor] = {}
        # By device, because ComfyUI may run the halves side by side: the timestep, and what was seen at it
        self._seen: dict[torch.device, tuple[float, Looks]] = {}

    @property
    def latents(self) -> list[Tensor]:
        """The references, which share a batch of their own."""
        return [one.latent.unsqueeze(0) for one in self._references]

    @property
    def held(self) -> int:
        """The keys and values of all references."""
        blocks = frozenset(self._attentions.blocks)
        return sum(self._attentions.recorded(blocks, one.latent.shape) for one in self._references)

    def evaluation(self, asked: Asked) -> LeffaEvaluation:
        """In every evaluation the references are looked at."""
        if self._differ:
            why, cure = "and each of them has a reference of its own", "Give one for all"
            require_all_pictures(asked, self._pictures, "Leffa", why, cure)
        return LeffaEvaluation(self, asked)

    def look(self, model: BaseModel, references: Sequence[Reference], level: float, device: torch.device) -> Looks:
        """What the references of an evaluation contribute to it.

        Args:
            model: the generative model that is about to run; its patcher has the reference U-Net of its device.
            references: of each row of the batch.
            level: noise level of the evaluation.
            device: of the pass.
        """
        timestep = self._sampling.timestep(torch.tensor([self._reference_level(level)])).item()
        seen_at, looks = self._seen.get(device, (None, {}))
        if seen_at != timestep:
            looks = {}
            self._seen[device] = timestep, looks
        missing = [one for one in dict.fromkeys(references) if one not in looks]
        for reference, features in self._features(model.current_patcher, missing, timestep, device):
            looks[reference] = ReferenceTokens(features, keep=self._interval != 1)
        return {reference: looks[reference] for reference in references}

    def _reference_level(self, level: float) -> float:
        """The noise level at which the reference is looked at: in the middle of the steps that share a look."""
        if self._interval == 1:
            return level
        steps = max(len(self._sigmas) - 1, 1)
        interval = self._interval or steps
        step = step_of(level, self._sigmas)
        first = step - step % interval
        return self._sigmas[first + min(interval, steps - first) // 2].item()

    def _features(
        self, patcher: ModelPatcher, references: list[Reference], timestep: float, device: torch.device
    ) -> list[tuple[Reference, list[Tensor]]]:
        """Runs the reference U-Net, references of one size together; the zeros only if no earlier run left them.

        How a batch is composed decides the last bits of each row, so the zeros are always a batch of their own: what
        outlives a run must not depend on what else was asked for in it.
        """
        (reference_unet,) = patcher.get_additional_models_with_key(KEY)
        cache: FeatureCache = patcher.get_attachment(KEY)
        groups: dict[object, list[Reference]] = {}
        for reference in references:
            groups.setdefault((reference.is_zero, reference.latent.shape), []).append(reference)
        found = []
        for group in groups.values():
            kind = self._kind(reference_unet, group[0])
            batched = cache.get(kind, timestep, device) if group[0].is_zero else None
            if batched is None:
                # One row of zeros serves all: they are the same.
                rows = group[:1] if group[0].is_zero else group
                latents = torch.stack([self._on_device(reference, device) for reference in rows])
                batched = reference_unet.model.features(latents, torch.full((1,), timestep, device=device))
                if group[0].is_zero:
                    cache.put(kind, timestep, batched)
            for row, reference in enumerate(group):
                place = 0 if reference.is_zero else row
                found.append((reference, [feature[place : place + 1] for feature in batched]))
        return found

    def _on_device(self, reference: Reference, device: torch.device) -> Tensor:
        if (reference, device) not in self._latents:
            self._latents[reference, device] = reference.latent.to(device)
        return self._latents[reference, device]

    @staticmethod
    def _kind(reference_unet: ModelPatcher, reference: Reference) -> tuple[object, ...]:
        dtype = reference_unet.model.get_dtype_inference()
        return reference_unet.patches_uuid, tuple(reference.latent.shape), dtype


def _check_size(noise_shape: Sequence[int], conds: dict[str, list[dict[str, Any]]]) -> None:
    for entries in conds.values():
        for entry in entries:
            concat = entry.get("noise_concat")
            if concat is None:
                continue
            if concat.shape[-2:] != tuple(noise_shape[-2:]) or noise_shape[0] % concat.shape[0]:
                raise ValueError(
                    f"The latent to sample has batch x height x width = {_size(noise_shape)}, but the conditioning of "
                    f"Leffa {_size(concat.shape)}. Connect the latent output of the node that made the conditioning."
                )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[-2]} x {shape[-1]}"


class LeffaEvaluation(Evaluation):
    """One evaluation of the sampler."""

    def __init__(self, run: LeffaRun, asked: Asked) -> None:
        super().__init__()
        self._run = run
        self._asked = asked

    def forward(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Looks at the references of this batch, and routes the self-attentions of one forward pass to them."""
        (timestep, *inputs), options = args[:-1], args[-1]
        rows = kwargs.pop(REFERENCES, None)
        if rows is None:
            raise RuntimeError(
                "Leffa: a conditioning without reference reached the model. Connect those of Leffa Try-On."
            )
        model = executor.class_obj
        looks = self._run.look(model, rows, self._asked.level, timestep.device)
        attending = Attending(model.diffusion_model, rows, looks, options.get(OBSERVER))
        self.blocks = attending.blocks

        def handle(call: AttentionCall) -> Tensor:
            self.acted.add(call.block)
            return attending.handle(call)

        are_equal = inputs[-1] is None and self._halves_are_equal(options)
        routed = share_equal_halves(route_self_attention(options, handle), are_equal)
        return executor(x, timestep, *inputs, routed, **kwargs)

    def _halves_are_equal(self, options: Options) -> bool:
        """Whether the halves of a pass are sure to see the same picture: nothing but their references differs."""
        if options.get("patches") or may_change_inputs(self._asked.model_options):
            return False
        lists = enumerate(self._asked.conds)
        entries = {(index, entry["uuid"]): entry for index, some in lists for entry in some or ()}
        seen = [entries.get(chunk, {}) for chunk in chunks_of(options)]
        beside = [None if "area" in entry else entry.get("noise_concat") for entry in seen]
        return beside[0] is not None and all(each is beside[0] for each in beside)


class Attending:
    """The self-attentions of one forward pass, which look at the references as well.

    Args:
        rows: the reference of each row of the batch.
        looks: what each reference contributes.
        observe: is shown each self-attention with the keys (1, M, C) of the reference of each row.
    """

    def __init__(
        self, unet: UNetModel, rows: Sequence[Reference], looks: Looks, observe: Observer | None = None
    ) -> None:
        self._observe = observe
        self._layers: dict[Layer, tuple[int, BasicTransformerBlock]] = {
            place: (number, layer) for number, (place, layer) in enumerate(self_attention_layers(unet).items())
        }
        self._rows = rows
        self._looks = looks
        self.blocks = frozenset(block for block, _ in self._layers)

    def handle(self, call: AttentionCall) -> Tensor:
        """Attention of the samples' own queries to [own; reference] keys and values."""
        if call.q.shape[0] != len(self._rows):
            raise RuntimeError(
                f"Leffa: another patch changed the batch of {len(self._rows)} samples to {call.q.shape[0]} inside a "
                "self-attention (HyperTile does). Remove that patch."
            )
        number, layer = self._layers[call.layer]
        pairs = {one: tokens.keys_values(number, layer.attn1) for one, tokens in self._looks.items()}
        keys, values = ([pairs[row][part] for row in self._rows] for part in (0, 1))
        if self._observe is not None:
            self._observe(call, layer, keys)
        return call.attend(call.q, _joined(call.k, keys), _joined(call.v, values))


def _joined(own: Tensor, references: list[Tensor]) -> Tensor:
    """(B, N, C) and B times (1, M, C) -> (B, N + M, C), in one copy."""
    tokens = own.shape[1]
    joined = own.new_empty(own.shape[0], tokens + references[0].shape[1], own.shape[2])
    joined[:, :tokens] = own
    for row, reference in enumerate(references):
        joined[row, tokens:] = reference[0]
    return joined
