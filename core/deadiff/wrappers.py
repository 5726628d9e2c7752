"""DEADiff's wrappers around the host's sampling. They have no state of their own.

The model carries only the `Style`, in `transformer_options`. For the time of a sampling run a `StyleRun` takes its
place: nothing computed outlives the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..patches.cross_attention import route_cross_attention
from ..patches.self_attention import Options
from .run import StyleRun, Styling
from .settings import NODE, Style, check_layers, check_no_replacement, check_style, require_sd15

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

KEY = "refattention.deadiff"


def add_style(model: ModelPatcher, style: Style) -> ModelPatcher:
    """Returns a clone of the model that follows the style.

    Raises:
        ValueError: the style is not valid, or the model has one already.
        RuntimeError: the model is no SD1.5 model, its layers do not fit, or another node replaces them.
    """
    check_style(style)
    check_layers(require_sd15(model), style.image)
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    if KEY in options:
        raise ValueError(
            f"The model already went through a {NODE} node, and can follow only one. "
            f"Connect all pictures to one node, as a batch."
        )
    check_no_replacement(options, style.image)
    if style.is_off:
        return patched
    options[KEY] = style
    for place, wrapper in WRAPPERS.items():
        patched.add_wrapper_with_key(place, KEY, wrapper)
    return patched


def _outer_sample(executor: WrapperExecutor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Opens a run for one call of the sampler and drops it, with all its tensors, whatever happens."""
    options = executor.class_obj.model_options["transformer_options"]
    style = options[KEY]
    options[KEY] = StyleRun(style, executor.class_obj, noise.shape)
    try:
        return executor(noise, *args, **kwargs)
    finally:
        options[KEY] = style


def _calc_cond_batch(
    executor: WrapperExecutor, model: BaseModel, conds: list[Any], x: Tensor, timestep: Tensor, model_options: Options
) -> list[Tensor]:
    """Notes which conditionings an evaluation consists of: a forward pass knows them by index and uuid only."""
    run = model_options["transformer_options"].get(KEY)
    if not isinstance(run, StyleRun):
        raise RuntimeError(f"{NODE} works only inside a sampler that follows the host's guider; connect KSampler.")
    run.note_prompts(conds)
    return executor(model, conds, x, timestep, model_options)


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
    """Routes the cross-attentions of one forward pass through the style."""
    run = transformer_options.get(KEY)
    if not isinstance(run, StyleRun) or not run.is_active(transformer_options):
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    if run.style.mask is not None and tuple(x.shape[-2:]) != run.latent_size:
        raise RuntimeError(
            f"{NODE}: a mask cannot be combined with prompts that are limited to an area, because the model sees only "
            "a part of the picture. Limit the prompts with masks instead of areas."
        )
    check_no_replacement(transformer_options, run.style.image)
    options = route_cross_attention(transformer_options, Styling(run, transformer_options))
    out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    if not run.has_acted:
        raise RuntimeError(f"{NODE} had no effect: another patch bypasses the model's cross-attention. Remove it.")
    return out


WRAPPERS: dict[str, Callable[..., Any]] = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.CALC_COND_BATCH: _calc_cond_batch,
    WrappersMP.APPLY_MODEL: _apply_model,
}
