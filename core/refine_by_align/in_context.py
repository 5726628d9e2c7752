"""Editing models: trained to see references, whose tokens stand in one sequence with the picture's.

ComfyUI hands such a model its references as `reference_latents` of the prompt. Their tokens come last: text, picture,
references.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from torch import Tensor

from ..kernels.attention import AttentionLayer
from ..patches.attention import AttentionCall, opaque
from ..patches.blocks import Layer
from ..patches.families.table import layout_of, picture_attentions
from ..patches.passes import COMPILED
from ..patches.single_evaluation import evaluate_once
from ..patches.unet import family
from .kernel import attention_to_reference, score_bias
from .observe import Groups, Look, Maps, View, brought, layers_of, of_whole_picture, reading, watched

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

LATENTS, METHOD = "reference_latents", "reference_latents_method"  # entries of a prompt
COUNTS = "reference_image_num_tokens"  # in transformer_options: how many tokens each reference has
NAMES = "Flux Kontext, Flux 2, Qwen-Image-Edit, or an editing model of Krea 2 or Mage-Flow"
# How the plain models lay references out, of which some editing models are told by another way.
PLAIN_METHODS = {Flux: "offset", QwenImageTransformer2DModel: "index"}
Grid = tuple[int, int]


def takes_references(model: ModelPatcher) -> bool:
    """Whether the tokens of reference latents get into the model's sequence, trained for it or not."""
    layout = layout_of(getattr(model.model, "diffusion_model", None))
    return layout is not None and layout.references


def is_editing(model: ModelPatcher, positive: list[Any]) -> bool:
    """Whether a model is surely meant to see references in its sequence.

    Flux 2 and the later Qwen-Image-Edit can be told by their architecture. Others cannot, as Flux Kontext from Flux 1
    or the first Qwen-Image-Edit from Qwen-Image: there the prompt decides, which came through a node
    for editing models.
    """
    if not takes_references(model):
        return False
    plain = PLAIN_METHODS.get(type(model.model.diffusion_model))
    is_told = plain is not None and _default_method(model) != plain
    return is_told or any(key in options for _, options in positive for key in (LATENTS, METHOD))


def method_for(model: ModelPatcher) -> str | None:
    """How references are laid out if the prompt does not say it; None is as the model itself does.

    Krea 2 leaves references out if nobody says how: only adapters make it an editing model.
    """
    return "index" if _default_method(model) is None else None


def _default_method(model: ModelPatcher) -> str | None:
    module: Any = model.model.diffusion_model
    found: str | None = getattr(getattr(module, "params", module), "default_ref_method", "index")
    return found


def require_references(model: ModelPatcher, node: str) -> None:
    """Checks that a model takes references.

    Raises:
        RuntimeError: it does not; names the family.
    """
    if not takes_references(model):
        raise RuntimeError(
            f"{node}: in-context needs an editing model whose reference latents come right behind the picture "
            f"({NAMES}), but this is a {family(model)} model. Connect one of those, or set back_end to auto."
        )


def with_references(prompt: list[Any], latents: Sequence[Tensor], method: str | None = None) -> list[Any]:
    """A prompt with more reference latents, in front of its own.

    Args:
        latents: in the form of the model's VAE.
        method: how references are laid out, unless the prompt says it.
    """
    laid_out = {} if method is None else {METHOD: method}

    def entry(options: dict[str, Any]) -> dict[str, Any]:
        return {**laid_out, **options, LATENTS: [*latents, *options.get(LATENTS, [])]}

    return [[text, entry(options)] for text, options in prompt] if latents else prompt


def in_context_maps(
    model: ModelPatcher,
    positive: list[Any],
    samples: Tensor,
    references: Sequence[Tensor],
    look: Look,
    groups: Groups,
    node: str,
    reference_masks: Sequence[Tensor | None] | None = None,
) -> list[Maps]:
    """Maps over references of what groups of the picture's queries attend to, as the model itself attends.

    Args:
        reference_masks: for each reference (H, W), the keys that are kept; None is all.
        The others: as for `observe_in_context`.

    Returns:
        For each reference (P, h', w') float32 on the CPU, by timestep and layer. 1 is what even attention gives every
        key of the sequence.
    """
    views = [View(groups, mask) for mask in reference_masks or [None] * len(references)]
    found: list[Maps] = [{} for _ in references]

    def see(timestep: int, layer: Layer, maps: list[Tensor]) -> None:
        for each, one, view in zip(found, maps, views, strict=True):
            each[timestep, layer] = view.kept(one)

    observe_in_context(model, positive, samples, references, look, groups, see, node)
    return [brought(each) for each in found]


