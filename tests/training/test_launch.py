"""Several processes on CPUs, started by Accelerate's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bootstrap import HOST
from people import leffa_config
from training.config import ConfigError, require_all_processes
from training_support import TRAIN, losses, train_here

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    environment = {**os.environ, "COMFYUI_DIR": str(HOST), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*LAUNCH, *arguments], env=environment, capture_output=True, text=True, timeout=540, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, and the run of one process with the doubled batch."""
    folder = tmp_path_factory.mktemp("launch")
    config = leffa_config(folder, train={"steps": 2, "batch_size": 1})
    assert train_here("leffa", config, "--set", "train.batch_size=2", "--set", "output=one") == 0
    return folder


@pytest.mark.timeout(600)
def test_two_processes_of_the_launcher_are_one_with_the_doubled_batch(folder: Path) -> None:
    program = [str(TRAIN), "leffa", str(folder / "config.toml"), "--set", "output=two"]
    done = launched("--multi_gpu", *program, "--cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "two" / "run.json").read_text())["processes"] == 2
    assert losses(folder / "two") == pytest.approx(losses(folder / "one"), rel=1e-4)


def test_other_starts_are_left_alone() -> None:
    cpu, several = {"ACCELERATE_USE_CPU": "True"}, {"MASTER_ADDR": "127.0.0.1"}
    for environment in ({}, cpu, several, {**cpu, **several, "WORLD_SIZE": "2"}, {**cpu, **several, "PMI_SIZE": "2"}):
        require_all_processes(environment)
    with pytest.raises(ConfigError, match="--multi_gpu --num_processes 2"):
        require_all_processes({**cpu, **several})


def test_a_launcher_that_starts_one_process_in_place_of_two_is_refused(tmp_path: Path) -> None:
    done = launched("--cpu", str(TRAIN), "leffa", str(tmp_path / "config.toml"))
    assert done.returncode != 0
    assert "was asked for several processes, but has started one" in done.stderr
