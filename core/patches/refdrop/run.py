"""RefDrop during sampling: wrappers without state of their own, and the state of one run.

The model carries only a tuple of guides, in `transformer_options`. For the time of a sampling run a `RefDropRun` takes
its place, and for the time of one forward pass a `Recording` or a `Guiding`: nothing outlives the call it serves,
and nothing is shared between calls that the host may run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ...kernels.attention import Branch, reference_feature_guidance
from ...kernels.masks import token_weights
from ..self_attention import Block, Options, SelfAttentionCall, route_self_attention
from ..unet import self_attention_blocks
from .guide import Guide, check_guide, check_total_strength
from .reference import Cond, KeyValueBank, Recording, ReferencePass, ReferenceRecorded, select_tokens

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider

KEY = "refattention.refdrop"


def add_guide(model: ModelPatcher, guide: Guide) -> ModelPatcher:
    """Returns a clone of the model that follows the guide as well as those it already has.

    Raises:
        ValueError: the guide is not valid, or the strengths of all guides sum up beyond [-1, 1].
    """
    check_guide(guide)
    patched = model.clone()
    if guide.is_off:
        return patched
    options = patched.model_options["transformer_options"]
    guides = (*options.get(KEY, ()), guide)
    check_total_strength(guides)
    options[KEY] = guides
    for place, wrapper in WRAPPERS.items():
        patched.remove_wrappers_with_key(place, KEY)
        patched.add_wrapper_with_key(place, KEY, wrapper)
    return patched


class RefDropRun:
    """One sampling run: the guides, and what is computed once for all steps."""

    def __init__(self, guides: tuple[Guide, ...], guider: CFGGuider, noise_shape: torch.Size) -> None:
        _check_batch(guides, noise_shape[0])
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.guides = guides
        self.layers: dict[Block, int] = self_attention_blocks(guider.model_patcher.model.diffusion_model)
        self.latent_size = tuple(noise_shape[-2:])
        self._role_of_uuid = {entry["uuid"]: role for role, entries in guider.conds.items() for entry in entries}
        self._sigmas = {
            guide: (sampling.percent_to_sigma(guide.start_percent), sampling.percent_to_sigma(guide.end_percent))
            for guide in guides
        }
        self.passes = {
            guide: ReferencePass(guide, guide.reference, guider.conds) for guide in guides if guide.reference is not None
        }
        self.has_guided = False
        self._weights: dict[tuple[Guide, tuple[int, int], torch.device], Tensor] = {}

    def active(self, sigma: float) -> list[Guide]:
        """The guides whose part of the schedule `sigma` belongs to."""
        return [guide for guide in self.guides if self._sigmas[guide][0] >= sigma >= self._sigmas[guide][1]]

    def role(self, entries: list[Cond] | None) -> str | None:
        """Which of the guider's conditionings a list is. Its first entry tells: what the host adds comes later."""
        return self._role_of_uuid.get(entries[0]["uuid"]) if entries else None

    def weight(self, guide: Guide, call: SelfAttentionCall) -> float | Tensor:
        """Strength for each token: a float, or (1 or B, N, 1) with a region mask."""
        if guide.mask is None:
            return guide.strength
        if call.q.shape[1] != call.grid[0] * call.grid[1]:
            raise RuntimeError(
                f"RefDropApply: the mask needs the {call.grid[0]} x {call.grid[1]} tokens of block {call.block}, but another "
                f"patch left {call.q.shape[1]} of them. Remove token merging or tiling from the model, or the mask."
            )
        key = (guide, call.grid, call.q.device)
        if key not in self._weights:
            self._weights[key] = guide.strength * token_weights(guide.mask.float(), call.grid).to(call.q.device)
        return self._weights[key].to(call.q.dtype)


class Guiding:
    """One evaluation of the sampler: the active guides with their references' keys and values."""

    def __init__(self, run: RefDropRun, guides: list[Guide], banks: dict[Guide, KeyValueBank]) -> None:
        self._run = run
        self._guides = guides
        self._banks = banks
        self._forward_passes = 0

    def begin(self, x: Tensor) -> None:
        """Counts a forward pass; refuses a part of the picture where a mask over the whole picture is to be used."""
        self._forward_passes += 1
        if tuple(x.shape[-2:]) != self._run.latent_size and any(guide.mask is not None for guide in self._guides):
            raise RuntimeError(
                "RefDropApply: a mask cannot be combined with prompts that are limited to an area, because the model "
                "sees only a part of the picture. Limit the prompts with masks instead of areas."
            )

    def check_effect(self) -> None:
        """Refuses to go on without effect. Later evaluations may be meant to lack the guided layers (PAG)."""
        if self._forward_passes and not self._run.has_guided:
            raise RuntimeError(
                "RefDropApply had no effect: another patch of this model replaces the self-attention of all chosen "
                "blocks. Remove that patch, or choose other blocks."
            )

    def handle(self, call: SelfAttentionCall) -> Tensor:
        """Computes one self-attention, guided where its block is chosen."""
        branches = [b for guide in self._guides if call.block in guide.blocks for b in self._branches(guide, call)]
        if not branches:
            return call.attend(call.q, call.k, call.v)
        self._run.has_guided = True
        return reference_feature_guidance(call.attend, call.q, call.k, call.v, len(call.chunks), branches)

    def _branches(self, guide: Guide, call: SelfAttentionCall) -> list[Branch]:
        first = 0 if guide.reference is not None else guide.batch_references
        weight = self._run.weight(guide, call)
        if isinstance(weight, Tensor) and len(weight) > 1:
            weight = weight[first:]
        if (first or guide.concat) and call.q.shape[0] != call.k.shape[0]:
            raise RuntimeError(
                "RefDropApply: another patch (HyperTile?) cuts the queries into tiles, which works only with a "
                "reference_latent and in mode rfg. Remove that patch."
            )
        pairs = self._keys_values(guide, call)
        if guide.concat:
            pairs = [(torch.cat([keys for keys, _ in pairs], dim=1), torch.cat([values for _, values in pairs], dim=1))]
        return [Branch(weight, keys, values, first, guide.concat) for keys, values in pairs]

    def _keys_values(self, guide: Guide, call: SelfAttentionCall) -> list[tuple[Tensor, Tensor]]:
        """(G, M, C) keys and values of each reference, on the device of the call."""
        if guide in self._banks:
            pairs = self._banks[guide].keys_values(call.chunks, (call.block, call.depth))
            return [(keys.to(call.k.device), values.to(call.v.device)) for keys, values in pairs]
        chunks = len(call.chunks)
        keys, values = (t.unflatten(0, (chunks, -1))[:, : guide.batch_references] for t in (call.k, call.v))
        per_chunk = [select_tokens(guide.reference_mask, call.grid, *pair) for pair in zip(keys, values, strict=True)]
        return [
            (torch.stack([k for k, _ in reference]), torch.stack([v for _, v in reference]))
            for reference in zip(*per_chunk, strict=True)
        ]


