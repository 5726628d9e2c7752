"""P3S's wrappers around the host's sampling. They have no state of their own.

The model carries only the `Injection`, in `transformer_options`. For the time of a sampling run a `P3SRun` takes its
place, and for the time of one evaluation a `Recording`, an `Injecting` or a `Reading`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..patches.reference_pass import Recording, forward_through, is_reference_pass, shape_with_references
from ..patches.self_attention import Options, route_self_attention
from .run import Injecting, P3SRun, Recorded
from .settings import NODE, Injection, check_injection
from .trained import Reading

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
    if injection.adapter is not None:
        patched.set_additional_models(KEY, [injection.adapter.network])
    for place, wrapper in WRAPPERS.items():
        patched.add_wrapper_with_key(place, KEY, wrapper)
    return patched


def _with_state(model_options: dict[str, Any], state: Recording | Injecting | Reading) -> dict[str, Any]:
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
    if is_reference_pass(options):
        return executor(model, conds, x, timestep, model_options)
    run = options.get(KEY)
    if not isinstance(run, P3SRun):
        raise RuntimeError(f"{NODE} works only inside a sampler that follows the host's guider; connect KSampler.")
    sigma = timestep[:1]
    epsilon = run.epsilon(sigma.item())
    if epsilon == 0:
        return executor(model, conds, x, timestep, model_options)
    state = _state(executor, run, model, conds, sigma, epsilon, model_options)
    return executor(model, conds, x, timestep, _with_state(model_options, state))


def _state(
    executor: WrapperExecutor,
    run: P3SRun,
    model: BaseModel,
    conds: list[Any],
    sigma: Tensor,
    epsilon: float,
    model_options: Options,
) -> Injecting | Reading:
    """What serves one evaluation: the adapter, or what the model itself has just read."""
    adapter = run.injection.adapter
    if adapter is not None:
        # Not adapter.network, of which the host may have made a copy for this device.
        (network,) = model.current_patcher.get_additional_models_with_key(KEY)
        return Reading(run, model, adapter, network.model, epsilon)
    recording = run.recording()
    run.reference.run(executor, model, conds, sigma, _with_state(model_options, recording))
    return run.injecting(Recorded(recording.bank), epsilon)


def _diffusion_model(
    executor: WrapperExecutor,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Tensor | None,
    control: Any,
    transformer_options: Options,
    **kwargs: Any,
) -> Tensor:
    """Routes the self-attentions of one forward pass through the recording or injecting state, if there is one.

    Inside the wrappers in which other methods route theirs: so they find the subject among the keys, whatever the
    order of the nodes.
    """
    state = transformer_options.get(KEY)
    is_active = isinstance(state, Recording) or not is_reference_pass(transformer_options)
    forward: Callable[..., Tensor] = executor
    if is_active and isinstance(state, Reading):
        forward = partial(state.forward, executor)
    elif is_active and isinstance(state, (Recording, Injecting)):
        forward = forward_through(executor, state.handle, route_self_attention)
    return forward(x, timesteps, context, y, control, transformer_options, **kwargs)


WRAPPERS: dict[str, Callable[..., Any]] = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.PREPARE_SAMPLING: _prepare_sampling,
    WrappersMP.CALC_COND_BATCH: _calc_cond_batch,
    WrappersMP.DIFFUSION_MODEL: _diffusion_model,
}
