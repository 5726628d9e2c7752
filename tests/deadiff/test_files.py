"""DEADiff's files: what is read, what is refused and how, what extraction keeps."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.clip_vision
import pytest
import torch
from bootstrap import ROOT
from messages import logged
from refattention.core.deadiff.checkpoint import require_deadiff
from refattention.core.deadiff.extract import extract, write_file
from refattention.core.deadiff.loaded import load
from refattention.core.models import checkpoint
from refattention_demo.deadiff_layout import DEMO_SIZE, FULL_SIZE, random_weights, shapes
from safetensors.torch import save_file
from torch import Tensor

SIZE = replace(DEMO_SIZE, layers=2, vision_layers=2)
PICTURES = torch.rand(2, 20, 30, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(SIZE)


def results(weights: dict[str, Tensor], **inputs: Any) -> list[Tensor]:
    """Tokens of both branches, and keys and values of all layers."""
    deadiff = load(weights, **inputs)
    tokens = {branch: deadiff.tokens(branch, PICTURES, "squash", "average") for branch in ("style", "content")}
    projected = deadiff.projections.project(tokens, {4, 5, 6, 7, 8}, True)
    return [*tokens.values(), *(tensor for pair in projected.values() for tensor in pair)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_lightning_checkpoint_and_safetensors_give_the_same(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"epoch": 3, "global_step": 7, "state_dict": weights}, tmp_path / "some name.ckpt")
    save_file({key: tensor.clone() for key, tensor in weights.items()}, tmp_path / "converted.safetensors")
    want = results(weights)
    assert same(results(checkpoint.load(str(tmp_path / "some name.ckpt"))), want)
    assert same(results(checkpoint.load(str(tmp_path / "converted.safetensors"))), want)


@pytest.mark.parametrize("half", [False, True])
def test_an_extracted_file_gives_the_same(weights: dict[str, Tensor], tmp_path: Path, half: bool) -> None:
    unused = {"model.diffusion_model.time_embed.0.weight": torch.ones(3), "style_blip.temp": torch.ones(())}
    slim = extract({**weights, **unused}, visual_encoder=True, half=half)
    write_file(slim, str(tmp_path / "slim.safetensors"))
    assert list(tmp_path.iterdir()) == [tmp_path / "slim.safetensors"]
    assert not unused.keys() & slim.keys()
    assert not any("word_embeddings" in key or key.startswith("content_blip.visual_encoder") for key in slim)
    got, want = results(checkpoint.load(str(tmp_path / "slim.safetensors"))), results(weights)
    if half:
        assert all((a - b).abs().max() < 0.05 * b.abs().max().clamp(min=1) for a, b in zip(got, want, strict=True))
    else:
        assert same(got, want)


def test_the_word_that_instructs_matters(weights: dict[str, Tensor]) -> None:
    changed = {key: tensor.clone() for key, tensor in weights.items()}
    changed["style_blip.Qformer.bert.embeddings.word_embeddings.weight"][2806] += 1
    changed["content_blip.Qformer.bert.embeddings.word_embeddings.weight"][2806] += 1
    got, want = results(changed), results(weights)
    assert not torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_types_of_the_file_are_kept(weights: dict[str, Tensor]) -> None:
    mixed = {key: t.half() if "visual_encoder" in key and t.ndim > 1 else t for key, t in weights.items()}
    deadiff = load(mixed)
    kinds = {tensor.dtype for tensor in deadiff.towers["style"].weights().values()}
    assert kinds == {torch.float16, torch.float32}
    assert deadiff.tokens("style", PICTURES, "squash", "average").dtype == torch.float32


def test_two_visual_encoders_that_differ_are_both_used(
    weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    towers = load(weights).towers
    assert towers["style"] is towers["content"] and not logged(caplog)
    other = {key: t + 0.1 if key.startswith("content_blip.visual_encoder") else t for key, t in weights.items()}
    with caplog.at_level(logging.WARNING):
        got = results(other)
    assert "two visual encoders of the file differ" in caplog.text
    assert torch.equal(got[0], results(weights)[0]) and not torch.equal(got[1], results(weights)[1])
    assert "content_blip.visual_encoder.conv1.weight" in extract(other, visual_encoder=True, half=False)


def clip_vision(weights: dict[str, Tensor], width: int = 64) -> comfy.clip_vision.ClipVisionModel:
    """A stock CLIP_VISION; with the DEADiff file's encoder as its first blocks where the width is the same."""
    config = {"num_hidden_layers": 24, "hidden_size": width, "num_attention_heads": 1, "intermediate_size": 4 * width}
    config |= {"hidden_act": "quick_gelu", "num_channels": 3, "patch_size": 14, "image_size": 224, "projection_dim": 8}
    clip = comfy.clip_vision.ClipVisionModel({**config, "model_type": "clip_vision_model"})
    clip.model.float()
    for parameter in clip.model.parameters():
        parameter.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    prefix = "style_blip.visual_encoder."
    own = {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}
    if width == own["conv1.weight"].shape[0]:
        clip.load_sd(comfy.clip_vision.convert_to_transformers(own, ""))
    return clip


