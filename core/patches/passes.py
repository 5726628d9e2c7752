"""The options of a pass through the model: what it carries, and which wrappers it must not go through."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from .attention import Options
from .blocks import Block
from .conditionings import Cond

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

Keep = Callable[[Mapping[Any, Any]], dict[Any, Any]]  # chooses among the wrappers at one place, by their key
OURS = "refattention."  # how the keys of the pack's wrappers begin
COMPILED = "torch.compile"  # key of the wrapper that puts a compiled model in place of the model
# True in transformer_options while a reference is read.
IS_REFERENCE_PASS = "refattention.is_reference_pass"


@dataclass(frozen=True, eq=False)
class Asked:
    """One evaluation of the model, as the sampler asks for it.

    Attributes:
        executor: of the CALC_COND_BATCH wrapper.
        model: that is evaluated.
        conds: lists of conditionings; None where one is off.
        x: (B, C, ...), the noisy latents.
        sigma: (1,), their noise level.
        model_options: of the evaluation.
    """

    executor: WrapperExecutor
    model: BaseModel
    conds: list[list[Cond] | None]
    x: Tensor
    sigma: Tensor
    model_options: dict[str, Any]

    @cached_property
    def level(self) -> float:
        """The noise level as a number. To read it is to wait for the device, so it is read once."""
        level: float = self.sigma.item()
        return level

    @property
    def options(self) -> Options:
        """The transformer_options of the evaluation."""
        return self.model_options["transformer_options"]

    def patcher(self, options: Options) -> ModelPatcher:
        """The model's patcher on the device of one of the evaluation's forward passes.

        ComfyUI's multi-GPU split runs them on copies of the model, each with copies of its additional models.
        """
        copies = self.model_options.get("multigpu_clones", {})
        found: ModelPatcher = copies.get(options.get("multigpu_thread_device"), self.model.current_patcher)
        return found

    @property
    def latents(self) -> Tensor:
        """What `x` holds of the picture or video, without sound."""
        entry = next((entry for entries in self.conds for entry in entries or ()), {})
        shapes = entry.get("model_conds", {}).get("latent_shapes")
        return without_sound(self.x, None if shapes is None else shapes.cond)


def without_sound(x: Tensor, shapes: Sequence[Sequence[int]] | None) -> Tensor:
    """The video among latents that ComfyUI has put together with those of its sound.

    Args:
        x: (B, C, ...), or (B, 1, N) where there is sound.
        shapes: (B, C, F, H, W) of the video and (B, C, ...) of its sound; of the video alone, or None, without sound.
    """
    if shapes is None or len(shapes) < 2:
        return x
    shape = shapes[0][1:]
    return x[:, :, : math.prod(shape)].reshape(len(x), *shape)


def rearranger(model_options: Mapping[str, Any]) -> str:
    """Names the node, as well as one can, that was put between the sampler and the model; "" where there is none."""
    wrapper = model_options.get("model_function_wrapper")
    if wrapper is None:
        return ""
    name: str = getattr(wrapper, "__qualname__", type(wrapper).__qualname__)
    return name.split(".")[0]


def may_change_inputs(model_options: Mapping[str, Any]) -> bool:
    """Whether another node may change what ComfyUI hands to the model, on the way from the sampler."""
    wrappers = model_options["transformer_options"].get("wrappers", {})
    places = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    others = {key for place in places for key in _not_compiled(wrappers.get(place, {}))}
    return "model_function_wrapper" in model_options or any(not str(key).startswith(OURS) for key in others)


def replaced(model_options: Mapping[str, Any]) -> set[Block]:
    """The blocks whose self-attentions, or which as a whole, another node replaces; each maybe only in part."""
    by_place = model_options["transformer_options"].get("patches_replace", {})
    # Cross-attentions that are replaced (IP-Adapters) leave the others as they are.
    keys = [key for place, by_key in by_place.items() if place != "attn2" for key in by_key]
    keys = [key for key in keys if isinstance(key, tuple) and len(key) > 1]
    return {(str(key[0]).removesuffix("_block"), key[1]) for key in keys}


def evaluation_key(key: str) -> str:
    """Where in transformer_options a method finds what serves the current evaluation."""
    return f"{key}.evaluation"


def is_reference_pass(options: Options) -> bool:
    """Whether `transformer_options` are those of a pass in which a reference is read."""
    return bool(options.get(IS_REFERENCE_PASS))


def with_state(model_options: dict[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Copies model_options with more in their transformer_options."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], **state}}


def uncompiled(model_options: dict[str, Any]) -> dict[str, Any]:
    """Copies model_options so that the model itself runs where ComfyUI would run what was compiled of it.

    ComfyUI compiles models without a check that the patches are still those of the pass that was compiled, so compiled
    code would go on with the patches of that pass. Passes in which nothing is patched stay compiled.
    """
    return _keeping_wrappers(model_options, _not_compiled)


def read_reference(asked: Asked, conds: list[list[Cond] | None], x: Tensor, state: Mapping[str, Any]) -> None:
    """Passes references through the model as one evaluation of its own, unseen by other nodes' wrappers.

    Such a wrapper may remember what it saw for the next step, skip the pass, or take it for a part of the picture
    (EasyCache, context windows, tiled diffusion, DeepCache). Patches inside of the model act as they do on the picture,
    and so do methods of this pack that act on references; not those that bring a model along (ControlNets of Qwen-Image
    and Z-Image), which read a control picture for the picture, as a ControlNet in a prompt does.

    Args:
        asked: the sampler's evaluation that the references are read for.
        conds: conditionings for the references; None where one is off.
        x: (R, C, ...), the references at the noise level of the evaluation.
        state: what the pass carries in transformer_options.
    """
    options = _keeping_wrappers(asked.model_options, ours)
    options.pop("model_function_wrapper", None)
    options = with_state(options, {**state, IS_REFERENCE_PASS: True, "patches": _of_model(asked.options)})
    wrappers = get_all_wrappers(WrappersMP.CALC_COND_BATCH, options, is_model_options=True)
    evaluate = WrapperExecutor.new_executor(asked.executor.original, wrappers)
    evaluate.execute(asked.model, conds, x, asked.sigma.expand(len(x)), options)


def _keeping_wrappers(model_options: dict[str, Any], keep: Keep) -> dict[str, Any]:
    options = model_options["transformer_options"]
    kept = {place: keep(by_key) for place, by_key in options.get("wrappers", {}).items()}
    return {**model_options, "transformer_options": {**options, "wrappers": kept}}


def ours(by_key: Mapping[Any, Any]) -> dict[Any, Any]:
    """Of the wrappers at one place, by their key, those of this pack."""
    return {key: each for key, each in by_key.items() if str(key).startswith(OURS)}


def _of_model(options: Options) -> dict[str, list[Any]]:
    """The patches inside of the model, but for those that bring a model along."""
    patches = options.get("patches", {})
    return {kind: [each for each in some if not hasattr(each, "models")] for kind, some in patches.items()}


def _not_compiled(by_key: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: each for key, each in by_key.items() if key != COMPILED}
