"""DEADiff's training: the three sets against the nodes, what learns, and the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import deadiff_support as support
import pytest
import torch
from refattention.core.deadiff.loaded import CONTENT, STYLE, load
from refattention.core.deadiff.training import (
    BRANCHES,
    INITIAL_SPREAD,
    RECONSTRUCTION,
    SAME_STYLE,
    SAME_SUBJECT,
    Settings,
    readers_from,
)
from refattention.core.models import checkpoint
from refattention.nodes.deadiff import DEADiffStyle
from refattention_demo.deadiff_layout import DEMO_SIZE, random_weights
from safetensors.torch import load_file, save_file
from training.config import ConfigError, build, read
from training.pictures import picture
from training_support import EXTENSION, base_file, blob, config_file, losses, save_picture, train_here

pytestmark = pytest.mark.usefixtures("outside_of_inference_mode")
SELF = "blip.Qformer.bert.encoder.layer.0.attention.self"


def rows() -> list[dict[str, str]]:
    return [
        {"kind": SAME_STYLE, "target": "t0.png", "reference": "r0.png", "prompt": "a cat"},
        {"kind": SAME_SUBJECT, "target": "t1.png", "reference": "r1.png", "subject": "dog", "style": "watercolour"},
        {"kind": RECONSTRUCTION, "target": "t2.png", "prompt": "not told"},
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run that started from a file with a visual encoder of its own."""
    folder = tmp_path_factory.mktemp("deadiff")
    base_file(folder)
    save_file({name: each.clone() for name, each in random_weights(DEMO_SIZE).items()}, folder / "start.safetensors")
    for number in range(3):
        save_picture(folder / "data" / f"t{number}.png", blob(number, (70, 90)))
        save_picture(folder / "data" / f"r{number}.png", blob(number + 9, (64, 64)))
    (folder / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows())))
    config = config_file(
        folder,
        output="run",
        trackers=[],
        models={"checkpoint": "base.safetensors", "start": "start.safetensors", "extensions": [str(EXTENSION)]},
        data={"root": "data"},
        train={"steps": 2, "batch_size": 3, "height": 64, "width": 64, "learning_rate": 1e-2, "warmup": 0},
        save={"every": 0, "dtype": "float32"},
        validate={"every": 2, "steps": 2, "pictures": 3},
    )
    assert train_here("deadiff", config) == 0
    return folder


def task_of(folder: Path, *changes: str) -> Any:
    from training.tasks import deadiff

    table = read(folder / "config.toml", ["models.start=run/deadiff.safetensors", "output=again", *changes])
    return deadiff.Task(build(table, folder, deadiff.Data, deadiff.Options, deadiff.DEFAULTS))


@pytest.fixture(scope="module")
def task(trained: Path) -> Any:
    return task_of(trained)


def test_a_run_and_its_file(trained: Path) -> None:
    assert len(losses(trained / "run")) == 2 and (trained / "run" / "validation-000002.png").exists()
    before, after = (load_file(trained / name) for name in ("start.safetensors", "run/deadiff.safetensors"))
    load(after)
    changed = {name for name, each in after.items() if name in before and not torch.equal(each, before[name])}
    assert not any("visual_encoder" in name or "ln_vision" in name for name in changed)
    assert any(".attn2.i_to_k" in name for name in changed) and any("content_proj_layer" in name for name in changed)
    learnt = set(json.loads((trained / "run" / "run.json").read_text())["trained"])
    kinds = {name.split(".")[0] for name in learnt}
    assert kinds == {"readers", "attentions"} and not any("vision_norm" in name for name in learnt)
    assert {
        "readers.style.query_tokens",
        "readers.content.instruction",
        "attentions.attention.0.i_to_v.weight",
    } <= learnt


def test_pairs_go_by_turns_and_have_their_texts(task: Any) -> None:
    plan = task.plan(3, 0)
    assert [sorted(plan.records(step)) for step in range(3)] == [[0, 1, 2]] * 3
    assert [record.text for record in task._records] == ["a cat", "dog, watercolour", ""]
    batch = task.batch([task.sample((number, 5, 0), drops=False) for number in range(3)])
    assert batch.reads[STYLE].tolist() == [True, False, True] and batch.reads[CONTENT].tolist() == [False, True, True]
    assert torch.equal(batch.features[2], task._seen(task.sample((2, 5, 0)))[0])
    drops = [[task.sample((number, seed, 0)).is_dropped for seed in range(300)] for number in range(3)]
    shares = [sum(each) / 300 for each in drops]
    assert shares[0] == pytest.approx(0.15, abs=0.06) and shares[1] == pytest.approx(0.15, abs=0.06) and shares[2] == 0