def test_a_stock_visual_encoder(caplog: pytest.LogCaptureFixture) -> None:
    weights = random_weights(replace(SIZE, vision_layers=23))
    without = {key: tensor for key, tensor in weights.items() if ".visual_encoder." not in key}
    stock = clip_vision(weights)
    with caplog.at_level(logging.WARNING):
        want = results(weights)
        assert same(results(without, clip_vision=stock), want)
        assert same(results(weights, clip_vision=stock), want)
    assert not logged(caplog)
    other = {key: t + 0.1 if ".visual_encoder." in key else t for key, t in weights.items()}
    with caplog.at_level(logging.WARNING):
        assert same(results(other, clip_vision=stock), want)
    assert "has other weights than the visual encoder in the DEADiff file" in caplog.text


def test_encoders_that_do_not_fit(weights: dict[str, Tensor]) -> None:
    without = {key: tensor for key, tensor in weights.items() if ".visual_encoder." not in key}
    with pytest.raises(ValueError, match=r"no visual encoder. Connect OpenAI"):
        load(without)
    with pytest.raises(ValueError, match="gives tokens of width 96, but DEADiff's style branch needs 64"):
        load(without, clip_vision=clip_vision(weights, 96))


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, as_zip: bool) -> None:
    victim, file = tmp_path / "victim", tmp_path / "deadiff_v1.ckpt"
    data = {"state_dict": {"a": torch.ones(2)}, "callbacks": Bomb(victim)}
    if as_zip:
        torch.save(data, file)
    else:
        file.write_bytes(pickle.dumps(data, protocol=2))
    with pytest.raises(RuntimeError, match=r"^deadiff_v1\.ckpt holds Python objects that could run code"):
        checkpoint.load(str(file))
    assert not victim.exists()


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_a_truncated_file(weights: dict[str, Tensor], tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"deadiff.{ending}"
    whole = {key: tensor.clone() for key, tensor in weights.items()}
    torch.save({"state_dict": whole}, file) if ending == "ckpt" else save_file(whole, file)
    data = file.read_bytes()
    for length in (0, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(RuntimeError, match=rf"^deadiff\.{ending} cannot be read as a checkpoint; it is damaged"):
            checkpoint.load(str(file))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("image_proj.latents", "an IP-Adapter"),
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("control_model.input_hint_block.0.weight", "a ControlNet"),
        ("conditioner.embedders.1.model.ln_final.weight", "an SDXL checkpoint"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint without DEADiff's layers"),
        ("vision_model.embeddings.class_embedding", "a CLIP vision model"),
        ("double_blocks.0.img_attn.qkv.weight", "a Flux diffusion model"),
        ("something.weight", "something else .its first tensor is 'something.weight'"),
    ],
)
def test_another_kind_of_file_is_named(key: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"not a DEADiff checkpoint: it looks like {kind}"):
        require_deadiff({key: torch.ones(1)})


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("style_blip.Qformer.bert.encoder.layer.1.output_query.dense.bias", "lacks 1 tensors .style_blip.Qformer"),
        ("content_proj_layer.", "lacks 6 tensors .content_proj_layer.* and others"),
        ("style_blip.query_tokens", "lacks 'style_blip.query_tokens'"),
        (".attn2.i_to_k.", r"lacks the projections attn2.i_to_k"),
        ("middle_block.1.transformer_blocks.0.attn2.i_to_v", "lacks 1 tensors .model.diffusion_model.middle_block"),
        ("style_blip.visual_encoder.ln_pre.bias", "its visual encoder lacks"),
        ("content_blip.Qformer.bert.embeddings.word", "its embeddings of the word 'content' lacks"),
    ],
)
def test_missing_tensors_are_named(weights: dict[str, Tensor], lost: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load({key: tensor for key, tensor in weights.items() if lost not in key})


def test_a_tensor_of_the_wrong_shape_is_named(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"dense2.weight has the shape \(2, 2\), but .* need \(64, 256\)"):
        load({**weights, "style_proj_layer.dense2.weight": torch.ones(2, 2)})


def test_the_full_size_has_the_released_checkpoints_names_and_shapes() -> None:
    with gzip.open(ROOT / "tests" / "golden" / "deadiff_checkpoint_keys.json.gz", "rt", encoding="utf-8") as file:
        groups = json.load(file)["groups"]
    released = {key: tuple(shape) for group in groups.values() for key, shape in group.items()}
    assert len(released) == 2562
    assert shapes(FULL_SIZE).items() <= released.items()
