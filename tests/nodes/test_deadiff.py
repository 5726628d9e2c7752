"""DEADiff's nodes: what the widgets become, and what wrong input is told."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import pytest
import torch
from deadiff_support import WIDGETS
from families import tiny_model
from PIL import Image
from refattention.core.deadiff.loaded import load
from refattention.core.deadiff.preprocess import encoder_input
from refattention.core.deadiff.words import numbers_of
from refattention.nodes import deadiff_files
from refattention.nodes.deadiff import DEADiffStyle
from refattention.nodes.deadiff_files import DEADiffExtract, DEADiffLoader
from refattention.nodes.deadiff_sampler import DEADiffEulerSampler, DEADiffSampler
from refattention_demo.deadiff_layout import DEMO_SIZE, random_weights
from safetensors.torch import save_file
from sampling import distance, latent, model, prompt, sample

PICTURE = torch.rand(1, 24, 40, 3, generator=torch.Generator().manual_seed(0))
OTHER = torch.rand(1, 30, 20, 3, generator=torch.Generator().manual_seed(1))
NOISE, PROMPTS = latent(2, 4, 16, 12), (prompt("sd15", 1), prompt("sd15", 2))


@pytest.fixture(scope="module")
def deadiff() -> Any:
    return load(random_weights(DEMO_SIZE))


def apply(deadiff: Any, patcher: Any = None, **inputs: Any) -> Any:
    settings = {"reference_image": PICTURE, **WIDGETS, **inputs}
    return DEADiffStyle.execute(patcher or model("sd15"), deadiff, **settings)[0]


def picture(deadiff: Any, **inputs: Any) -> torch.Tensor:
    return sample(apply(deadiff, **inputs), NOISE, *PROMPTS)


def test_each_widget_has_its_effect(deadiff: Any) -> None:
    """Every setting changes the picture, and each in its own way."""
    pair = torch.cat([PICTURE, PICTURE.flip(1, 2) ** 3])
    variants: list[dict[str, Any]] = [
        {},
        {"strength": 0.5},
        {"strength": 0.0},
        {"mode": "content"},
        {"mode": "style & content"},
        {"mode": "style & content", "content_image": OTHER},
        {"fit": "pad"},
        {"fit": "crop"},
        {"reference_image": pair},
        {"reference_image": pair, "combine": "concatenate"},
        {"strict": False},
        {"start_percent": 0.6},
        {"end_percent": 0.4},
        {"mask": torch.eye(16)},
    ]
    pictures = [picture(deadiff, **variant) for variant in variants]
    pictures.append(sample(model("sd15"), NOISE, *PROMPTS))
    for i, one in enumerate(pictures):
        for j, other in enumerate(pictures[i + 1 :], i + 1):
            assert (one - other).abs().max() > 1e-4, (i, j)


def test_strength_0_is_off_only_without_strict(deadiff: Any) -> None:
    plain = sample(model("sd15"), NOISE, *PROMPTS)
    off = apply(deadiff, strength=0.0, strict=False)
    assert not off.wrappers and off.model_options == model("sd15").model_options
    assert torch.equal(sample(off, NOISE, *PROMPTS), plain)
    styled = apply(deadiff)  # without a mask, so that no further style could be added
    again = apply(deadiff, patcher=styled, strength=0.0, strict=False)
    assert torch.equal(sample(again, NOISE, *PROMPTS), sample(styled, NOISE, *PROMPTS))
    with pytest.raises(ValueError, match=r"^mask is all black"):
        apply(deadiff, mask=torch.zeros(1, 64, 64))
    assert distance(picture(deadiff, strength=0.0), plain) > 1e-3


def test_what_reaches_which_layer(deadiff: Any) -> None:
    """Style to the fine layers, content to the coarse ones, zeros or nothing to the rest."""
    style, content = (deadiff.tokens(branch, PICTURE, "squash", "average") for branch in ("style", "content"))
    layers = [("input", 1), ("input", 2), ("input", 4), ("input", 5), ("input", 7), ("input", 8), ("middle", 0)]
    layers += [("output", n) for n in range(3, 12)]
    assert [block for block, _ in deadiff.projections.layers] == layers
    both = deadiff.projections.project({"style": style, "content": content}, range(4, 9), True)
    only = deadiff.projections.project({"style": style}, range(4, 9), True)
    loose = deadiff.projections.project({"style": style}, range(4, 9), False)
    for number, (layer, attention) in enumerate(
        zip(deadiff.projections.layers, deadiff.projections.patcher.model.attention, strict=True)
    ):
        own = content if 4 <= number <= 8 else style
        assert torch.equal(both[layer][0], attention.i_to_k(own)) and torch.equal(both[layer][1], attention.i_to_v(own))
        assert bool(only[layer][0].any()) == (own is style) == (layer in loose)


def test_several_pictures(deadiff: Any) -> None:
    pair = torch.cat([PICTURE, PICTURE**3])
    one, two = (deadiff.tokens("style", image, "squash", "average") for image in pair.split(1))
    assert torch.allclose(deadiff.tokens("style", pair, "squash", "average"), (one + two) / 2, atol=1e-6)
    assert torch.allclose(deadiff.tokens("style", pair, "squash", "concatenate"), torch.cat([one, two], 1), atol=1e-6)
    same = picture(deadiff, reference_image=PICTURE.repeat(3, 1, 1, 1))
    assert distance(same, picture(deadiff)) < 1e-5


def test_fit() -> None:
    wide = torch.zeros(1, 100, 300, 3)
    wide[:, :, 100:200, 0] = 1.0
    mean, deviation = 0.48145466, 0.26862954
    red = {fit: encoder_input(wide, 90, fit)[0, 0] * deviation + mean for fit in ("squash", "pad", "crop")}
    assert red["squash"][45, 45] == pytest.approx(1, abs=1e-3) and red["squash"][45, 10] == pytest.approx(0, abs=1e-3)
    assert red["crop"].min() == pytest.approx(1, abs=1e-3)
    assert red["pad"][5, 5] == pytest.approx(1 / 3, abs=0.01) and red["pad"][45, 45] == pytest.approx(1, abs=1e-3)
    with_alpha = torch.cat([wide, torch.rand(1, 100, 300, 1)], dim=-1)
    assert torch.equal(encoder_input(with_alpha, 90, "squash"), encoder_input(wide, 90, "squash"))


def test_preprocessing_is_pils(tmp_path: Path) -> None:
    array = (PICTURE[0] * 255).round().to(torch.uint8).numpy()
    want = torch.tensor(list(Image.fromarray(array).resize((56, 56), Image.Resampling.BICUBIC).tobytes()))
    got = encoder_input(torch.from_numpy(array)[None] / 255, 56, "squash")[0].movedim(0, -1)
    back = got * torch.tensor([0.26862954, 0.26130258, 0.27577711]) + torch.tensor([0.48145466, 0.4578275, 0.40821073])
    assert torch.allclose(back.flatten() * 255, want.float(), atol=1e-3)


def test_a_content_image_needs_its_mode(deadiff: Any) -> None:
    with pytest.raises(ValueError, match="content_image is connected, but mode is 'style'"):
        apply(deadiff, content_image=OTHER)


@pytest.mark.parametrize(("make", "family"), [(model, "sdxl"), (tiny_model, "flux")])
def test_another_family_is_named(make: Any, family: str) -> None:
    class Unread:
        """Stands for the weights, which must not be looked at before the model is."""

    with pytest.raises(RuntimeError, match=rf"DEADiff Style needs an SD1.5 model, .* but got (?i:\w*{family})\."):
        apply(Unread(), make(family))


@pytest.mark.parametrize(("steps", "run"), [(4, 4), (50, 50), (30, 31), (48, 50)])
def test_the_official_schedule(steps: int, run: int) -> None:
    sampler, sigmas = DEADiffSampler.execute(model("sd15"), steps)
    levels = model("sd15").get_model_object("model_sampling").sigmas
    timesteps = [int((levels - sigma).abs().argmin()) for sigma in sigmas]
    assert timesteps[:-1] == list(range(1, 1000, 1000 // steps))[::-1] and len(timesteps) == run + 1
    assert timesteps[-1] == 0 and sigmas[-1] > 0.02
    assert sampler.max_denoise(None, sigmas)


def test_euler_a_tells_the_unet_fractional_timesteps() -> None:
    """And starts from noise of the first level: the official application's loop, step by step."""
    patched, sampler, sigmas = DEADiffEulerSampler.execute(model("sd15"), 50)
    told: list[float] = []

    def watch(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        told.extend(patched.get_model_object("model_sampling").timestep(args["timestep"][:1]).tolist())
        first.append(args["input"][:1])
        return apply_model(args["input"], args["timestep"], **args["c"])

    first: list[torch.Tensor] = []
    patched.set_model_unet_function_wrapper(watch)
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(*PROMPTS)
    guider.set_cfg(1.0)
    guider.sample(NOISE, torch.zeros_like(NOISE), sampler, sigmas[:4], disable_pbar=True, seed=3)
    assert told == pytest.approx([999, 978.61, 958.22], abs=0.01)
    assert torch.allclose(first[0], NOISE[:1] * sigmas[0], rtol=1e-5)
    rounded = model("sd15").get_model_object("model_sampling").timestep(sigmas[1:3])
    assert rounded.tolist() == [979, 958]  # the model itself is as before


def test_fractional_timesteps_are_between_the_levels() -> None:
    patched, _, sigmas = DEADiffEulerSampler.execute(model("sd15"), 20)
    fractional, stock = (each.get_model_object("model_sampling") for each in (patched, model("sd15")))
    levels = stock.sigmas
    assert torch.allclose(fractional.timestep(levels), torch.arange(1000.0), atol=0.02)
    between = (levels[100] * levels[101]).sqrt().reshape(1)
    assert fractional.timestep(between).item() == pytest.approx(100.5, abs=0.01)
    assert torch.equal(sigmas, comfy.samplers.calculate_sigmas(stock, "normal", 20))
    # To k-diffusion's own interpolation
    assert torch.allclose(fractional.sigma(fractional.timestep(sigmas[:-1])), sigmas[:-1], rtol=1e-4)


def test_ratios_mix_several_pictures(deadiff: Any) -> None:
    pair = torch.cat([PICTURE, PICTURE.flip(1)])
    one, other = (deadiff.tokens("style", each[None], "squash", "average") for each in pair)
    mixed = deadiff.tokens("style", pair, "squash", "average", [7, 3])
    assert torch.allclose(mixed, 0.7 * one + 0.3 * other, atol=1e-5)
    assert torch.equal(picture(deadiff, reference_image=pair, ratios=""), picture(deadiff, reference_image=pair))
    alone = picture(deadiff, reference_image=pair[:1])
    assert distance(picture(deadiff, reference_image=pair, ratios="1, 0"), alone) < 1e-4
    assert distance(picture(deadiff, reference_image=pair, ratios="0.5; 0.5"), alone) > 1e-4


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ratios": "half"}, "ratios must be numbers"),
        ({"ratios": "1, 2"}, "one number of at least 0 for each of the 1 pictures"),
        ({"ratios": "0"}, "not zeros alone"),
        ({"ratios": "nan"}, "at least 0"),
        ({"ratios": "1", "combine": "concatenate"}, "ratios mix an average"),
    ],
)
def test_wrong_ratios_are_told(deadiff: Any, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(deadiff, **inputs)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("model_patches", "checkpoints")}
    for name, folder in found.items():
        folder.mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(folder)], {".ckpt", ".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return found


def test_extract_and_load(folders: dict[str, Path]) -> None:
    weights = random_weights(DEMO_SIZE)
    torch.save({"state_dict": weights}, folders["checkpoints"] / "whatever.ckpt")
    (options,) = (item.options for item in DEADiffLoader.define_schema().inputs if item.id == "deadiff_name")
    assert options == ["whatever.ckpt"]
    assert DEADiffExtract.execute("whatever.ckpt", "slim.safetensors", True, False)[0] == "slim.safetensors"
    assert (folders["model_patches"] / "slim.safetensors").stat().st_size < 0.5 * sum(
        t.nbytes for t in weights.values()
    )
    slim, full = (DEADiffLoader.execute(name)[0] for name in ("slim.safetensors", "whatever.ckpt"))
    assert torch.equal(picture(slim), picture(full))
    with pytest.raises(ValueError, match=r"already has a file 'slim.safetensors'"):
        DEADiffExtract.execute("whatever.ckpt", "slim.safetensors", True, False)
    for name in ("../out.safetensors", "out.ckpt", "/tmp/out.safetensors"):
        with pytest.raises(ValueError, match=r"filename must be a plain name that ends in .safetensors"):
            DEADiffExtract.execute("whatever.ckpt", name, True, False)


def test_extract_overwrites_nothing_that_appears_meanwhile(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": random_weights(DEMO_SIZE)}, folders["checkpoints"] / "whatever.ckpt")
    target, real = folders["model_patches"] / "slim.safetensors", deadiff_files.extract

    def extract(*arguments: Any) -> Any:
        target.write_text("mine")
        return real(*arguments)

    monkeypatch.setattr(deadiff_files, "extract", extract)
    with pytest.raises(ValueError, match=r"already has a file 'slim.safetensors'"):
        DEADiffExtract.execute("whatever.ckpt", "slim.safetensors", True, False)
    assert target.read_text() == "mine" and list(target.parent.iterdir()) == [target]
    target.unlink()
    target.symlink_to(target.parent / "nowhere")
    with pytest.raises(ValueError, match=r"already has a file 'slim.safetensors'"):
        DEADiffExtract.execute("whatever.ckpt", "slim.safetensors", True, False)


def test_files_that_are_not_there_or_of_another_kind(folders: dict[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'gone.ckpt' in models/model_patches or models/checkpoints"):
        DEADiffLoader.execute("gone.ckpt")
    save_file({"ip_adapter.1.to_k_ip.weight": torch.ones(2)}, folders["model_patches"] / "ip.safetensors")
    with pytest.raises(ValueError, match="it looks like an IP-Adapter"):
        DEADiffLoader.execute("ip.safetensors")


@pytest.fixture
def vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the numbers of BERT's vocabulary at the places that matter here, where the node looks for it."""
    words = [f"[unused{number}]" for number in range(4200)]
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 2806: "style", 4180: "content"}
    for number, word in {**places, 3899: "dog", 2015: "##s", 2317: "white", 110: "d"}.items():
        words[number] = word
    path = tmp_path / "text_encoders" / "bert-base-uncased" / "vocab.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(words), encoding="utf-8")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "text_encoders", ([str(path.parents[1])], {".pt"}))
    return path


def test_the_content_branch_takes_other_words(deadiff: Any, vocabulary: Path) -> None:
    assert numbers_of("White DOGS", vocabulary) == [101, 2317, 3899, 2015, 102]
    content = deadiff.tokens("content", PICTURE, "squash", "average")
    own = deadiff.words.instruction(numbers_of("content", vocabulary))
    assert torch.equal(deadiff.tokens("content", PICTURE, "squash", "average", None, own), content)
    pictures = [
        picture(deadiff, mode="content", subject=subject) for subject in ("", "content", "dog", "dogs", "white dog")
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(pictures[1:], 2))
    both = picture(deadiff, mode="style & content", subject="dog")
    assert not torch.equal(both, picture(deadiff, mode="style & content"))


def test_an_instruction_is_read_word_by_word(deadiff: Any) -> None:
    """The Q-Former with it is one whose own word it is."""
    words = deadiff.words.instruction([101, 7, 9, 11, 102])
    reader = copy.deepcopy(deadiff.readers.model.content)
    features = torch.randn(2, 5, reader.vision_norm.weight.shape[0], generator=torch.Generator().manual_seed(0))
    got = reader(features, words)
    reader.instruction = torch.nn.Parameter(words, requires_grad=False)
    assert torch.equal(reader(features), got)
    embeddings, positions = deadiff.words.embeddings.double(), deadiff.words.positions.double()
    want = torch.stack([embeddings[number] + positions[place] for place, number in enumerate([101, 7, 9, 11, 102])])
    assert (words - want).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"mode": "style"}, "subject names a content, but mode is 'style'"),
        ({"subject": "dog \N{DOG FACE}"}, "subject is .* something that BERT's vocabulary does not have"),
        ({"subject": "dog " * 600}, r"subject has 600 parts of words, but this DEADiff file .* Use fewer words"),
    ],
)
def test_a_subject_that_cannot_be_read(deadiff: Any, vocabulary: Path, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(deadiff, **{"mode": "content", "subject": "dog", **inputs})


def test_a_vocabulary_is_needed_and_checked(deadiff: Any, vocabulary: Path) -> None:
    words = vocabulary.read_text(encoding="utf-8").split("\n")
    for damaged in ("\n".join(["[CLS]", "[SEP]", "[UNK]", "dog"]), "\n".join(["one more", *words])):
        vocabulary.write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match=r"vocab\.txt (is another vocabulary|cannot be read)"):
            apply(deadiff, mode="content", subject="dog")
    vocabulary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"vocab\.txt (is another vocabulary|cannot be read)"):
        apply(deadiff, mode="content", subject="dog")
    vocabulary.unlink()
    with pytest.raises(FileNotFoundError, match=r"no vocab\.txt in models/text_encoders"):
        apply(deadiff, mode="content", subject="dog")


def test_words_in_an_extracted_file(folders: dict[str, Path], vocabulary: Path) -> None:
    torch.save({"state_dict": random_weights(DEMO_SIZE)}, folders["checkpoints"] / "whole.ckpt")
    DEADiffExtract.execute("whole.ckpt", "few.safetensors", True, False)
    DEADiffExtract.execute("whole.ckpt", "all.safetensors", True, False, True)
    full, few, every = (DEADiffLoader.execute(name)[0] for name in ("whole.ckpt", "few.safetensors", "all.safetensors"))
    with pytest.raises(ValueError, match="subject needs the embeddings of all words"):
        apply(few, mode="content", subject="dog")
    for subject in ("", "dog"):
        assert torch.equal(
            picture(every, mode="content", subject=subject), picture(full, mode="content", subject=subject)
        )
