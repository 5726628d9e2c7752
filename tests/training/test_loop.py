"""The loop: resumed runs, several processes, a full disk, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import LoggerType
from bootstrap import ROOT
from safetensors.torch import load_file
from small_task import SmallTask, averaged, config, run
from training.config import Train
from training.folder import FolderError
from training.loop import optimizer_of
from training_support import losses

SEARCHED = [ROOT / "tests" / "support", ROOT / "tools"]


def start(*arguments: Any) -> Any:
    """Runs `averaged` in a process of its own, forked from one that has loaded the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_task"])
    process = context.Process(target=averaged, args=arguments)
    process.start()
    return process


def exit_status(process: Any) -> int:
    process.join()
    return int(process.exitcode)


@pytest.fixture(scope="module", autouse=True)
def search_path() -> Iterator[None]:
    """The server that forks has to find the modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, SEARCHED)))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(config(output, train={"ema": 0.9, "accumulate": 2}))
    return output


# In the middle of the first step, of one between two states, and of writing a checkpoint for the third time.
@pytest.mark.parametrize("place", ["step 1", "step 9", "save 3"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(whole: Path, tmp_path: Path, place: str) -> None:
    output = tmp_path / "run"
    assert exit_status(start(str(output), False, place)) == -signal.SIGKILL
    assert exit_status(start(str(output), True)) == 0
    assert losses(output) == losses(whole)
    ours, theirs = (load_file(folder / "small.safetensors") for folder in (output, whole))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert not list(output.glob("*unfinished*"))


def test_two_processes_are_one_with_the_doubled_batch(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(config(one, train={"batch_size": 4, "ema": 0.9, "accumulate": 2}))
    started = [start(str(two), False, "", rank) for rank in range(2)]
    assert [exit_status(each) for each in started] == [0, 0]
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    ours, theirs = (load_file(folder / "small.safetensors") for folder in (one, two))
    assert all(torch.allclose(ours[name], weight, atol=2e-3) for name, weight in theirs.items())


def test_the_files_of_a_run(whole: Path) -> None:
    names = {path.name for path in whole.iterdir() if path.is_file()}
    saved = {"small-000002.safetensors", "small-000004.safetensors", "small-000006.safetensors"}
    assert names == {"run.json", "losses.jsonl", "state-000006.pt", "small.safetensors", *saved}
    about = json.loads((whole / "run.json").read_text())
    assert about["trained"] == ["first.bias", "first.weight", "second.bias", "second.weight"]
    assert about["trained_parameters"] == 84 and {"torch", "accelerate"} <= about["versions"].keys()


def test_the_running_mean_is_what_is_saved(tmp_path: Path) -> None:
    run(config(tmp_path / "plain", train={"steps": 3}))
    run(config(tmp_path / "mean", train={"steps": 3, "ema": 0.5}))
    start, mean = SmallTask().objective.state_dict(), load_file(tmp_path / "mean" / "small.safetensors")
    states = []
    for steps in (1, 2, 3):
        run(config(tmp_path / f"{steps}", train={"steps": steps}, save={"dtype": "float32"}))
        states.append(load_file(tmp_path / f"{steps}" / "small.safetensors")["first.weight"])
    want = start["first.weight"]
    for state in states:
        want = want.lerp(state, 0.5)
    assert (mean["first.weight"].float() - want).abs().max() < 2e-3  # saved in half precision
    assert losses(tmp_path / "mean") == losses(tmp_path / "plain")


def test_phases_follow_each_other_and_are_resumed(tmp_path: Path) -> None:
    phases = [{"steps": 3}, {"steps": 4, "learning_rate": 0.01, "batch_size": 3}]
    run(config(tmp_path / "a", phase=phases))
    run(config(tmp_path / "b", phase=phases[:1]))
    run(config(tmp_path / "b", phase=phases), resume=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a", "phase") == [1] * 3 + [2] * 4


def test_a_full_disk_leaves_what_was_saved_whole(tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(config(output, train={"steps": 2}))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
        with pytest.raises(FolderError, match=r"could not be written: .* make room, then go on by --resume"):
            run(config(output, train={"steps": 4}), resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(output.glob("*unfinished*"))
    run(config(output, train={"steps": 4}), resume=True)
    run(config(tmp_path / "whole", train={"steps": 4}))
    assert losses(output) == losses(tmp_path / "whole")


def test_nothing_of_a_run_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FolderError, match="holds no run that could be resumed"):
        run(config(tmp_path / "run"), resume=True)
    run(config(tmp_path / "run", train={"steps": 2}))
    with pytest.raises(FolderError, match="holds a run already"):
        run(config(tmp_path / "run"))
    monkeypatch.setattr(SmallTask, "digest", "other")
    with pytest.raises(FolderError, match="The data is not what the run"):
        run(config(tmp_path / "run"), resume=True)


@pytest.mark.parametrize("name", ["small.safetensors", "small-1.safetensors", "losses.jsonl", "state-000002.pt"])
def test_a_file_of_the_user_is_not_written_over(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "run" / name
    theirs.parent.mkdir()
    theirs.write_text("mine")
    with pytest.raises(FolderError, match=f"holds {re.escape(name)}, which the run would write over"):
        run(config(tmp_path / "run", train={"steps": 2}))
    assert [file.name for file in theirs.parent.iterdir()] == [name]
    assert theirs.read_text() == "mine"


def test_what_a_killed_run_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    from training.folder import RunFolder

    about = {"method": "small", "data_digest": "x", "config": {}}
    theirs = tmp_path / "notes.unfinished"
    theirs.write_text("mine")
    RunFolder(tmp_path, "small").begin(about, resume=False)
    assert theirs.read_text() == "mine"  # a new run knows nothing of the folder
    theirs.unlink()
    half = tmp_path / "small-000007.unfinished.safetensors"
    half.write_bytes(b"half")
    for step in (1, 2, 3):
        RunFolder(tmp_path, "small").save(step, 2, lambda path: path.write_bytes(b"whole"), {})
    assert [file.name for file in sorted(tmp_path.glob("small-0*.safetensors"))] == [
        *("small-000002.safetensors", "small-000003.safetensors", half.name)
    ]
    assert RunFolder(tmp_path, "small").begin(about, resume=True) == {}
    assert not half.exists()


def test_divergence_names_the_step_and_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"diverged in step \d+.* lower learning_rate"):
        run(config(tmp_path / "run", train={"learning_rate": 1e30, "clip": 0.0, "warmup": 0, "steps": 30}))
    for path in (tmp_path / "run").glob("state-*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(weight.isfinite().all() for weight in state["trained"].values())


def test_interrupted_runs_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SmallTask.batch

    def batch(self: SmallTask, samples: Any) -> Any:
        if self.objective.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, samples)

    monkeypatch.setattr(SmallTask, "batch", batch)
    loop = run(config(tmp_path / "run"))
    assert loop.is_stopped and len(losses(tmp_path / "run")) == 4
    monkeypatch.setattr(SmallTask, "batch", original)
    run(config(tmp_path / "run"), resume=True)
    run(config(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(FolderError, match="trackers names wandb, not installed here"):
        run(config(tmp_path / "refused", trackers=["tensorboard", "wandb"]))
    run(config(tmp_path / "run", trackers=["tensorboard"], train={"steps": 1}))
    assert list((tmp_path / "run" / "logs").rglob("events*"))


def test_optimisers() -> None:
    weight = [torch.nn.Parameter(torch.zeros(3, 2))]
    assert isinstance(optimizer_of(Train(), weight), torch.optim.AdamW)
    assert isinstance(optimizer_of(Train(optimizer="adafactor"), weight), torch.optim.Adafactor)
    with pytest.raises(FolderError, match="optimizer is 'sgd', but must be"):
        optimizer_of(Train(optimizer="sgd"), weight)