def _check_batch(guides: tuple[Guide, ...], batch: int) -> None:
    for guide in guides:
        if guide.reference is None and guide.batch_references >= batch:
            raise ValueError(
                f"RefDropApply has no reference: reference_latent is not connected, and with batch_references = "
                f"{guide.batch_references} a batch of {batch} leaves nothing to guide. Connect reference_latent, or "
                f"sample a batch of at least {guide.batch_references + 1}."
            )
        if guide.mask is not None and len(guide.mask) not in (1, batch):
            raise ValueError(
                f"RefDropApply: mask holds {len(guide.mask)} masks for a batch of {batch}. "
                "Give one mask for all samples, or one for each."
            )


def _with_state(model_options: dict[str, Any], state: Recording | Guiding) -> dict[str, Any]:
    return {**model_options, "transformer_options": {**model_options["transformer_options"], KEY: state}}


def _outer_sample(executor: WrapperExecutor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Opens a run for one call of the sampler and drops it, with all its tensors, whatever happens."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    guides = options[KEY]
    options[KEY] = run = RefDropRun(guides, guider, noise.shape)
    try:
        return executor(noise, *args, **kwargs)
    finally:
        options[KEY] = guides
        for reference in run.passes.values():
            reference.close()


def _prepare_sampling(
    executor: WrapperExecutor,
    model: ModelPatcher,
    noise_shape: Any,
    conds: dict[str, Any],
    model_options: dict[str, Any],
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Reserves memory for the references and loads what their conditioning brings along."""
    run = model_options["transformer_options"][KEY]
    prompts = [entry for reference in run.passes.values() for entry in reference.own_prompts]
    pixels = noise_shape[-1] * noise_shape[-2]
    extra = sum(guide.reference.samples[:, 0].numel() for guide in run.passes)
    shape = [noise_shape[0] + -(-extra // pixels), *noise_shape[1:]]
    real_model, _, models = executor(
        model, shape, {**conds, KEY: prompts}, model_options=model_options, **kwargs
    )
    return real_model, conds, models


def _calc_cond_batch(
    executor: WrapperExecutor, model: BaseModel, conds: list[Any], x: Tensor, timestep: Tensor, model_options: Options
) -> list[Tensor]:
    """Before each evaluation of the model: one pass of the references at the same noise level."""
    run = model_options["transformer_options"].get(KEY)
    if not isinstance(run, RefDropRun):
        raise RuntimeError("RefDropApply works only inside a sampler that follows the host's guider; connect KSampler.")
    sigma = timestep[:1]
    guides = run.active(sigma.item())
    if not guides:
        return executor(model, conds, x, timestep, model_options)
    options = partial(_with_state, model_options)
    roles = [run.role(entries) for entries in conds]
    banks = {
        guide: run.passes[guide].record(executor, model, conds, roles, sigma, options, run.layers)
        for guide in guides
        if guide in run.passes
    }
    guiding = Guiding(run, guides, banks)
    out = executor(model, conds, x, timestep, options(guiding))
    guiding.check_effect()
    return out


def _apply_model(
    executor: WrapperExecutor,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None,
    c_crossattn: Tensor | None,
    control: Any,
    transformer_options: Options,
    **kwargs: Any,
) -> Tensor:
    """Routes the self-attentions of one forward pass through the recording or guiding state, if there is one."""
    state = transformer_options.get(KEY)
    if isinstance(state, Guiding):
        state.begin(x)
    elif not isinstance(state, Recording):
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    options = route_self_attention(transformer_options, state.handle)
    try:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    except ReferenceRecorded:
        return torch.zeros_like(x)  # the prediction for the reference is of no use


WRAPPERS: dict[str, Callable[..., Any]] = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.PREPARE_SAMPLING: _prepare_sampling,
    WrappersMP.CALC_COND_BATCH: _calc_cond_batch,
    WrappersMP.APPLY_MODEL: _apply_model,
}
