"""Alignment on every family of pictures, by its own attention, and the shifted patch of a photograph by both ways."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from bootstrap import ROOT
from boxes import overlap
from content_based import content_based
from editing import EDITING, AnyCodec, prompt
from families import FAMILIES, VIDEO, tiny_latent, tiny_model, tiny_prompt
from naive_families import NaiveFamilyRefDrop
from PIL import Image
from refattention.core.patches.families.table import attentions_of
from refattention.core.refine_by_align.back_ends import SELF, back_end
from refattention.core.refine_by_align.in_context import in_context_maps
from refattention.core.refine_by_align.kernel import group_of_mask
from refattention.core.refine_by_align.match import Box, Finding, find
from refattention.core.refine_by_align.observe import (
    Look,
    attention_maps,
    cell_and_unit,
    layers_of,
    observe,
    parse_look,
)
from refattention.nodes.refine_by_align_stages import RefineRegion
from sampling import distance
from seen_tokens import tokens_of
from torch import Tensor

NODE = "Node"
TRANSFORMERS = ("sd3", "sd35", "flux", "flux2", "chroma", "qwen", "lumina2", "zimage")
PICTURES = [name for name in FAMILIES if name not in (*VIDEO, "sd15", "sd2", "pid")]
MASK = torch.zeros(64, 48)
MASK[16:50, 8:30] = 1


def of_mask(grid: tuple[int, int]) -> Tensor:
    return group_of_mask(MASK, grid)


def odd(name: str) -> tuple[Tensor, Tensor]:
    """A picture and a reference of sizes of their own, both odd where a model takes such."""
    sizes = ((5, 6), (4, 7)) if FAMILIES[name].size[-2:] == (4, 6) else ((9, 12), (7, 10))
    if name == "kandinsky5_image":  # takes whole patches only
        sizes = ((10, 12), (8, 14))
    if name == "hidream_o1":  # whose tokens are of 32 x 32 pixels
        sizes = ((160, 192), (128, 224))
    picture, reference = (tiny_latent(name, seed=seed, size=size) for seed, size in enumerate(sizes))
    return picture, reference


@pytest.mark.parametrize("name", PICTURES)
def test_maps_are_the_attention_of_the_picture_to_the_references_own_tokens(name: str) -> None:
    """Softmax over the reference's picture tokens, text apart."""
    picture, reference = odd(name)
    layers = layers_of(attentions_of(tiny_model(name), NODE))
    with torch.inference_mode():
        options = (tiny_prompt(name, 1), picture, reference, Look(frozenset(layers), (261,), 3), of_mask, NODE)
        got = attention_maps(tiny_model(name), *options)
    assert list(got) == [(261, layer) for layer in layers]
    queries, keys = tokens_of(name, picture, 261, 3), tokens_of(name, reference, 261, 4)
    for layer, (q, _, heads, (_, *grid)), (_, k, _, (_, *of_reference)) in zip(layers, queries, keys, strict=True):
        attention = oracle.scores(q, k, heads).softmax(-1).mean(0)
        want = (of_mask((grid[0], grid[1])).double() @ attention).unflatten(-1, of_reference)
        assert (got[261, layer].double() / len(k) - want).abs().max() < 1e-5 * want.max()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_usual_layers_are_in_the_middle(name: str) -> None:
    chosen = parse_look(tiny_model(name), "261", "", 0, NODE).layers
    assert chosen == set(layers_of(attentions_of(tiny_model(name), NODE)))  # all of a model that has only few


def test_a_model_whose_latents_another_finishes_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match="Node cannot repair a picture with a Stable_Cascade_C model: stage B makes"):
        back_end(tiny_model("cascade"), AnyCodec("cascade").encode, tiny_prompt("cascade", 1), NODE, None, None)


@pytest.mark.parametrize("name", ["wan21", "hunyuan", "ltxv", "svd"])
def test_models_of_videos_are_refused_by_name(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"Node works on pictures, but \w+ makes videos"):
        parse_look(tiny_model(name), "261", "", 0, NODE)


