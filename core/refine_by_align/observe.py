"""What the self-attentions of a model would see in a reference: queries of one picture, keys of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..kernels.attention import AttentionLayer
from ..patches.attention import AttentionCall, Options
from ..patches.blocks import Block, Layer, name_of, select_layers
from ..patches.families.attentions import Attentions
from ..patches.families.table import layout_of, picture_attentions, readable_attentions
from ..patches.passes import IS_REFERENCE_PASS, ours
from ..patches.reference_pass import PICTURE_KEYS, ReferenceRecorded, until_recorded
from ..patches.selection import Tokens
from ..patches.single_evaluation import evaluate_once, other_seed
from ..patches.unet import family
from .kernel import attention_to_reference, weighted

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

KEY = "refattention.align"
# The picture is observed whole, whatever part of it and of the schedule the sampler limits its prompt to.
SAMPLER_KEYS = PICTURE_KEYS | {"start_percent", "end_percent"}
AUTO = "auto"
USUAL = {"timesteps": "261", "layers": ""}

TRANSFORMER = ("double", "single")  # kinds of blocks
MIDDLE_BLOCKS = 6  # of a transformer, read unless others are named

Route = Callable[[Tensor, Mapping[str, Any], Options], Options]
See = Callable[[int, Layer, AttentionLayer], None]
Groups = Callable[[tuple[int, int]], Tensor]
Maps = dict[tuple[int, Layer], Tensor]  # by timestep and layer
Key = TypeVar("Key")


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


def parse_look(
    model: ModelPatcher,
    timesteps: str,
    layers: str,
    seed: int,
    node: str,
    calibrated: Mapping[str, str] | None = None,
    takes_videos: bool = False,
) -> Look:
    """How to look, from text: `261` or `181, 261`, and `output.4, output.5.0` or nothing for the usual layers.

    Args:
        calibrated: what `auto` stands for; without it, or what it does not tell, the usual.
        takes_videos: whether the model may be one of videos.

    Raises:
        RuntimeError: not such a model whose attentions are known.
        ValueError: text that names no timesteps, or layers that the model does not have.
    """
    known = {**USUAL, **(calibrated or {})}
    timesteps, layers = (
        known[name] if text.strip() == AUTO else text for name, text in (("timesteps", timesteps), ("layers", layers))
    )
    parts = [part.strip() for part in timesteps.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) <= 999 for part in parts):
        raise ValueError(f"timesteps is '{timesteps}', but needs whole numbers from 0 to 999, such as 261 or 181, 261.")
    available = layers_of((readable_attentions if takes_videos else picture_attentions)(model, node))
    chosen = select_layers(layers.strip(" ,") or usual_layers(available), available, family(model))
    return Look(chosen, tuple(map(int, parts)), seed)


def cell_and_unit(model: ModelPatcher) -> tuple[int, int]:
    """Pixels of a latent each way, and the sides of pictures in pixels that make whole tokens."""
    cell: int = model.model.latent_format.spacial_downscale_ratio
    module = getattr(model.model, "diffusion_model", None)
    layout = layout_of(module)
    return cell, cell * max(layout.patch(module)[1:]) if layout else cell


def layers_of(attentions: Attentions) -> list[Layer]:
    """The self-attentions of a model in the order they run."""
    return [(block, number) for block, count in attentions.blocks.items() for number in range(count)]


def usual_layers(available: list[Layer]) -> str:
    """The layers that are read unless others are named, as text; empty for a U-Net, see `select_layers`.

    Note:
        For a transformer this is a guess: the six blocks in the middle, between those that hardly know yet what they
        see and those that are about to give it back as pixels. tools/calibrate_align.py finds better ones.
    """
    blocks = [name_of(block) for block in dict.fromkeys(block for block, _ in available) if block[0] in TRANSFORMER]
    first = max((len(blocks) - MIDDLE_BLOCKS) // 2, 0)
    return ", ".join(blocks[first : first + MIDDLE_BLOCKS])


def observe(
    model: ModelPatcher, positive: list[Any], samples: Tensor, reference: Tensor, look: Look, see: See, node: str
) -> None:
    """Passes reference and picture through the model once per timestep and shows the queries beside the keys.

    Both passes end at the last layer that is to be read. Only the keys of the reference are kept, for one timestep.
    Frames of a video count as one tall picture: its grid is (frames * h, w), one above the other.

    Args:
        model: stays as it is.
        positive: prompt of both pictures; its first entry is used.
        samples: latent of the picture, (1, C, h, w), (1, C, F, h, w), or (F, C, h, w) where frames lie in the batch.
        reference: the same of the reference, of any size.
        see: is called with the timestep, the layer, and its queries and keys on the model's device.
        node: for messages.

    Raises:
        RuntimeError: a model whose attentions are not known, or another patch changes the number of tokens.
    """
    attentions = readable_attentions(model, node)
    wanted = [place for place in layers_of(attentions) if place in look.layers]
    carried = of_whole_picture(positive)
    prompt = [[positive[0][0], {key: each for key, each in carried.items() if key not in attentions.of_picture}]]
    keys: dict[Layer, tuple[Tensor, tuple[int, int]]] = {}

    def record(call: AttentionCall) -> None:
        keys[call.layer] = _in_one(call.k), _tall_grid(call)

    for timestep in look.timesteps:

        def compare(call: AttentionCall, timestep: int = timestep) -> None:
            k, grid = keys.pop(call.layer)
            see(timestep, call.layer, AttentionLayer(_in_one(call.q), k, call.heads, _tall_grid(call), grid))

        for latent, seed, act in ((reference, other_seed(look.seed), record), (samples, look.seed, compare)):
            evaluate_once(watched(model, reading(attentions, wanted, act, node)), prompt, latent, timestep, seed)


def _in_one(tokens: Tensor) -> Tensor:
    """(1, F * N, C) of (F, N, C), frames that lie in the batch."""
    return tokens.flatten(0, 1).unsqueeze(0)


def _tall_grid(call: AttentionCall) -> tuple[int, int]:
    return len(call.q) * call.frames * call.grid[0], call.grid[1]


def attention_maps(
    model: ModelPatcher,
    positive: list[Any],
    samples: Tensor,
    reference: Tensor,
    look: Look,
    groups: Groups,
    node: str,
    reference_mask: Tensor | None = None,
) -> Maps:
    """Maps over the reference of what groups of queries attend to, one for each timestep and layer.

    Args:
        groups: gives the weights (P, h * w) of the queries for a grid (h, w), such as `kernel.group_of_mask`.
        reference_mask: (H, W), the keys that may be attended to; None is all.
        The others: as for `observe`.

    Returns:
        (P, h', w') float32 on the CPU, by timestep and layer. 1 is what even attention gives every key.
    """
    maps: Maps = {}
    view = View(groups, reference_mask)

    def see(timestep: int, place: Layer, layer: AttentionLayer) -> None:
        maps[timestep, place] = view.map_of(layer)

    observe(model, positive, samples, reference, look, see, node)
    return brought(maps)


class View:
    """Which queries look at which keys, worked out and brought to the device once for each grid.

    Args:
        groups, reference_mask: as for `attention_maps`.
    """

    def __init__(self, groups: Groups, reference_mask: Tensor | None = None) -> None:
        self._groups = groups
        self._keys = Tokens(reference_mask)
        self._queries: dict[tuple[tuple[int, int], torch.device], tuple[Tensor, Tensor]] = {}

    def queries(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """The groups (P, h * w) on a grid, and (n,) the queries that have a weight in any."""
        if (grid, device) not in self._queries:
            groups = self._groups(grid)
            self._queries[grid, device] = groups.to(device), weighted(groups).to(device)
        return self._queries[grid, device]

    def map_of(self, layer: AttentionLayer) -> Tensor:
        """Maps over the reference of one layer, as `attention_maps` gives them, on the layer's device."""
        groups, asking = self.queries(layer.grid, layer.q.device)
        chosen = self._keys.on(layer.reference_grid, layer.k.device)
        if chosen is None:
            seen = attention_to_reference(layer, groups, asking) * layer.k.shape[1]
        else:
            part = replace(layer, k=layer.k[:, chosen])
            found = attention_to_reference(part, groups, asking) * len(chosen)
            seen = _among_all(found, chosen, layer.k.shape[1])
        return seen.unflatten(-1, layer.reference_grid)

    def kept(self, maps: Tensor) -> Tensor:
        """Maps (P, h', w') over the reference with 0 at the keys that nobody looks at."""
        chosen = self._keys.on((maps.shape[1], maps.shape[2]), maps.device)
        if chosen is None:
            return maps
        flat = maps.flatten(1)
        return _among_all(flat[:, chosen], chosen, flat.shape[1]).view_as(maps)


