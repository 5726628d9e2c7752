"""The probe on every family of videos: maps over each frame against attention written out, and frames of the node."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import folder_paths
import oracle
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from families import VIDEO, tiny_latent, tiny_model, tiny_prompt
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.single_evaluation import noise_level, other_seed
from refattention.core.refine_by_align.kernel import groups_of_points
from refattention.core.refine_by_align.observe import Look, layers_of
from refattention.core.refine_by_align.probe import Pictures, probe, token_frames
from refattention.nodes.refine_by_align_probe import AttentionProbe
from seen_tokens import tokens_of
from torch import Tensor
from torch.nn import functional as F

NODE = "Node"
SIZE = 64, 96


@pytest.mark.parametrize("name", VIDEO)
def test_maps_over_the_frames_are_the_attention_of_one_frames_token(name: str) -> None:
    """From the last frame of three to three others, one softmax over all of them."""
    video, other = (tiny_latent(name, 3 if name == "svd" else 1, seed=seed) for seed in (0, 3))
    pictures, point = (3 if name == "svd" else 9), (70, 20)
    latents = iter((video, other))
    layers = layers_of(attentions_of(tiny_model(name), NODE))
    frames = torch.zeros(pictures, *SIZE, 3)
    given = Pictures(frames, frames, [point], None, frame=pictures - 1, reference_frame=1)
    with torch.inference_mode():
        look = Look(frozenset(layers), (261,), 3)
        found = probe(tiny_model(name), tiny_prompt(name, 1), given, lambda _: next(latents), 96, look, NODE)
    seen, keys = (tokens_of(name, each, 261, seed) for each, seed in ((video, 3), (other, other_seed(3))))
    places: list[Tensor] = []
    assert len(found.layers) == len(layers) == len(seen)
    for got, (q, _, heads, (_, h, w)), (_, k, _, _) in zip(found.layers.values(), seen, keys, strict=True):
        attention = oracle.scores(q[-h * w :], k, heads).softmax(-1).mean(0) * len(k)
        want = (groups_of_points([point], SIZE, (h, w)).double() @ attention).view(-1, h, w)
        assert got.shape == want.shape and (got.double() - want).abs().max() < 1e-5 * want.max()
        centre = attention[:1].view(1, -1, h, w)[:, found.shown]  # of the first cell
        places.append(F.interpolate(centre[None], found.places.shape[1:], mode="bilinear", antialias=True)[0, 0])
    assert found.shown == (0 if name == "cogvideo15" else 1)
    assert (found.places[0].double() - torch.stack(places).mean(0)).abs().max() < 1e-4


def test_context_windows_take_no_part() -> None:
    """They cut a video into pieces for the sampler; what is observed is the whole."""
    layers = layers_of(attentions_of(tiny_model("wan21"), NODE))
    frames = torch.zeros(9, *SIZE, 3)
    given = Pictures(frames, frames, [(70, 20)], None)
    windows = ContextWindowsManualNode.execute(
        tiny_model("wan21"), 2, 1, "standard_static", 1, False, "flat", 2, False, "", False, "", True
    )[0]
    found = []
    for patcher in (tiny_model("wan21"), windows):
        latents = iter((tiny_latent("wan21"), tiny_latent("wan21", seed=3)))
        with torch.inference_mode():
            look = Look(frozenset(layers), (261,), 3)
            encode = lambda _, latents=latents: next(latents)  # noqa: E731
            found.append(probe(patcher, tiny_prompt("wan21", 1), given, encode, 96, look, NODE))
    assert torch.equal(found[0].places, found[1].places)


@pytest.mark.parametrize(
    ("pictures", "latents", "want"),
    [
        (9, 3, [0, 1, 1, 1, 1, 2, 2, 2, 2]),  # a latent for the first picture, then one for four
        (11, 3, [0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]),  # two more than make a whole latent: at most one latent off
        (3, 3, [0, 1, 2]),
        (1, 1, [0]),
    ],
)
def test_which_latent_a_picture_is_in(pictures: int, latents: int, want: list[int]) -> None:
    attentions = attentions_of(tiny_model("wan21"), NODE)
    assert token_frames(attentions, torch.zeros(1, 16, latents, 4, 4), pictures) == want
    assert token_frames(attentions_of(tiny_model("svd"), NODE), torch.zeros(5, 4, 4, 4), 5) == [0, 1, 2, 3, 4]


def test_noise_levels_of_schedules_without_timesteps() -> None:
    """Of Cosmos Predict2 the share of noise, s / (1 + s); of SVD a place on the logarithmic schedule."""
    flow, svd = (tiny_model(name).get_model_object("model_sampling") for name in ("predict2", "svd"))
    level = noise_level(flow, 261)
    assert level.shape == (1,) and level.item() / (1 + level.item()) == pytest.approx(0.261, abs=1e-5)
    low, high = math.log(svd.sigma_min), math.log(svd.sigma_max)
    assert noise_level(svd, 261).log().item() == pytest.approx(low + (high - low) * 261 / 999, abs=1e-4)


class VideoCodec:
    """A latent for the first picture, then one for four; colours are means of 8 x 8 pixels."""

    def encode(self, picture: Tensor) -> Tensor:
        frames = F.avg_pool2d(picture.movedim(-1, 1), 8)[::4]
        return frames.repeat(1, 6, 1, 1)[:, :16].movedim(1, 0).unsqueeze(0) * 4 - 2


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **inputs: Any) -> Any:
    monkeypatch.setattr(folder_paths, "temp_directory", str(folder))
    generator = torch.Generator().manual_seed(0)
    widgets = {"positive_coords": "[]", "timesteps": "261", "layers": "", "working_size": 64, "seed": 0}
    given = {
        "image": torch.rand(9, *SIZE, 3, generator=generator),
        "reference_image": torch.rand(5, 48, 64, 3, generator=generator),
        **widgets,
        **inputs,
    }
    with torch.inference_mode():
        return AttentionProbe.execute(tiny_model("wan21"), VideoCodec(), tiny_prompt("wan21", 1), **given)


def test_the_node_gives_a_map_for_each_picture_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path, monkeypatch, frame=6, reference_frame=2)
    heat_map, heat, sheet = result.args
    assert heat_map.shape == (5, 48, 64, 3) and heat.shape == (5, 48, 64) and len(sheet) == 1
    assert torch.equal(heat[1], heat[4]) and not torch.equal(heat[0], heat[1])  # one latent for four pictures
    assert math.isclose(heat.max(), 1, abs_tol=0.1) and heat.amax((1, 2)).min() < heat.max()  # stretched together
    (message,) = result.ui["refattention_probe"]
    assert message["size"] == {"width": 96, "height": 64} and message["reference_size"]["width"] == 64
    other_frame = run(tmp_path, monkeypatch, frame=1).args[1]
    assert not torch.equal(other_frame, heat)
    shown = run(tmp_path, monkeypatch, frame=6, reference_frame=0).args
    assert torch.equal(shown[1], heat) and not torch.equal(shown[2], sheet)


def test_a_frame_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"frame is 9, but image has 9 pictures, counted from 0\. Set a lower one"):
        run(tmp_path, monkeypatch, frame=9)
    with pytest.raises(ValueError, match="reference_frame is 5, but reference_image has 5 pictures"):
        run(tmp_path, monkeypatch, reference_frame=5)
