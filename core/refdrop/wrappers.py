"""RefDrop's wrappers around the host's sampling. They have no state of their own.

The model carries only a tuple of guides, in `transformer_options`. For the time of a sampling run a `RefDropRun` takes
its place, and for the time of one evaluation a `Recording` or a `Guiding`: nothing outlives the call it serves,
and nothing is shared between calls that the host may run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..patches.reference_pass import (
    IS_REFERENCE_PASS,
    Recording,
    forward_through,
    is_reference_pass,
    shape_with_references,
)
from ..patches.self_attention import Handler, Options
from .run import Guiding, RefDropRun
from .settings import Guide, check_guide, check_total_strength

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

KEY = "refattention.refdrop"
ATTENTIONS = f"{KEY}.attentions"  # in transformer_options of an evaluation: the model's `Attentions`


def add_guide(model: ModelPatcher, guide: Guide) -> ModelPatcher:
    """Returns a clone of the model that follows the guide as well as those it already has.

    Raises:
        ValueError: the guide is not valid or was recorded with another model, or the strengths of all guides sum up
            beyond [-1, 1].
    """
    check_guide(guide)
    if guide.recorded is not None:
        guide.recorded.check(model, guide.blocks)
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


def _with_state(model_options: dict[str, Any], run: RefDropRun, state: Recording | Guiding) -> dict[str, Any]:
    # A compiled model looks for all keys that were there when it was compiled, in whichever pass that was.
    added = {KEY: state, ATTENTIONS: run.attentions, IS_REFERENCE_PASS: False}
    return {**model_options, "transformer_options": {**model_options["transformer_options"], **added}}


def _outer_sample(
    executor: WrapperExecutor, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Opens a run for one call of the sampler and drops it, with all its tensors, whatever happens."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    guides = options[KEY]
    options[KEY] = run = RefDropRun(guides, guider, noise.shape, sigmas, KEY)
    try:
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)
    finally:
        options[KEY] = guides
        for reading in run.readings.values():
            reading.close()


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
    passes = [reading.passes for reading in run.readings.values()]
    prompts = [entry for each in passes for entry in each.own_prompts]
    shape = shape_with_references(noise_shape, [each.reference for each in passes])
    real_model, _, models = executor(model, shape, {**conds, KEY: prompts}, model_options=model_options, **kwargs)
    return real_model, conds, models


def _calc_cond_batch(
    executor: WrapperExecutor, model: BaseModel, conds: list[Any], x: Tensor, timestep: Tensor, model_options: Options
) -> list[Tensor]:
    """Before each evaluation of the model: one pass of the references at the same noise level."""
    transformer_options = model_options["transformer_options"]
    if is_reference_pass(transformer_options):
        return executor(model, conds, x, timestep, model_options)
    run = transformer_options.get(KEY)
    if not isinstance(run, RefDropRun):
        raise RuntimeError("RefDrop works only inside a sampler that follows the host's guider; connect KSampler.")
    sigma = timestep[:1]
    guides = run.active(sigma.item())
    if not guides:
        return executor(model, conds, x, timestep, model_options)

    def recorded(recording: Recording) -> Options:
        return _with_state(model_options, run, recording)

    readings = {guide: run.readings[guide] for guide in guides if guide in run.readings}
    banks = {guide: each.look(executor, model, conds, sigma, recorded) for guide, each in readings.items()}
    guiding = Guiding(run, guides, banks | run.recorded(guides, conds, sigma))
    out = executor(model, conds, x, timestep, _with_state(model_options, run, guiding))
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
    if isinstance(state, Guiding) and not is_reference_pass(transformer_options):
        state.begin(x)
    elif not isinstance(state, Recording):
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def route(options: Options, handler: Handler) -> Options:
        return transformer_options[ATTENTIONS].route(x, kwargs, options, handler)

    forward = forward_through(executor, state.handle, route)
    return forward(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


WRAPPERS: dict[str, Callable[..., Any]] = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.PREPARE_SAMPLING: _prepare_sampling,
    WrappersMP.CALC_COND_BATCH: _calc_cond_batch,
    WrappersMP.APPLY_MODEL: _apply_model,
}