def observe_in_context(
    model: ModelPatcher,
    positive: list[Any],
    samples: Tensor,
    references: Sequence[Tensor],
    look: Look,
    groups: Groups,
    see: Callable[[int, Layer, list[Tensor]], None],
    node: str,
) -> None:
    """Passes the noised picture through the model once per timestep, with references in view, and shows the maps.

    The softmax is the model's own, over text, picture and all references; of the map only the columns of a reference
    are kept. A pass ends at the last layer that is to be read.

    Args:
        model: an editing model; stays as it is.
        positive: prompt; its first entry is used. References that it brings stay, behind those given here.
        samples: latent of the picture.
        references: latents, each of a size of its own.
        groups: gives the weights (P, h * w) of the queries for a grid (h, w), such as `kernel.group_of_mask`.
        see: is called with the timestep, the layer, and the maps (P, h', w') over each reference, as in_context_maps
            gives them, but on the model's device.
        node: for messages.

    Raises:
        RuntimeError: a model that takes no references, or another patch changes the number of tokens.
    """
    require_references(model, node)
    attentions = picture_attentions(model, node)
    wanted = [place for place in layers_of(attentions) if place in look.layers]
    grids = [_grid_of(model, latent) for latent in references]
    prompt = with_references([[positive[0][0], of_whole_picture(positive)]], references, method_for(model))
    view = View(groups)
    for timestep in look.timesteps:

        def act(call: AttentionCall, timestep: int = timestep) -> None:
            see(timestep, call.layer, _maps_of(call, view, grids, node))

        evaluate_once(watched(model, reading(attentions, wanted, act, node)), prompt, samples, timestep, look.seed)


def _grid_of(model: ModelPatcher, latent: Tensor) -> Grid:
    module = model.model.diffusion_model
    layout = layout_of(module)
    assert layout is not None  # as it was routed
    rows, columns = (-(-n // p) for n, p in zip(latent.shape[-2:], layout.patch(module)[1:], strict=True))
    return rows, columns


def _maps_of(call: AttentionCall, view: View, grids: Sequence[Grid], node: str) -> list[Tensor]:
    """The maps (P, h', w') of one attention over each reference."""
    sequence = None if call.sequence is None else call.sequence()
    counts = () if sequence is None else sequence.references
    expected = tuple(map(math.prod, grids))
    if sequence is None or counts[: len(grids)] != expected:
        raise RuntimeError(
            f"{node}: the references have {_listed(expected)} tokens, but the model's sequence has {_listed(counts)} "
            f"of reference latents. Remove what takes them away or changes them, or connect another model: {NAMES}."
        )
    length = sequence.k.shape[1]
    bias = score_bias(sequence.mask, sequence.queries)
    layer = AttentionLayer(call.q, sequence.k, call.heads, call.grid, (1, length), bias)
    attention = attention_to_reference(layer, *view.queries(call.grid, call.q.device)) * length
    own = attention[:, length - sum(counts) :].split(list(counts), dim=1)  # of each reference, in their order
    return [each.unflatten(-1, grid) for each, grid in zip(own, grids, strict=False)]


def _listed(counts: Sequence[int]) -> str:
    return " and ".join(map(str, counts)) or "none"


def weakened(model: ModelPatcher, strength: float, references: int) -> ModelPatcher:
    """A clone that sees its first references less: `c Att(Q, all) + (1 - c) Att(Q, all but them)`, RefDrop's blend.

    Args:
        strength: c, between 0 and 1.
        references: how many of them.
    """
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    previous = options.get("optimized_attention_override")

    def attention(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        heads, mask = args[0] if args else kwargs["heads"], args[1] if len(args) > 1 else kwargs.get("mask")
        rest = {name: value for name, value in kwargs.items() if name not in ("heads", "mask")}

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            call = func if previous is None else lambda *a, **b: previous(func, *a, **b)
            return call(q, k, v, heads, mask, *args[2:], **rest)

        whole, state = attend(q, k, v, mask), kwargs.get("transformer_options", {})
        counts = state.get(COUNTS, ())
        if not counts or "block_index" not in state:  # Krea 2 attends among layers of the text before its blocks
            return whole
        tokens = -2 if kwargs.get("skip_reshape") else 1
        first, length = k.shape[tokens] - sum(counts), k.shape[tokens]
        hidden = sum(counts[:references])

        def without_them(each: Tensor, dim: int) -> Tensor:
            behind = each.narrow(dim, first + hidden, length - first - hidden)
            return torch.cat([each.narrow(dim, 0, first), behind], dim)

        if mask is not None:
            mask = without_them(mask[..., :first, :] if mask.shape[-2] == length else mask, -1)
        keys, values = without_them(k, tokens), without_them(v, tokens)
        without = attend(q.narrow(tokens, 0, first), keys, values, mask)
        whole[:, :first] = torch.lerp(without, whole[:, :first], strength)  # the references' own queries stay
        return whole

    options["optimized_attention_override"] = opaque(attention)
    for place, by_key in model.wrappers.items():
        if COMPILED in by_key:  # compiled code would not see the blend
            clone.remove_wrappers_with_key(place, COMPILED)
    return clone
