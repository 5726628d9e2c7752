"""P3S's wrappers around the host's sampling. They have no state of their own.

The model carries only the `Injection`, in `transformer_options`. For the time of a sampling run a `P3SRun` takes its
place, and for the time of one evaluation a `Recording` or an `Injecting`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..reference_pass import IS_REFERENCE_PASS, Recording, forward_through, shape_with_references
from ..self_attention import Options
from .injection import NODE, Injection, check_injection
from .run import Injecting, P3SRun

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

KEY = "refattention.p3s"


def add_injection(model: ModelPatcher, injection: Injection) -> ModelPatcher:
    """Returns a clone of the model that the subject is injected into.

    Raises:
        ValueError: the injection is not valid, or the model has one already.
    """
    check_injection(injection)
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    if KEY in options:
        raise ValueError(f"The model already went through a {NODE} node, and can take only one subject. Remove one.")
    if injection.is_off:
        return patched
    options[KEY] = injection
    for place, wrapper in WRAPPERS.items():
        patched.add_wrapper_with_key(place, KEY, wrapper)
    return patched


def _with_state(model_options: dict[str, Any], state: Recording | Injecting) -> dict[str, Any]:
    return {**model_options, "transformer_options": {**model_options["transformer_options"], KEY: state}}


def _outer_sample(executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
    """Opens a run for one call of the sampler and drops it, with all its tensors, whatever happens."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    injection = options[KEY]
    options[KEY] = P3SRun(injection, guider)
    try:
        return executor(*args, **kwargs)
    finally:
        options[KEY] = injection


def _prepare_sampling(
    executor: WrapperExecutor, model: ModelPatcher, noise_shape: Any, conds: Any, model_options: Options, **kwargs: Any
) -> tuple[Any, ...]:
    """Reserves memory for the reference."""
    run = model_options["transformer_options"][KEY]
    shape = shape_with_references(noise_shape, [run.injection.reference])
    return executor(model, shape, conds, model_options=model_options, **kwargs)


def _calc_cond_batch(
    executor: WrapperExecutor, model: BaseModel, conds: list[Any], x: Tensor, timestep: Tensor, model_options: Options
) -> list[Tensor]:
    """Before each evaluation of the model that is injected into: one pass of the reference at the same noise level."""
    options = model_options["transformer_options"]
    if IS_REFERENCE_PASS in options:
        return executor(model, conds, x, timestep, model_options)
    run = options.get(KEY)
    if not isinstance(run, P3SRun):
        raise RuntimeError(f"{NODE} works only inside a sampler that follows the host's guider; connect KSampler.")
    sigma = timestep[:1]
    epsilon = run.epsilon(sigma.item())
    if epsilon == 0:
        return executor(model, conds, x, timestep, model_options)
    recording = run.recording()
    run.reference.run(executor, model, conds, sigma, _with_state(model_options, recording))
    state = Injecting(run, recording.bank, epsilon)
    return executor(model, conds, x, timestep, _with_state(model_options, state))


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
    """Routes the self-attentions of one forward pass through the recording or injecting state, if there is one."""
    state = transformer_options.get(KEY)
    forward: Callable[..., Tensor] = executor
    if isinstance(state, Recording) or (isinstance(state, Injecting) and IS_REFERENCE_PASS not in transformer_options):
        forward = forward_through(executor, state.handle)
    return forward(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


WRAPPERS: dict[str, Callable[..., Any]] = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.PREPARE_SAMPLING: _prepare_sampling,
    WrappersMP.CALC_COND_BATCH: _calc_cond_batch,
    WrappersMP.APPLY_MODEL: _apply_model,
}
