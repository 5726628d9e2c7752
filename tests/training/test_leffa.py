"""Leffa's training: its objective against the nodes and written-out losses, its file, the data sets' layouts."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.samplers
import numpy
import pytest
import torch
from bootstrap import ROOT
from comfy.diffusers_convert import convert_vae_state_dict
from comfy.ldm.models.autoencoder import AutoencoderKL
from people import SIZE, leffa_config
from refattention.core.kernels.attention import AttentionLayer
from refattention.core.leffa import layout
from refattention.core.leffa.body_map import PARULA
from refattention.core.leffa.kernel import flow_errors, joined_in_space, leffa_loss
from refattention.core.leffa.layout import GENERATIVE, REFERENCE
from refattention.core.leffa.loader import load
from refattention.core.leffa.training import (
    Batch,
    Settings,
    TryOn,
    official_names,
    vae_to_diffusers,
)
from refattention.core.leffa.wrappers import attach_reference_unet
from refattention.core.models import checkpoint
from refattention.core.patches.unet import self_attention_layers
from refattention.nodes.leffa import EVERY_STEP, LeffaTryOn
from refattention_demo import leffa as demo
from refattention_demo.layout import unet_shapes
from safetensors.torch import load_file
from training.config import build, read
from training.pictures import mask, picture
from training_support import losses, save_picture, train_here

pytestmark = pytest.mark.usefixtures("outside_of_inference_mode")
KEYS = ROOT / "tests" / "golden" / "leffa_checkpoint_keys.json.gz"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run through both phases."""
    folder = tmp_path_factory.mktemp("leffa")
    config = leffa_config(folder, phase=[{"steps": 2}, {"steps": 1, "leffa": True}], validate={"every": 2, "steps": 2})
    assert train_here("leffa", config, "--dry-run") == 0
    assert train_here("leffa", config) == 0
    return folder


@pytest.fixture(scope="module")
def task(trained: Path) -> Any:
    """The trained weights as the trainer reads them."""
    from training.tasks import leffa

    config = trained / "config.toml"
    table = read(config, ["models.start=run/leffa.safetensors", "output=again"])
    return leffa.Task(build(table, trained, leffa.Data, leffa.Options, leffa.DEFAULTS))


def test_the_file_to_start_from_is_read_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.tasks import leffa

    read_files = []
    original = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path: read_files.append(path) or original(path))
    table = read(trained / "config.toml", ["models.start=run/leffa.safetensors", "output=once"])
    task = leffa.Task(build(table, trained, leffa.Data, leffa.Options, leffa.DEFAULTS))
    assert len(read_files) == 1
    task.save(trained / "copy.safetensors", torch.float32)
    before, after = (load_file(trained / name) for name in ("run/leffa.safetensors", "copy.safetensors"))
    assert before.keys() == after.keys() and all(torch.equal(after[name], each) for name, each in before.items())
    assert checkpoint.load_metadata(trained / "copy.safetensors")["body_map"] == PARULA


def batch(task: Any, count: int = 3) -> Batch:
    return task.batch([task.sample((number, 40 + number, 0)) for number in range(count)])


