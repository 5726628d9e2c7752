"""Wrappers that record the keys and values of a sampling run, its own pictures being the references."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..patches.bank import KeysValues, KeyValueBank, Record, select_tokens
from ..patches.families import Attentions, attentions_of
from ..patches.reference_pass import Reference, ReferencePass, is_reference_pass
from ..patches.roles import Roles
from ..patches.self_attention import Options, SelfAttentionCall
from .cache import kept_tensor
from .recorded import Recorded

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider

KEY = "refattention.refdrop.record"


def add_recorder(model: ModelPatcher, recorded: Recorded, given: Reference | None = None) -> ModelPatcher:
    """Returns a clone of the model whose next sampling run is recorded.

    Args:
        given: finished latents to be seen at each noise level in place of what the sampler has got to.
    """
    patched = model.clone()
    patched.model_options["transformer_options"][KEY] = (recorded, given)
    for place, wrapper in WRAPPERS.items():
        patched.add_wrapper_with_key(place, KEY, wrapper)
    return patched


class RecordingRun:
    """One sampling run.

    Args:
        recorded: that it fills.
        given: as for `add_recorder`.
        guider, noise_shape, sigmas: of the run.
    """

    def __init__(
        self, recorded: Recorded, given: Reference | None, guider: CFGGuider, noise_shape: Any, sigmas: Tensor
    ) -> None:
        self._attentions = attentions_of(guider.model_patcher, "RefDropRecord")
        # A video's frames are tokens of one sample where latents are (B, C, F, H, W); a given one is one reference.
        is_video = self._attentions.is_video and len(noise_shape) == 5 and given is None
        self._frames = noise_shape[2] if is_video else 1
        pictures = self._frames if is_video else noise_shape[0]
        if recorded.references > pictures:
            raise ValueError(
                f"RefDropRecord: batch_references is {recorded.references}, but only {pictures} pictures or frames are "
                "sampled. Lower it, or sample more."
            )
        self._recorded = recorded
        self._given = None if given is None else ReferencePass(given, guider.conds)
        self._names = Roles(guider.conds)
        self._levels = len(set(sigmas.tolist()) - {0.0})
        self._size = tuple(noise_shape[-2:])

    def seen(self, model: BaseModel, x: Tensor, sigma: Tensor) -> Tensor:
        """What the model is to see: the sampler's latents, or the given ones at that noise level."""
        return x if self._given is None else self._given.noised(model, sigma).to(x)

    def recording(self, conds: list[Any], sigma: float) -> Recording | None:
        """For an evaluation of halves that are not recorded at the noise level yet; samplers may see a level twice.

        What other nodes evaluate is left alone.
        """
        roles = [role for role, entries in zip(self._names.of(conds), conds, strict=True) if entries is not None]
        known = [role for role in roles if role is not None]
        if len(known) < len(roles) or self._recorded.has(sigma, known):
            return None
        return Recording(self._recorded, self._attentions, self._frames, self._size)

    def keep(self, recording: Recording, conds: list[Any], sigma: float) -> None:
        """Keeps what an evaluation gave."""
        self._recorded.put(sigma, recording.bank, self._names.of(conds), self._names, self._levels)

    def close(self) -> None:
        """Reports.

        Raises:
            RuntimeError: nothing was recorded.
        """
        if not self._recorded.size:
            raise RuntimeError(
                "RefDropRecord saw nothing: another patch of this model replaces the self-attention of all chosen "
                "blocks. Remove that patch, or choose other blocks."
            )
        self._recorded.report()


class Recording:
    """One evaluation: notes what the handler of the self-attentions sees."""

    def __init__(self, recorded: Recorded, attentions: Attentions, frames: int, size: tuple[int, ...]) -> None:
        self.bank = KeyValueBank("RefDropRecord")
        self._recorded = recorded
        self._attentions = attentions
        self._frames = frames
        self._size = size

    def route(self, x: Tensor, inputs: dict[str, Any], options: Options) -> Options:
        """Routes the self-attentions of one forward pass through the recording.

        Raises:
            RuntimeError: the pass sees only a part of the picture.
        """
        if tuple(x.shape[-2:]) != self._size:
            raise RuntimeError(
                "RefDropRecord: prompts that are limited to an area cannot be recorded, because the model sees only a "
                "part of the picture. Limit the prompts with masks instead of areas."
            )
        return self._attentions.route(x, inputs, options, self._handle)

    def _handle(self, call: SelfAttentionCall) -> Tensor:
        """Copies the keys and values of the references, then computes the attention."""
        if call.block in self._recorded.blocks:
            pairs = [(self._kept(keys), self._kept(values)) for keys, values in self._leading(call)]
            self.bank.store((call.block, call.depth), Record(call.chunks, call.grid, pairs))
        return call.plain()

    def _leading(self, call: SelfAttentionCall) -> list[KeysValues]:
        """(G, M, C) keys and values of the first pictures of the batch, or frames of its first video."""
        keys, values = (t.unflatten(0, (len(call.chunks), -1)) for t in (call.k, call.v))
        if self._frames > 1:
            keys, values = (t[:, 0].unflatten(1, (self._frames, -1)) for t in (keys, values))
        count = self._recorded.references
        return select_tokens(None, call.grid, keys[:, :count], values[:, :count])

    def _kept(self, tensor: Tensor) -> Tensor:
        return kept_tensor(tensor, self._recorded.is_half)


def _outer_sample(
    executor: WrapperExecutor, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Opens a run for one call of the sampler."""
    options = executor.class_obj.model_options["transformer_options"]
    recorded, given = options[KEY]
    options[KEY] = run = RecordingRun(recorded, given, executor.class_obj, noise.shape, sigmas)
    try:
        out = executor(noise, latent, sampler, sigmas, *args, **kwargs)
    finally:
        options[KEY] = (recorded, given)
    run.close()
    return out


def _calc_cond_batch(
    executor: WrapperExecutor, model: BaseModel, conds: list[Any], x: Tensor, timestep: Tensor, model_options: Options
) -> list[Tensor]:
    """Records an evaluation of the sampler; passes that other methods make of their references are left alone."""
    options = model_options["transformer_options"]
    if is_reference_pass(options):
        return executor(model, conds, x, timestep, model_options)
    run, sigma = options[KEY], timestep[:1]
    recording = run.recording(conds, sigma.item())
    state = {**model_options, "transformer_options": {**options, KEY: recording}}
    out = executor(model, conds, run.seen(model, x, sigma), timestep, state)
    if recording is not None:
        run.keep(recording, conds, sigma.item())
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
    """Routes the self-attentions of one forward pass through the recording, if there is one."""
    recording = transformer_options.get(KEY)
    if not isinstance(recording, Recording) or is_reference_pass(transformer_options):
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    options = recording.route(x, kwargs, transformer_options)
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


WRAPPERS: dict[str, Callable[..., Any]] = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.CALC_COND_BATCH: _calc_cond_batch,
    WrappersMP.APPLY_MODEL: _apply_model,
}
