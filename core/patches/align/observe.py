"""What the self-attentions of a U-Net would see in a reference: queries of one picture, keys of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ...blocks import Layer
from ...kernels.align import attention_to_reference
from ...kernels.flow import AttentionLayer
from ...kernels.masks import covered_tokens
from ..evaluation import evaluate_once, other_seed
from ..reference_pass import IS_REFERENCE_PASS, PICTURE_KEYS, ReferenceRecorded, forward_through
from ..self_attention import Handler, SelfAttentionCall
from ..unet import require_image_unet, self_attention_layers

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

KEY = "refattention.align"
# The picture is observed whole, whatever part of it and of the schedule the sampler limits its prompt to.
SAMPLER_KEYS = PICTURE_KEYS | {"start_percent", "end_percent"}

See = Callable[[int, Layer, AttentionLayer], None]
Groups = Callable[[tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Look:
    """How to look.

    Attributes:
        layers: the transformer layers to read, at least one.
        timesteps: noise levels, each 0 to 999, at least one.
        seed: of the noise.
    """

    layers: frozenset[Layer]
    timesteps: tuple[int, ...]
    seed: int = 0


def observe(
    model: ModelPatcher, positive: list[Any], samples: Tensor, reference: Tensor, look: Look, see: See, node: str
) -> None:
    """Passes reference and picture through the model once per timestep and shows the queries beside the keys.

    Both passes end at the last layer that is to be read. Only the keys of the reference are kept, for one timestep.

    Args:
        model: SD1.5, SD2 or SDXL; stays as it is.
        positive: prompt of both pictures; its first entry is used.
        samples: (1, C, h, w) latent of the picture.
        reference: (1, C, h', w') latent of the reference, of any size.
        see: is called with the timestep, the layer, and its queries and keys on the model's device.
        node: for messages.

    Raises:
        RuntimeError: not an image U-Net, or another patch changes the number of tokens.
    """
    layers = self_attention_layers(require_image_unet(model, node))
    wanted = [place for place in layers if place in look.layers]
    text, options = positive[0]
    prompt = [[text, {key: value for key, value in options.items() if key not in SAMPLER_KEYS}]]
    keys: dict[Layer, tuple[Tensor, tuple[int, int]]] = {}

    def record(place: Layer, call: SelfAttentionCall) -> None:
        keys[place] = call.k, call.grid

    for timestep in look.timesteps:

        def compare(place: Layer, call: SelfAttentionCall, timestep: int = timestep) -> None:
            k, grid = keys.pop(place)
            see(timestep, place, AttentionLayer(call.q, k, layers[place].n_heads, call.grid, grid))

        for latent, seed, act in ((reference, other_seed(look.seed), record), (samples, look.seed, compare)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            evaluate_once(_watched(model, _reading(wanted, act, node)), prompt, latent, timestep, seed)


def attention_maps(
    model: ModelPatcher,
    positive: list[Any],
    samples: Tensor,
    reference: Tensor,
    look: Look,
    groups: Groups,
    node: str,
    reference_mask: Tensor | None = None,
) -> dict[tuple[int, Layer], Tensor]:
    """Maps over the reference of what groups of queries attend to, one for each timestep and layer.

    Args:
        groups: gives the weights (P, h * w) of the queries for a grid (h, w); `kernels.align` has some.
        reference_mask: (H, W), the keys that may be attended to; None is all.
        The others: as of `observe`.

    Returns:
        (P, h', w') float32 on the CPU, by timestep and layer. 1 is what even attention gives every key.
    """
    maps: dict[tuple[int, Layer], Tensor] = {}

    def see(timestep: int, place: Layer, layer: AttentionLayer) -> None:
        weights = groups(layer.grid)
        rows, columns = layer.reference_grid
        tokens = (
            torch.arange(rows * columns)
            if reference_mask is None
            else covered_tokens(reference_mask, layer.reference_grid)
        )
        visible = replace(layer, k=layer.k[:, tokens.to(layer.k.device)])
        seen = torch.zeros(len(weights), rows * columns)
        seen[:, tokens] = attention_to_reference(visible, weights).cpu() * len(tokens)
        maps[timestep, place] = seen.unflatten(-1, (rows, columns))

    observe(model, positive, samples, reference, look, see, node)
    return maps


def _reading(wanted: list[Layer], act: Callable[[Layer, SelfAttentionCall], None], node: str) -> Handler:
    """Shows the self-attentions of the wanted layers as they run and ends the pass after the last of them."""

    def handle(call: SelfAttentionCall) -> Tensor:
        place = call.block, call.depth
        if place in wanted:
            tokens = call.grid[0] * call.grid[1]
            if not tokens == call.q.shape[1] == call.k.shape[1]:
                raise RuntimeError(
                    f"{node} needs the {tokens} tokens of block {call.block} in one piece, but another patch left "
                    f"{call.q.shape[1]} of them. Remove token merging or HyperTile."
                )
            act(place, call)
        if place == wanted[-1]:
            raise ReferenceRecorded
        return call.attend(call.q, call.k, call.v)

    return handle


def _watched(model: ModelPatcher, handle: Handler) -> ModelPatcher:
    """A clone whose self-attentions go through the handler, and which methods that look at references leave alone."""

    def apply_model(executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
        return forward_through(executor, handle)(*args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    watched.model_options["transformer_options"][IS_REFERENCE_PASS] = True
    return watched