def test_both_phases_and_what_they_leave(trained: Path) -> None:
    run = trained / "run"
    assert len(losses(run)) == 3 and all(losses(run))
    last = json.loads((run / "losses.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(last["denoising"] + last["leffa"], rel=1e-6) and last["leffa"] >= 0
    assert {"dry_run.png", "validation-000002.png", "validation-000003.png"} <= {path.name for path in run.iterdir()}
    about = json.loads((run / "run.json").read_text())
    assert not any(".attn2." in name or ".label_emb." in name for name in about["trained"])


def test_the_objective_predicts_what_the_nodes_do(trained: Path, task: Any) -> None:
    """One person through the trained file's loader, LeffaTryOn and the host's sampling, and as it is learnt."""
    one = batch(task, 1)
    parts = load(trained / "run" / "leffa.safetensors")
    person, garment, body = (
        picture(trained / "data" / f"{name}0.png", SIZE)[None] for name in ("person", "garment", "body")
    )
    hole = mask(trained / "data" / "mask.png", SIZE)[None]
    model = attach_reference_unet(parts.generative, parts.reference, 0)
    outputs = LeffaTryOn.execute(model, parts.vae, person, garment, body, hole, EVERY_STEP, 5, False)
    sigma, x = 0.7, one.target + 0.7 * one.noise
    found = []

    def once(guided: Any, noise: Any, sigmas: Any, extra_args: Any, **_: Any) -> torch.Tensor:
        found.append(guided(x, torch.full((1,), sigma), **extra_args))
        return noise

    guider = comfy.samplers.CFGGuider(outputs[0])
    guider.set_conds(outputs[1], outputs[2])
    guider.set_cfg(1.0)
    with torch.inference_mode():
        schedule = torch.tensor([sigma, 0.0])
        guider.sample(
            one.noise, torch.zeros_like(x), comfy.samplers.KSAMPLER(once), schedule, disable_pbar=True, seed=0
        )
    with torch.no_grad():
        ours = task.objective.denoised(one, x, torch.full((1,), sigma))
    assert (ours - found[0]).abs().max() < 1e-4 * ours.abs().max()


def test_the_losses_are_those_of_the_paper(task: Any) -> None:
    three = replace(batch(task), timesteps=torch.tensor([80, 420, 700]), is_shown=torch.tensor([True, True, True]))
    seen: dict[Any, torch.Tensor] = {}

    def see(at: Any) -> Any:
        def hook(_module: Any, _inputs: Any, out: torch.Tensor) -> None:
            seen.setdefault(at, out)

        return hook

    hooks = [
        getattr(layer.attn1, f"to_{kind}").register_forward_hook(see((kind, place)))
        for place, layer in self_attention_layers(task.objective.generative).items()
        for kind in "qk"
    ]
    task.objective.settings = Settings(leffa=True, weight=1e-2, temperature=1.5, gradient_checkpointing=False)
    with torch.no_grad():
        found = task.objective(three)
    for hook in hooks:
        hook.remove()
    layers = []
    for kind, place in seen:
        if kind == "q":
            q, k = seen["q", place], seen["k", place]
            tokens = q.shape[1]
            heads = self_attention_layers(task.objective.generative)[place].attn1.heads
            grid = {48: (8, 6), 12: (4, 3), 4: (2, 2), 1: (1, 1)}[tokens]
            layers.append(AttentionLayer(q, k[:, tokens:], heads, grid, grid))
    want = leffa_loss(layers, three.worn, three.person, three.mask, three.timesteps, 1.5, 1e-2)
    # The kernel's is the mean of the two late samples; the objective counts on half of the three.
    assert found["leffa"].item() == pytest.approx(want.item() * 2 / 1.5, rel=1e-4)
    with torch.no_grad():
        task.objective.settings = Settings(True, 1e-2, 1.5, 750, 1 / 16, gradient_checkpointing=False)
        fewer = task.objective(three)["leffa"].item()
    kept = [each for each in layers if each.grid[0] / three.person.shape[-2] >= 1 / 16]
    assert 0 < len(kept) < len(layers)
    want = flow_errors(kept, three.worn, three.person, three.mask, 1.5)[three.timesteps < 750]
    assert fewer == pytest.approx(1e-2 * want.sum().item() / (3 * 0.75), rel=1e-4)
    with torch.no_grad():
        sampling = task.objective._sampling[0]
        sigma = sampling.sigma(three.timesteps)
        x = three.target + sigma[:, None, None, None] * three.noise
        noise = (x - task.objective.denoised(three, x, sigma)) / sigma[:, None, None, None]
    assert found["denoising"].item() == pytest.approx((noise - three.noise).square().mean().item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx((found["denoising"] + found["leffa"]).item())


def test_samples_without_a_reference_do_not_learn_to_look(task: Any) -> None:
    task.objective.settings = Settings(leffa=True, gradient_checkpointing=False)
    two = replace(batch(task, 2), timesteps=torch.tensor([80, 420]), is_shown=torch.tensor([False, False]))
    assert task.objective(two)["leffa"] == 0


@pytest.mark.parametrize("checkpoints", [False, True])
def test_gradients_reach_all_of_both_unets(task: Any, checkpoints: bool) -> None:
    task.objective.settings = Settings(leffa=True, gradient_checkpointing=checkpoints)
    task.objective.zero_grad(set_to_none=True)
    two = replace(batch(task, 2), timesteps=torch.tensor([80, 420]), is_shown=torch.tensor([True, True]))
    task.objective(two)["loss"].backward()
    missing = [name for name, weight in task.objective.named_parameters() if weight.grad is None]
    assert not missing
    # A softmax over one key has no gradient, up to the rounding of the processor's kernel.
    largest = max(float(weight.grad.abs().max()) for weight in task.objective.parameters())
    idle = [name for name, weight in task.objective.named_parameters() if weight.grad.abs().max() < 1e-9 * largest]
    # In the middle of the reference there is one token, so nothing to choose from.
    middle = "reference.middle_block.1.transformer_blocks.0.attn1."
    assert idle == [f"{middle}to_q.weight", f"{middle}to_k.weight"]
    gradients = {name: weight.grad.clone() for name, weight in task.objective.named_parameters()}
    if not checkpoints:
        test_gradients_reach_all_of_both_unets.kept = gradients  # type: ignore[attr-defined]
    else:
        for name, kept in test_gradients_reach_all_of_both_unets.kept.items():  # type: ignore[attr-defined]
            assert torch.allclose(gradients[name], kept, atol=1e-6), name


def test_the_file_has_the_official_keys() -> None:
    """Of a full-size SD1.5, by names alone."""
    with gzip.open(KEYS, "rt", encoding="utf-8") as file:
        published = json.load(file)["virtual_tryon.pth"]["shapes"]
    shapes: dict[str, Any] = demo.random_state_dict(demo.TRY_ON, lambda shape: shape)
    inside = {name.removeprefix(GENERATIVE): each for name, each in shapes.items() if name.startswith(GENERATIVE)}
    table, host = official_names(layout.unet_config(inside, "a file")), unet_shapes(demo.TRY_ON)
    names = {prefix + theirs for prefix in (GENERATIVE, REFERENCE) for theirs, ours in table.items() if ours in host}
    sizes = {"z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4]}
    with torch.device("meta"):
        vae = AutoencoderKL(
            embed_dim=4,
            ddconfig={**sizes, "double_z": True, "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
        )
    renamed = vae_to_diffusers(vae.state_dict())
    names |= {f"vae.{name}" for name in renamed}
    assert names == set(published)
    for name, weight in renamed.items():
        assert "x".join(map(str, weight.shape)) == published[f"vae.{name}"]
    back = convert_vae_state_dict(renamed)
    assert {name: each.shape for name, each in back.items()} == {
        name: each.shape for name, each in vae.state_dict().items()
    }


def test_an_inpainting_model_gives_its_inputs_and_the_rest_start_from_nothing() -> None:
    from families import UNET, TinyFamily, random_model

    base = random_model(
        TinyFamily("SD15", {**UNET, "in_channels": 9, "num_classes": None, "context_dim": 24}, (4, 8, 8))
    )
    weights = base.model.diffusion_model.state_dict()
    config = base.model.model_config.unet_config
    module = TryOn(base.model.model_sampling, config, dict.fromkeys((GENERATIVE, REFERENCE), weights))
    first = weights["input_blocks.0.0.weight"]
    assert torch.equal(module.generative.input_blocks[0][0].weight[:, :9], first)
    assert not module.generative.input_blocks[0][0].weight[:, 9:].any()
    assert torch.equal(module.reference.input_blocks[0][0].weight, first[:, :4])


@pytest.fixture
def records(tmp_path: Path) -> Any:
    """Reads a folder in a layout, with two persons in it."""
    from training.tasks import leffa

    def found(layout: str, **data: Any) -> Any:
        table = {"output": "out", "data": {"root": "data", "layout": layout, **data}}
        config = build(table, tmp_path, leffa.Data, leffa.Options, {})
        return leffa.records_of(config, tmp_path / "data", data.get("task", "try_on"))

    return found


def parsed(path: Path, label: int) -> None:
    """A parsing with a garment in its middle."""
    labels = numpy.zeros((64, 48), numpy.uint8)
    labels[20:40, 12:36], labels[8:16, 18:30], labels[4:8, 18:30] = label, 13, 2
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels, "P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def test_viton_hd(tmp_path: Path, records: Any) -> None:
    root = tmp_path / "data"
    for name in ("00001_00", "00002_00"):
        for folder in ("image", "cloth", "image-densepose"):
            save_picture(root / folder / f"{name}.jpg", numpy.zeros((64, 48, 3)))
    first, second = records("viton_hd")
    assert (first.person, first.reference, first.densepose) == (
        "image/00001_00.jpg",
        "cloth/00001_00.jpg",
        "image-densepose/00001_00.jpg",
    )
    assert first.parsing == "image-parse-v3/00001_00.png" and first.labels == "LIP" and not first.mask
    (root / "agnostic-mask").mkdir()
    assert records("viton_hd")[1].mask == "agnostic-mask/00002_00_mask.png"
    (tmp_path / "train_pairs.txt").write_text("00002_00.jpg 00001_00.jpg\n")
    (only,) = records("viton_hd")
    assert only.person == "image/00002_00.jpg" and only.reference == "cloth/00002_00.jpg"
    assert second.person == only.person


def test_dress_code_and_pairs(tmp_path: Path, records: Any) -> None:
    root = tmp_path / "data"
    for category in ("dresses", "upper_body"):
        save_picture(root / category / "images" / "000001_0.jpg", numpy.zeros((64, 48, 3)))
        save_picture(root / category / "images" / "000001_1.jpg", numpy.zeros((64, 48, 3)))
    found = records("dress_code", categories=["dresses", "upper_body"])
    assert [each.garment_type for each in found] == ["dresses", "upper_body"]
    assert vars(found[0]) == {
        "person": "dresses/images/000001_0.jpg",
        "reference": "dresses/images/000001_1.jpg",
        "densepose": "dresses/dense/000001_5.png",
        "mask": "",
        "parsing": "dresses/label_maps/000001_4.png",
        "keypoints": "dresses/keypoints/000001_2.json",
        "labels": "auto",
        "garment_type": "dresses",
    }
    (root / "pairs.csv").write_text("from,to\na.jpg,b.jpg\n")
    (pair,) = records("pairs", file="pairs.csv")
    assert (pair.person, pair.reference, pair.densepose) == ("images/b.jpg", "images/a.jpg", "densepose/b.png")


def test_masks_are_made_of_parsings(trained: Path, task: Any, tmp_path: Path) -> None:
    from training.tasks.leffa import Record

    root = task._root
    parsed(root / "parsing.png", 5)  # upper clothes, of a person whose face is 13, in LIP
    made = Record("person0.png", "garment0.png", "body0.png", parsing="parsing.png", labels="LIP")
    found = task._mask(made, task._files(made))
    assert found.shape == SIZE and found[24:36, 14:34].all() and not found[:12].any()
    with pytest.raises(ValueError, match=r"parsing\.png: parsing holds nothing to replace .* lower_body"):
        task._mask(replace(made, garment_type="lower_body"), task._files(made))


def test_bad_data_is_named_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = leffa_config(tmp_path)
    lines = (tmp_path / "data" / "train.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "person": "gone.png"})
    lines[1] = json.dumps({**json.loads(lines[1]), "mask": ""})
    save_picture(tmp_path / "data" / "wide.png", numpy.zeros((20, 90, 3)))
    lines[2] = json.dumps({**json.loads(lines[2]), "densepose": "wide.png"})
    lines[3] = json.dumps({**json.loads(lines[3]), "garment_type": "hat"})
    save_picture(tmp_path / "data" / "black.png", numpy.zeros((64, 48)))
    lines[4] = json.dumps({**json.loads(lines[4]), "mask": "black.png"})
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines))
    assert train_here("leffa", config) == 2
    said = capsys.readouterr().err
    parts = ["5 of 8 records are bad (1 missing, 4 wrong)", "gone.png", "neither a mask nor a parsing"]
    parts += ["densepose is 90 x 20 pixels, but person is 48 x 64", "garment_type is 'hat'", "mask is black"]
    assert not [part for part in parts if part not in said]


def test_the_loss_takes_a_model_that_joins_the_garment_in_space() -> None:
    """As CatVTON does: one self-attention over the person above and the garment below."""
    generator = torch.Generator().manual_seed(0)
    grid, width, heads = (4, 3), 8, 2
    to_q, to_k = (torch.randn(width, width, generator=generator) for _ in range(2))
    x = torch.randn(1, 2 * grid[0] * grid[1], width, generator=generator)
    layer = joined_in_space(x @ to_q, x @ to_k, heads, grid)
    person, garment, hole = torch.rand(1, 3, 32, 24), torch.rand(1, 3, 32, 24), torch.ones(1, 1, 32, 24)
    apart = AttentionLayer(x[:, :12] @ to_q, x[:, 12:] @ to_k, heads, grid, grid)
    found, want = (leffa_loss([one], garment, person, hole, torch.tensor([3])) for one in (layer, apart))
    assert found == want > 0