def _among_all(found: Tensor, chosen: Tensor, keys: int) -> Tensor:
    """Numbers (P, n) of the chosen of so many keys, with 0 for the others."""
    return found.new_zeros(len(found), keys).index_copy(1, chosen, found)


def brought(maps: dict[Key, Tensor]) -> dict[Key, Tensor]:
    """Maps in main memory; all together, because to bring one is to wait for the device."""
    flat = torch.cat([each.flatten() for each in maps.values()]).cpu()
    parts = flat.split([each.numel() for each in maps.values()])
    return {key: part.view_as(maps[key]) for key, part in zip(maps, parts, strict=True)}


def of_whole_picture(positive: list[Any]) -> dict[str, Any]:
    """What the first entry of a prompt carries beside its text, without what a sampler limits it to."""
    return {key: value for key, value in positive[0][1].items() if key not in SAMPLER_KEYS}


def require_whole(block: Block, grid: tuple[int, int], tokens: int, node: str) -> None:
    """Checks that a layer sees as many tokens as its grid has.

    Raises:
        RuntimeError: another patch left fewer.
    """
    if grid[0] * grid[1] != tokens:
        raise RuntimeError(
            f"{node} needs the {grid[0] * grid[1]} tokens of block {block} in one piece, but another patch left "
            f"{tokens} of them. Remove token merging or HyperTile."
        )


def reading(attentions: Attentions, wanted: list[Layer], act: Callable[[AttentionCall], None], node: str) -> Route:
    """Shows the self-attentions of the wanted layers as they run and ends the pass after the last of them."""

    def handle(call: AttentionCall) -> Tensor:
        if call.layer in wanted:
            for each in (call.q, call.k):
                require_whole(call.block, (call.frames * call.grid[0], call.grid[1]), each.shape[1], node)
            act(call)
        if call.layer == wanted[-1]:
            raise ReferenceRecorded
        return call.plain()

    return lambda x, inputs, options: attentions.route(x, inputs, options, handle)


def watched(model: ModelPatcher, route: Route) -> ModelPatcher:
    """A clone whose attentions are routed, undisturbed: methods that look at references leave it alone.

    What other nodes wrap around the model is left out, because it may skip or rearrange the pass; so is a compiled
    model, whose code would not see the handler.
    """

    def apply_model(executor: WrapperExecutor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        *inputs, options = args
        return until_recorded(executor, x, *inputs, route(x, kwargs, options), channels=x.shape[1], **kwargs)

    watched = model.clone()
    for place, by_key in model.wrappers.items():
        for key in by_key.keys() - ours(by_key).keys():
            watched.remove_wrappers_with_key(place, key)
    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    watched.model_options["transformer_options"][IS_REFERENCE_PASS] = True
    return watched
