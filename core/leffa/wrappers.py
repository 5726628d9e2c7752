"""Leffa's wrappers around the host's sampling. They have no state of their own.

The model carries only `Settings`, in `transformer_options`. For the time of a sampling run a `LeffaRun` takes their
place: nothing outlives the call it serves, except the features of zeros, which belong to the loaded model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..patches.self_attention import Options, route_self_attention
from .equal_halves import share_equal_halves
from .guidance import rescale_guidance
from .reference import KEY, REFERENCES
from .run import Attending, LeffaRun
from .settings import Settings
from .tokens import FeatureCache

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

OBSERVER = f"{KEY}.observer"  # in transformer_options: an `Observer` of one run


def attach_reference_unet(generative: ModelPatcher, reference: ModelPatcher, cache_bytes: int) -> ModelPatcher:
    """Returns a clone of the generative model that brings its reference U-Net along, under the host's management."""
    model = generative.clone()
    model.set_additional_models(KEY, [reference])
    model.set_attachments(KEY, FeatureCache(cache_bytes, model.offload_device))
    return model


def add_reference(model: ModelPatcher, settings: Settings) -> ModelPatcher:
    """Returns a clone of a Leffa model whose self-attentions look at the references in its conditioning."""
    patched = model.clone()
    patched.model_options["transformer_options"][KEY] = settings
    for place, wrapper in WRAPPERS.items():
        patched.remove_wrappers_with_key(place, KEY)
        patched.add_wrapper_with_key(place, KEY, wrapper)
    if settings.rescale:
        patched.set_model_sampler_post_cfg_function(_rescale)
    return patched


def _rescale(args: dict[str, Any]) -> Tensor:
    """Rescaled guidance on the noise prediction, with the guidance scale itself as phi."""
    x, scale = args["input"], args["cond_scale"]
    if args["uncond"] is None or scale <= 0:
        return args["denoised"]
    return x - rescale_guidance(x - args["denoised"], x - args["cond_denoised"], scale)


def _outer_sample(executor: WrapperExecutor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Opens a run for one call of the sampler and drops it, with all its tensors, whatever happens."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    settings = options[KEY]
    _check_size(noise, guider.conds)
    options[KEY] = LeffaRun(settings.interval)
    try:
        return executor(noise, *args, **kwargs)
    finally:
        options[KEY] = settings


def _check_size(noise: Tensor, conds: dict[str, list[dict[str, Any]]]) -> None:
    for entries in conds.values():
        for entry in entries:
            concat = entry.get("noise_concat")
            if concat is None:
                continue
            if concat.shape[-2:] != noise.shape[-2:] or noise.shape[0] % concat.shape[0]:
                raise ValueError(
                    f"The latent to sample has batch x height x width = {_size(noise)}, but the conditioning of Leffa "
                    f"{_size(concat)}. Connect the latent output of the node that made the conditioning."
                )


def _size(latent: Tensor) -> str:
    return f"{latent.shape[0]} x {latent.shape[-2]} x {latent.shape[-1]}"


def _prepare_sampling(
    executor: WrapperExecutor, model: ModelPatcher, noise_shape: Any, conds: dict[str, Any], *args: Any, **kwargs: Any
) -> tuple[Any, ...]:
    """Reserves memory for the references, which share a batch of their own."""
    references = {one for entries in conds.values() for entry in entries for one in entry.get(REFERENCES, ())}
    pixels = noise_shape[-1] * noise_shape[-2]
    extra = sum(one.latent[0].numel() for one in references)
    shape = [noise_shape[0] + -(-extra // pixels), *noise_shape[1:]]
    return executor(model, shape, conds, *args, **kwargs)


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
    """Looks at the references of this batch, and routes the self-attentions of one forward pass to them."""
    run, model = transformer_options.get(KEY), executor.class_obj
    rows = kwargs.pop(REFERENCES, None)
    if not isinstance(run, LeffaRun):
        raise RuntimeError("Leffa works only inside a sampler that follows the host's guider; connect KSampler.")
    if rows is None:
        raise RuntimeError("Leffa: a conditioning without reference reached the model. Connect those of LeffaTryOn.")
    looks = run.look(model, rows, t[:1], transformer_options["sample_sigmas"])
    attending = Attending(model.diffusion_model, rows, looks, transformer_options.get(OBSERVER))
    options = share_equal_halves(route_self_attention(transformer_options, attending.handle))
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


WRAPPERS: dict[str, Callable[..., Any]] = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.PREPARE_SAMPLING: _prepare_sampling,
    WrappersMP.APPLY_MODEL: _apply_model,
}