@pytest.mark.parametrize("name", PICTURES)
def test_a_token_lies_where_its_latents_do(name: str) -> None:
    """What differs in one cell changes the query of that cell most, counted row by row on the grid."""
    patcher, latents = tiny_model(name), tiny_latent(name)
    cell, unit = cell_and_unit(patcher)
    look = Look(frozenset(layers_of(attentions_of(patcher, NODE))[:1]), (1,))

    def queries(picture: Tensor) -> Tensor:
        """(rows, columns, C)."""
        seen: list[Tensor] = []

        def see(timestep: int, place: Any, layer: Any) -> None:
            seen.append(layer.q[0].unflatten(0, layer.grid))

        with torch.inference_mode():
            observe(patcher, tiny_prompt(name, 1), picture, latents, look, see, NODE)
        return seen[0]

    side, before = unit // cell, queries(latents)
    for row, column in ((0, 3), (2, 1), (3, 4)):
        other = latents.clone()
        part = other[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
        part += torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
        moved = (queries(other) - before).norm(dim=-1)
        assert moved.argmax() == row * moved.shape[1] + column


# ---- painting ----


class Recording(AnyCodec):
    """Keeps what it encoded."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.latents: list[Tensor] = []

    def encode(self, picture: Tensor) -> Tensor:
        self.latents.append(super().encode(picture))
        return self.latents[-1]


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "cascade"])
def test_painting_is_refdrops_oracle_under_the_mask(name: str) -> None:
    """Two pictures and two references of sizes of their own, all odd; CFG or distilled guidance, as is usual."""
    generator = torch.Generator().manual_seed(1)
    sizes = (2, 67, 101), (1, 75, 60), (1, 33, 90)
    images, *references = (torch.rand(*size, 3, generator=generator) for size in sizes)
    mask = torch.zeros(1, 67, 101)
    mask[:, 20:45, 30:60] = 1
    paint = {"seed": 3, "steps": 1, "cfg": FAMILIES[name].cfg, "denoise": 1.0, "sampler_name": "euler"}
    size = 64 if FAMILIES[name].size[0] == 3 and name != "hidream_o1" else 96  # two pixels for a token take long
    work = {"scheduler": "simple", "context": 4.0, "working_size": size, "feather": 0, "areas": "one by one"}

    def painted(patcher: Any, codec: AnyCodec, strength: float, more: Tensor | None) -> Tensor:
        prompts = tiny_prompt(name, 1), tiny_prompt(name, 2)
        given = {"reference_image": references[0], "more_references": more, "back_end": SELF}
        with torch.inference_mode():
            return RefineRegion.execute(
                patcher, codec, *prompts, images, mask, strength=strength, **given, **paint, **work
            ).args[0]

    codec = Recording(name)
    got = painted(tiny_model(name), codec, 0.6, references[1])
    *outside, picture = codec.latents[:3]  # for the first picture of two
    noise = [
        torch.randn(each.shape, generator=torch.Generator().manual_seed(seed)) for seed, each in enumerate(outside, 4)
    ]
    latent_mask = torch.nn.functional.adaptive_max_pool2d(mask[None], picture.shape[-2:])[0, 0]
    oracle_model = NaiveFamilyRefDrop(name, 0.3, list(zip(outside, noise, strict=True)), mask=latent_mask)
    want, plain = (
        painted(patcher, AnyCodec(name), 0.0, None)
        for patcher in (oracle_model.attach(tiny_model(name)), tiny_model(name))
    )
    assert len(codec.latents) == 6 and distance(want, plain) > 1e-3
    assert distance(got, want) < 1e-4
    assert torch.equal(got[:, mask[0] == 0], images[:, mask[0] == 0])
    assert (got != images).any(-1)[:, mask[0] == 1].float().mean() > 0.9


# ---- the shifted patch ----

# The smallest models have too few numbers that rotary embedding leaves alone to tell patches of a photograph apart.
WIDER = {
    "qwen": {"num_attention_heads": 4},
    "lumina2": {"dim": 128, "n_kv_heads": 4, "axes_dims": [16, 8, 8]},
    "zimage": {"n_heads": 8, "n_kv_heads": 8, "axes_dims": [16, 8, 8]},
    "omnigen2": {"hidden_size": 256, "num_attention_heads": 8, "num_kv_heads": 4, "axes_dim_rope": (16, 8, 8)},
}


@functools.cache
def tied(name: str) -> Any:
    family = FAMILIES[name]
    return content_based(replace(family, config={**family.config, **WIDER.get(name, {})}))


# Those whose attention is content-based after a tie of weights; others keep some place in it, or see few pixels.
TIED = [*TRANSFORMERS, "mage", "hidream", "omnigen2", "kandinsky5_image", "hunyuan_image"]
TIED_EDITING = [name for name in EDITING if name in TIED]


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "self-attention") for name in TIED), *((name, "in-context") for name in TIED_EDITING)]
)
def test_a_patch_of_a_photograph_is_found_where_it_was_shifted_to(name: str, way: str) -> None:
    """Two windows of one photograph that share a patch, 20 times, as on the U-Net in test_repair."""
    found = [_found(name, way, seed) for seed in range(20)]
    assert min(found) >= 0.7, found


def _found(name: str, way: str, seed: int) -> float:
    """Overlap of the box found and the true one; windows are moved by whole tokens."""
    rng, side, patcher = np.random.default_rng(seed), 20, tied(name)
    _, unit = cell_and_unit(patcher)
    with Image.open(ROOT / "workflows" / "pictures" / "refattention_photo.jpg") as file:
        large = file.convert("RGB").resize((48 * unit, 32 * unit), Image.Resampling.LANCZOS)
    photo = torch.from_numpy(np.asarray(large) / np.float32(255)).unsqueeze(0)
    limits = photo.shape[1] // unit, photo.shape[2] // unit
    size = [int(n) for n in rng.integers(9, 13, 2)]
    patch = [int(rng.integers(0, n - k + 1)) for n, k in zip(limits, size, strict=True)]

    def window() -> list[int]:
        spans = zip(patch, size, limits, strict=True)
        return [int(rng.integers(max(0, a + k - side), min(a, n - side) + 1)) for a, k, n in spans]

    def latent_of(window: list[int]) -> Tensor:
        box = Box(window[1] * unit, window[0] * unit, side * unit, side * unit)
        return AnyCodec(name, brightness=0.05, scale=100.0).encode(box.cut(photo))

    def place(window: list[int]) -> Box:
        return Box(*(unit * n for n in (patch[1] - window[1], patch[0] - window[0], size[1], size[0])))

    windows = window(), window()
    mask = torch.zeros(1, unit * side, unit * side)
    place(windows[0]).cut(mask)[:] = 1
    look = Look(frozenset(layers_of(attentions_of(patcher, NODE))[:1]), (1,))
    picture, reference = map(latent_of, windows)

    def groups(grid: tuple[int, int]) -> Tensor:
        return group_of_mask(mask[0], grid)

    with torch.inference_mode():
        if way == "in-context":
            (maps,) = in_context_maps(patcher, prompt(name, 1), picture, [reference], look, groups, NODE)
        else:
            maps = attention_maps(patcher, tiny_prompt(name, 1), picture, reference, look, groups, NODE)
    (seen,) = maps.values()
    finding = Finding(smoothing=1.0, threshold=0.5, margin=0.0)
    return overlap(find(seen[0], (unit * side, unit * side), finding).box, place(windows[1]))