@pytest.mark.parametrize("kind", BRANCHES)
@pytest.mark.parametrize("dropped", [False, True])
def test_the_objective_predicts_what_the_node_does(trained: Path, task: Any, kind: str, dropped: bool) -> None:
    number = list(BRANCHES).index(kind)
    one = task.batch([replace(task.sample((number, 3, 0)), is_dropped=dropped)])
    deadiff = load(checkpoint.load(trained / "run" / "deadiff.safetensors"))
    record = task._records[number]
    image = picture(trained / "data" / (record.reference or record.target))[None]
    values = {**support.WIDGETS, "mode": support.KIND_MODES[kind]}
    patched = DEADiffStyle.execute(task._model, deadiff, image, **values)[0]
    timesteps = torch.tensor([300])
    sigma = task._sampling.sigmas[timesteps][:, None, None, None]
    x = (one.target + sigma * one.noise) / (1 + sigma**2).sqrt()
    # Where the tokens are dropped, the model sees what guidance compares with: the node's other half.
    noise = support.evaluate(patched, x, timesteps, one.context, one.context)[int(dropped)]
    ours = replace(one, timesteps=timesteps)
    with torch.no_grad():
        scaled = x * (1 + sigma**2).sqrt()
        denoised = task.objective.denoised(ours, scaled, sigma.flatten())
        loss = task.objective(ours)["loss"].item()
    assert ((scaled - denoised) / sigma - noise).abs().max() < 1e-3 * noise.abs().max()
    assert loss == pytest.approx((noise - one.noise).square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_gradients_reach_what_learns_alone(task: Any, checkpoints: bool) -> None:
    objective = task.objective
    objective.settings = Settings(gradient_checkpointing=checkpoints)
    batch = task.batch([task.sample((number, 5, 0), drops=False) for number in range(3)])
    objective.zero_grad(set_to_none=True)
    objective(batch)["loss"].backward()
    learns = {name for name, weight in objective.named_parameters() if weight.requires_grad}
    reached = {name for name, weight in objective.named_parameters() if weight.grad is not None and weight.grad.any()}
    # Keys of a softmax may all move alike.
    assert {name for name in learns - reached if not name.endswith("key.bias")} == set()
    assert not any(weight.requires_grad or weight.grad is not None for weight in objective._frozen[0].parameters())
    # A batch that shares only the style leaves the branch of the content alone.
    objective.zero_grad(set_to_none=True)
    objective(task.batch([task.sample((0, 5, 0), drops=False)]))["loss"].backward()
    assert all(weight.grad is None for weight in objective.readers.content.parameters())


def qformer_file(folder: Path, drop: str = "nothing") -> Path:
    """BLIP-Diffusion's layout, with the weights of a content branch."""
    names = {"content_blip.": "blip.", "content_proj_layer.": "proj_layer."}
    weights = {
        new + name.removeprefix(old): each.clone()
        for name, each in random_weights(DEMO_SIZE, seed=4).items()
        for old, new in names.items()
        if name.startswith(old) and drop not in name
    }
    save_file(weights, folder / "blip.safetensors")
    return folder / "blip.safetensors"


def test_both_q_formers_start_from_blip_diffusions(tmp_path: Path) -> None:
    weights = load_file(qformer_file(tmp_path, drop="proj_layer"))
    with pytest.raises(ValueError, match="has no query_tokens"):
        readers_from({"other": weights["blip.query_tokens"]}, 0)
    with pytest.raises(ValueError, match="incomplete: it lacks 4 tensors"):
        readers_from({name: each for name, each in weights.items() if "0.crossattention.self.key" not in name}, 0)
    readers = readers_from(weights, 0)
    assert readers.style.projection.up.weight.std() == pytest.approx(INITIAL_SPREAD, rel=0.1)
    weights = load_file(qformer_file(tmp_path))
    readers = readers_from(weights, 0)
    for branch in (readers.style, readers.content):
        assert torch.equal(branch.query_tokens, weights["blip.query_tokens"])
        assert torch.equal(branch.projection.up.weight, weights["proj_layer.dense1.weight"])
        assert torch.equal(branch.layers[0].attention.key.weight, weights[f"{SELF}.key.weight"])
    assert readers.style.query_tokens.data_ptr() != readers.content.query_tokens.data_ptr()
    assert not torch.equal(readers.style.instruction, readers.content.instruction)  # the words differ


def test_what_q_formers_start_from_is_said_once(trained: Path) -> None:
    qformer_file(trained)
    with pytest.raises(ConfigError, match="both say what the Q-Formers start from"):
        task_of(trained, "method.qformer=blip.safetensors")


def test_a_mix_without_data_and_pairs_that_are_none(trained: Path) -> None:
    with pytest.raises(ConfigError, match="a number for each of style, subject, reconstruction"):
        task_of(trained, "method.mix=[1, 1]")
    for nothing in ([0, 0, 0], [1, -1, 1]):
        with pytest.raises(ConfigError, match="Give numbers of at least 0, and one above"):
            task_of(trained, f"method.mix={nothing}")
    table = trained / "data" / "style.jsonl"
    table.write_text(json.dumps(rows()[0]))
    with pytest.raises(ConfigError, match="mix asks for pairs of the kind 'subject', but the data has none"):
        task_of(trained, "data.file=style.jsonl")
    assert task_of(trained, "data.file=style.jsonl", "method.mix=[1, 0, 0]").records == 1
    table.write_text(json.dumps({**rows()[0], "kind": "colour"}))
    with pytest.raises(ConfigError, match="kind of a record is 'colour'"):
        task_of(trained, "data.file=style.jsonl")


def test_an_output_that_cannot_be_a_folder_is_said(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("models.start=run/deadiff.safetensors", "output=base.safetensors/run")
    told = [part for change in changes for part in ("--set", change)]
    assert train_here("deadiff", trained / "config.toml", "--dry-run", *told) == 1
    assert "base.safetensors" in capsys.readouterr().err


def test_a_start_lies_where_the_loader_node_looks(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths
    from refattention.nodes import deadiff_files
    from training.models import file_of
    from training.tasks import deadiff

    assert deadiff.FOLDERS == deadiff_files.FOLDERS
    config = build(read(trained / "config.toml", []), trained, deadiff.Data, deadiff.Options, deadiff.DEFAULTS)
    there = {("checkpoints", "v1.ckpt"): "/somewhere/v1.ckpt"}
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *asked: there.get(asked))
    assert file_of(config, "v1.ckpt", deadiff.FOLDERS, "models.start") == Path("/somewhere/v1.ckpt")
    with pytest.raises(ConfigError, match=r"'v2\.ckpt', but .*, nor one in models/model_patches, nor one in"):
        file_of(config, "v2.ckpt", deadiff.FOLDERS, "models.start")
